//! Twin of `kernels::attention`.

use candle_core::{DType, Device, Result, Tensor, bail};
use t3s_core::AttentionPattern;

use super::{
    launch::{Launch, Source, THREADS, source},
    memory::{indices, one_dtype, overwritten},
};
use crate::kernels::{
    attention::{Forwarded, Heads},
    attention_pattern::Spans,
};

const SOURCE: Source = source!("attention");

/// What one kernel is compiled for; the constants of attention.cu.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// Heads of up to so many elements.
    head_dim: usize,
    /// Rows of a tile.
    tile: usize,
}

impl Size {
    fn of(head_dim: usize) -> Result<Self> {
        match head_dim {
            0..=64 => Ok(Self {
                head_dim: 64,
                tile: 64,
            }),
            65..=128 => Ok(Self {
                head_dim: 128,
                tile: 64,
            }),
            129..=256 => Ok(Self {
                head_dim: 256,
                tile: 32,
            }),
            _ => bail!("attention: heads of {head_dim}; the CUDA kernels have room for 256"),
        }
    }

    fn kernel(self, name: &str) -> String {
        format!("{name}_{}", self.head_dim)
    }

    /// Bytes of `tiles` tiles of rows and one of scores.
    fn shared(self, tiles: usize, dtype: DType) -> usize {
        let bytes = dtype.size_in_bytes();
        let stride = self.head_dim + 4 / bytes;
        tiles * self.tile * stride * bytes + self.tile * (self.tile + 1) * 4
    }
}

/// The tiles of queries (or of keys) of a batch, as attention.cu lists them.
struct Tiles {
    /// Four numbers each: the example's first row and length, the tile's first row in it and length.
    tiles: Vec<u32>,
    /// Of each tile, the first tile of its example.
    first: Vec<u32>,
    /// Of each tile, the number of tiles of its example.
    count: Vec<u32>,
}

impl Tiles {
    fn new(offsets: &[u32], pattern: AttentionPattern, size: Size) -> Self {
        let mut all = Self {
            tiles: Vec::new(),
            first: Vec::new(),
            count: Vec::new(),
        };
        for example in offsets.windows(2) {
            let len = example[1] - example[0];
            let first = all.len();
            for tile in Spans::new(pattern, len as usize).query_tiles(0, size.tile) {
                let (start, n) = (tile.start as u32, tile.len() as u32);
                all.tiles.extend([example[0], len, start, n]);
            }
            let n = all.len() - first;
            all.first.extend(std::iter::repeat_n(first as u32, n));
            all.count.extend(std::iter::repeat_n(n as u32, n));
        }
        all
    }

    fn len(&self) -> usize {
        self.tiles.len() / 4
    }
}

/// The last arguments of every kernel.
fn shape(launch: Launch, heads: Heads, pattern: AttentionPattern) -> Result<Launch> {
    let (number, block, views) = match pattern {
        AttentionPattern::Causal => (0, 1, 1),
        AttentionPattern::Bidirectional => (1, 1, 1),
        AttentionPattern::BlockCausal { block } => (2, block, 1),
        AttentionPattern::BlockDiffusion { block, views } => (3, block, views),
        other => bail!("attention: no CUDA kernel for the pattern {other:?}"),
    };
    Ok(launch
        .u32(heads.n_heads)?
        .u32(heads.n_kv_heads)?
        .u32(heads.head_dim)?
        .u32(number)?
        .u32(block as usize)?
        .u32(views as usize)?
        .f32(1.0 / (heads.head_dim as f32).sqrt()))
}

/// Output and log-sum-exp; shapes and offsets have been checked.
pub(in crate::kernels) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    offsets: &[u32],
    pattern: AttentionPattern,
) -> Result<(Tensor, Tensor)> {
    let dtype = one_dtype("attention", &[q, k, v])?;
    let (rows, device) = (q.dim(0)?, q.device());
    let size = Size::of(heads.head_dim)?;
    let tiles = Tiles::new(offsets, pattern, size);
    let out = overwritten(q.shape(), dtype, device)?;
    let lse = overwritten((rows, heads.n_heads), DType::F32, device)?;
    let launch = Launch::of(SOURCE, &size.kernel("attention_forward"), q)?
        .shared(size.shared(2, dtype))
        .tensor(q)?
        .tensor(k)?
        .tensor(v)?
        .tensor(&list(&tiles.tiles, device)?)?
        .tensor(&out)?
        .tensor(&lse)?;
    shape(launch, heads, pattern)?.run((tiles.len(), heads.n_heads), THREADS)?;
    Ok((out, lse))
}

/// `(dq, dk, dv)`; shapes and offsets have been checked.
pub(in crate::kernels) fn backward(
    d_out: &Tensor,
    forwarded: Forwarded<'_>,
    heads: Heads,
    offsets: &[u32],
    pattern: AttentionPattern,
) -> Result<(Tensor, Tensor, Tensor)> {
    // Warps per block, each with a head of a row.
    const WARPS: usize = THREADS as usize / 32;
    let Forwarded { q, k, v, out, lse } = forwarded;
    let dtype = one_dtype("attention", &[d_out, q, k, v, out])?;
    let (rows, device) = (q.dim(0)?, q.device());
    let size = Size::of(heads.head_dim)?;
    let tiles = Tiles::new(offsets, pattern, size);
    let listed = list(&tiles.tiles, device)?;
    let items = rows * heads.n_heads;
    let delta = overwritten((rows, heads.n_heads), DType::F32, device)?;
    Launch::of(SOURCE, "attention_delta", q)?
        .tensor(d_out)?
        .tensor(out)?
        .tensor(&delta)?
        .u32(items)?
        .u32(heads.head_dim)?
        .run((items.div_ceil(WARPS), 1), THREADS)?;

    let dq = overwritten(q.shape(), dtype, device)?;
    let launch = Launch::of(SOURCE, &size.kernel("attention_backward_queries"), q)?
        .shared(size.shared(4, dtype))
        .tensor(q)?
        .tensor(k)?
        .tensor(v)?
        .tensor(d_out)?
        .tensor(lse)?
        .tensor(&delta)?
        .tensor(&listed)?
        .tensor(&dq)?;
    shape(launch, heads, pattern)?.run((tiles.len(), heads.n_heads), THREADS)?;

    let dk = overwritten(k.shape(), dtype, device)?;
    let dv = overwritten(v.shape(), dtype, device)?;
    let launch = Launch::of(SOURCE, &size.kernel("attention_backward_keys"), q)?
        .shared(size.shared(4, dtype))
        .tensor(q)?
        .tensor(k)?
        .tensor(v)?
        .tensor(d_out)?
        .tensor(lse)?
        .tensor(&delta)?
        .tensor(&listed)?
        .tensor(&listed)?
        .tensor(&list(&tiles.first, device)?)?
        .tensor(&list(&tiles.count, device)?)?
        .tensor(&dk)?
        .tensor(&dv)?;
    shape(launch, heads, pattern)?.run((tiles.len(), heads.n_kv_heads), THREADS)?;
    Ok((dq, dk, dv))
}

/// A list on the device; an empty batch has an empty grid, but every pointer needs something behind it.
fn list(values: &[u32], device: &Device) -> Result<Tensor> {
    match values {
        [] => indices(&[0], device),
        values => indices(values, device),
    }
}
