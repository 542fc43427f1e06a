//! One forward pass's worth of rows: packed, with offsets, never padded.

use std::sync::Arc;

use t3s_core::AttentionPattern;

/// What every layer may ask about the rows it sees. Rows of all examples stand one after another;
/// activations are `[rows, width]`.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[rows]`: rotary positions.
    pub positions: Arc<Vec<u32>>,
    /// `[examples + 1]`: rows `offsets[e]..offsets[e + 1]` are example `e`'s; examples never see
    /// each other.
    pub offsets: Arc<Vec<u32>>,
    /// Which rows see which inside an example.
    pub attention: AttentionPattern,
}

impl Batch {
    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.positions.len()
    }
}
