//! Twin of `kernels::attention`: cuDNN's kernels where they apply ([`super::cudnn`]), those of
//! attention.cu and attention_mma.cu elsewhere.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};
use t3s_core::AttentionPattern;

#[cfg(cudnn_attention)]
use super::cudnn::Packed;
use super::{
    launch::{Launch, Source, THREADS, source},
    memory::{address, indices, one_dtype, overwritten, zeros},
};
use crate::kernels::{
    attention::{Forwarded, Heads},
    attention_pattern::Spans,
};

const SOURCE: Source = source!("attention");
const MMA: Source = source!("attention_mma");

/// The kernels of one type and head size; the constants of attention.cu and attention_mma.cu.
#[derive(Debug, Clone, Copy)]
struct Kernels {
    source: Source,
    /// What the names of its kernels start with.
    prefix: &'static str,
    /// Heads of up to so many elements, or of exactly so many on tensor cores.
    head_dim: usize,
    /// Rows of a tile.
    tile: usize,
    threads: u32,
    /// Elements between two rows in shared memory.
    stride: usize,
    /// Bytes of shared memory for a tile of scores.
    scores: usize,
}

impl Kernels {
    /// Those for `tensors`, which are of one type: on tensor cores where the size, the type and the
    /// tensors' alignment (16 bytes, which views of whole rows of a new tensor have) allow.
    fn of(head_dim: usize, tensors: &[&Tensor]) -> Result<Self> {
        let dtype = tensors[0].dtype();
        let mut aligned = true;
        for tensor in tensors {
            aligned &= address("attention", tensor)?.is_multiple_of(16);
        }
        if dtype == DType::BF16 && matches!(head_dim, 64 | 96 | 128) && aligned {
            return Ok(Self {
                source: MMA,
                prefix: "attention_mma",
                head_dim,
                tile: 64,
                threads: 128,
                stride: head_dim + 8,
                scores: 0,
            });
        }
        let (head_dim, tile) = match head_dim {
            0..=64 => (64, 64),
            65..=128 => (128, 64),
            129..=256 => (256, 32),
            _ => bail!("attention: heads of {head_dim}; the CUDA kernels have room for 256"),
        };
        Ok(Self {
            source: SOURCE,
            prefix: "attention",
            head_dim,
            tile,
            threads: THREADS,
            stride: head_dim + 4 / dtype.size_in_bytes(),
            scores: tile * (tile + 1) * 4,
        })
    }

