//! Lists of tensors that one launch goes through: a block has a chunk of one of them.

use candle_core::{Device, Result, Tensor};

use super::memory::indices;

/// Elements of a chunk, of the last one of a tensor fewer: a multiple of what eight threads' vectors and
/// a block of 8-bit moments hold.
pub(super) const CHUNK: usize = 1 << 15;

/// A list under construction.
#[derive(Debug, Default)]
pub(super) struct TensorList {
    /// What the kernel reads of each tensor, as its struct lies in memory.
    entries: Vec<u64>,
    n_tensors: u32,
    /// Two numbers per block: which tensor, and which of its chunks.
    chunks: Vec<u32>,
}

impl TensorList {
    /// A tensor of `n` elements; `entry` has the same length for all.
    pub(super) fn push(&mut self, n: usize, entry: &[u64]) {
        self.entries.extend_from_slice(entry);
        let chunks = 0..n.div_ceil(CHUNK) as u32;
        self.chunks
            .extend(chunks.flat_map(|chunk| [self.n_tensors, chunk]));
        self.n_tensors += 1;
    }

    /// Blocks of the launch.
    pub(super) fn n_chunks(&self) -> usize {
        self.chunks.len() / 2
    }

    /// The entries and the chunks on the device; not copied again while they stay the same.
    pub(super) fn on_device(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let halves = |word: &u64| [*word as u32, (*word >> 32) as u32];
        let entries: Vec<u32> = self.entries.iter().flat_map(halves).collect();
        Ok((indices(&entries, device)?, indices(&self.chunks, device)?))
    }
}