    /// The pass `name`, with room for `tiles` tiles of rows of the type of `like`.
    fn launch(self, name: &str, tiles: usize, like: &Tensor) -> Result<Launch> {
        let kernel = format!("{}_{name}_{}", self.prefix, self.head_dim);
        let rows = tiles * self.tile * self.stride * like.dtype().size_in_bytes();
        Ok(Launch::of(self.source, &kernel, like)?.shared(rows + self.scores))
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
    fn new(offsets: &[u32], pattern: AttentionPattern, tile: usize) -> Self {
        let mut all = Self {
            tiles: Vec::new(),
            first: Vec::new(),
            count: Vec::new(),
        };
        for example in offsets.windows(2) {
            let len = example[1] - example[0];
            let first = all.len();
            for rows in Spans::new(pattern, len as usize).query_tiles(0, tile) {
                let (start, n) = (rows.start as u32, rows.len() as u32);
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
    #[cfg(cudnn_attention)]
    if let Some(packed) = Packed::of(&[q, k, v], heads, offsets, pattern)? {
        return packed.forward(q, k, v);
    }
    portable_forward(q, k, v, heads, offsets, pattern)
}

/// `(dq, dk, dv)`; shapes and offsets have been checked.
pub(in crate::kernels) fn backward(
    d_out: &Tensor,
    forwarded: Forwarded<'_>,
    heads: Heads,
    offsets: &[u32],
    pattern: AttentionPattern,
) -> Result<(Tensor, Tensor, Tensor)> {
    #[cfg(cudnn_attention)]
    {
        let Forwarded { q, k, v, out, .. } = forwarded;
        if let Some(packed) = Packed::of(&[q, k, v, out, d_out], heads, offsets, pattern)? {
            return packed.backward(d_out, forwarded);
        }
    }
    portable_backward(d_out, forwarded, heads, offsets, pattern)
}

/// [`forward`] by the kernels of this crate.
pub(super) fn portable_forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    offsets: &[u32],
    pattern: AttentionPattern,
) -> Result<(Tensor, Tensor)> {
    let out = overwritten(q.shape(), q.dtype(), q.device())?;
    let lse = overwritten((q.dim(0)?, heads.n_heads), DType::F32, q.device())?;
    forward_into([q, k, v], heads, offsets, pattern, (&out, &lse))?;
    Ok((out, lse))
}

/// [`portable_forward`] into `out` and `lse`. Rows past the last offset are neither read nor written.
pub(crate) fn forward_into(
    [q, k, v]: [&Tensor; 3],
    heads: Heads,
    offsets: &[u32],
    pattern: AttentionPattern,
    (out, lse): (&Tensor, &Tensor),
) -> Result<()> {
    one_dtype("attention", &[q, k, v, out])?;
    let kernels = Kernels::of(heads.head_dim, &[q, k, v])?;
    let tiles = Tiles::new(offsets, pattern, kernels.tile);
    launch_forward(
        kernels,
        [q, k, v],
        (&tiles.tiles, None),
        heads,
        pattern,
        (out, lse),
    )
}

/// Neighbouring rows of queries whose example's keys and values stand in a cache.
#[derive(Debug, Clone)]
pub(crate) struct CachedQueries {
    /// Row of the cache where the example starts.
    pub example: usize,
    /// Their rows in the example, whose length counts as the last one's end.
    pub rows: Range<usize>,
    /// Row of the first among the queries.
    pub first: usize,
}

/// Attention of `queries`, rows of `q [rows, heads * d]`, over `k` and `v [rows of the cache, kv_heads *
/// d]`: as if each example's rows up to these stood there whole. `[rows, heads * d]`, zeros in all others.
pub(crate) fn forward_cached(
    [q, k, v]: [&Tensor; 3],
    heads: Heads,
    queries: &[CachedQueries],
    pattern: AttentionPattern,
) -> Result<Tensor> {
    let dtype = one_dtype("attention", &[q, k, v])?;
    let device = q.device();
    let out = zeros(q.shape(), dtype, device)?;
    let lse = overwritten((q.dim(0)?, heads.n_heads), DType::F32, device)?;
    let kernels = Kernels::of(heads.head_dim, &[q, k, v])?;
    let (mut tiles, mut query_rows) = (Vec::new(), Vec::new());
    for CachedQueries {
        example,
        rows,
        first,
    } in queries
    {
        for start in rows.clone().step_by(kernels.tile) {
            let n = kernels.tile.min(rows.end - start);
            tiles.extend([*example, rows.end, start, n].map(|n| n as u32));
            query_rows.push((first + start - rows.start) as u32);
        }
    }
    let tiles = (tiles.as_slice(), Some(query_rows.as_slice()));
    launch_forward(kernels, [q, k, v], tiles, heads, pattern, (&out, &lse))?;
    Ok(out)
}

/// One launch over `tiles` of queries, four numbers each; their rows are the keys' where no others are
/// given.
fn launch_forward(
    kernels: Kernels,
    [q, k, v]: [&Tensor; 3],
    (tiles, query_rows): (&[u32], Option<&[u32]>),
    heads: Heads,
    pattern: AttentionPattern,
    (out, lse): (&Tensor, &Tensor),
) -> Result<()> {
    let device = q.device();
    // The plain kernel keeps keys and values in one tile, one after the other.
    let row_tiles = if kernels.scores > 0 { 2 } else { 3 };
    let query_rows = query_rows.map(|rows| list(rows, device)).transpose()?;
    let launch = kernels
        .launch("forward", row_tiles, q)?
        .tensor(q)?
        .tensor(k)?
        .tensor(v)?
        .tensor(&list(tiles, device)?)?
        .optional(query_rows.as_ref())?
        .tensor(out)?
        .tensor(lse)?;
    shape(launch, heads, pattern)?.run((tiles.len() / 4, heads.n_heads), kernels.threads)
}

/// [`backward`] by the kernels of this crate.
pub(super) fn portable_backward(
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
    let kernels = Kernels::of(heads.head_dim, &[q, k, v, d_out])?;
    let tiles = Tiles::new(offsets, pattern, kernels.tile);
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
    let launch = kernels
        .launch("backward_queries", 4, q)?
        .tensor(q)?
        .tensor(k)?
        .tensor(v)?
        .tensor(d_out)?
        .tensor(lse)?
        .tensor(&delta)?
        .tensor(&listed)?
        .tensor(&dq)?;
    shape(launch, heads, pattern)?.run((tiles.len(), heads.n_heads), kernels.threads)?;

    let dk = overwritten(k.shape(), dtype, device)?;
    let dv = overwritten(v.shape(), dtype, device)?;
    let launch = kernels
        .launch("backward_keys", 4, q)?
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
    shape(launch, heads, pattern)?.run((tiles.len(), heads.n_kv_heads), kernels.threads)?;
    Ok((dq, dk, dv))
}

/// A list on the device; an empty batch has an empty grid, but every pointer needs something behind it.
fn list(values: &[u32], device: &Device) -> Result<Tensor> {
    match values {
        [] => indices(&[0], device),
        values => indices(values, device),
    }
}
