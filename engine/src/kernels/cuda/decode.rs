//! Launches of decode.cu: the key-value cache on the device, and attention of one query per slot over
//! it. No twin: the CPU decodes by `kernels::decode_attention`, sequence by sequence.
//!
//! Buffers are the caller's, at the same addresses from step to step, so that a step can be recorded.

use candle_core::{DType, Device, Result, Tensor};

use super::{
    launch::{Launch, Source, THREADS, source, threads_for},
    memory::{one_dtype, overwritten, upload, zeros},
};
use crate::kernels::{attention::Heads, buffers::ATTEND_CHUNK};

const SOURCE: Source = source!("decode");

/// Warps per block where each has an item of its own.
const WARPS: usize = THREADS as usize / 32;
/// Threads of a block of attention; the constant of decode.cu.
const ATTEND_THREADS: usize = 128;
/// Query heads of a block, at most: the largest of decode.cu's kernels.
const MOST_HEADS: usize = 8;
/// Blocks of attention that keep a large GPU busy, with some to spare for those that have less to do.
const BLOCKS: usize = 2048;

/// The state of all slots, `[FIELDS, slots]` words; the numbers of decode.cuh.
#[derive(Debug, Clone)]
pub(crate) struct State(pub Tensor);

/// What a slot's first word says.
pub(crate) mod status {
    pub(crate) const RUNNING: u32 = 1;
    pub(crate) const FRESH: u32 = 2;
    pub(crate) const EOS: u32 = 3;
    pub(crate) const LENGTH: u32 = 4;
    pub(crate) const BAD: u32 = 5;
}

/// A new answer of a slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub slot: usize,
    /// Of the prompt; at least 1.
    pub tokens: usize,
    /// Most tokens of the answer; at least 1.
    pub limit: usize,
    /// Of the answer's random stream.
    pub key: u64,
}

impl State {
    const FIELDS: usize = 7;
    const STATUS: usize = 0;
    const ID: usize = 1;
    const POSITION: usize = 2;
    const WRITTEN: usize = 3;

    /// All slots idle.
    pub(crate) fn new(slots: usize, device: &Device) -> Result<Self> {
        Ok(Self(zeros((Self::FIELDS, slots), DType::U32, device)?))
    }

    /// How many there are.
    pub(super) fn slots(&self) -> Result<usize> {
        self.0.dim(1)
    }

    fn field(&self, field: usize) -> Result<Tensor> {
        self.0.narrow(0, field, 1)?.flatten_all()
    }

    /// The token that each of the first `rows` slots reads next, `[rows]`.
    pub(crate) fn ids(&self, rows: usize) -> Result<Tensor> {
        self.field(Self::ID)?.narrow(0, 0, rows)
    }

    /// Slots move, with their answers, `[slots, most]`: `moves` are `{from, to, _}`, and `from` has
    /// nothing to do afterwards. None is named twice.
    pub(super) fn move_slots(&self, answers: &Tensor, moves: &[[u32; 3]]) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        let device = self.0.device();
        let listed = upload(&moves.concat(), device)?;
        Launch::plain(SOURCE, "decode_move", device)
            .tensor(&self.0)?
            .tensor(answers)?
            .tensor(&listed)?
            .u32(self.slots()?)?
            .u32(answers.dim(1)?)?
            .run((moves.len(), 1), THREADS)
    }

    /// Gives slots new answers; none is named twice.
    pub(crate) fn start(&self, starts: &[Start]) -> Result<()> {
        let words: Vec<u32> = starts
            .iter()
            .flat_map(|start| {
                let (low, high) = (start.key as u32, (start.key >> 32) as u32);
                let [slot, last, limit] =
                    [start.slot, start.tokens - 1, start.limit].map(|n| n as u32);
                [slot, last, limit, low, high]
            })
            .collect();
        let device = self.0.device();
        Launch::plain(SOURCE, "decode_start", device)
            .tensor(&self.0)?
            .tensor(&upload(&words, device)?)?
            .u32(starts.len())?
            .u32(self.slots()?)?
            .per_element(starts.len())
    }

    /// The status of every slot and how many tokens of its answer are written. Waits for the device.
    pub(crate) fn look(&self) -> Result<Vec<(u32, usize)>> {
        let words: Vec<Vec<u32>> = self.0.to_vec2()?;
        let written = words[Self::WRITTEN].iter().map(|n| *n as usize);
        Ok(words[Self::STATUS].iter().copied().zip(written).collect())
    }
}

/// The keys and values of one layer, `[slots, kv_heads, capacity, head_dim]` each.
#[derive(Debug)]
pub(crate) struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

impl LayerCache {
    /// Room for `capacity` positions of `slots` sequences.
    pub(crate) fn new(
        slots: usize,
        capacity: usize,
        heads: Heads,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = (slots, heads.n_kv_heads, capacity, heads.head_dim);
        // Nothing reads a position before it is written.
        Ok(Self {
            keys: overwritten(shape, dtype, device)?,
            values: overwritten(shape, dtype, device)?,
        })
    }

    fn slots(&self) -> Result<usize> {
        self.keys.dim(0)
    }

    fn capacity(&self) -> Result<usize> {
        self.keys.dim(2)
    }

    /// The first positions of slots become others': `pairs [n, 3]` are `{from, to, positions}`.
    pub(crate) fn copy(&self, pairs: &Tensor) -> Result<()> {
        copy(&self.keys, pairs)?;
        copy(&self.values, pairs)
    }
}

/// The same of anything `[slots, heads, positions, width]`.
pub(crate) fn copy(x: &Tensor, pairs: &Tensor) -> Result<()> {
    let (_, heads, capacity, width) = x.dims4()?;
    Launch::of(SOURCE, "decode_copy", x)?
        .tensor(x)?
        .tensor(pairs)?
        .u32(heads)?
        .u32(capacity)?
        .u32(width)?
        .run((pairs.dim(0)? * heads, 1), THREADS)
}

/// `y[to] = x[from]` for `pairs [n, 2]` of `{from, to}`.
pub(crate) fn place(x: &Tensor, pairs: &Tensor, y: &Tensor) -> Result<()> {
    one_dtype("decode", &[x, y])?;
    let width = x.dim(1)?;
    Launch::of(SOURCE, "decode_place", x)?
        .tensor(x)?
        .tensor(pairs)?
        .tensor(y)?
        .u32(width)?
        .run((pairs.dim(0)?, 1), threads_for(width, THREADS))
}

/// What turns a product into queries and keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation<'a> {
    /// `[head_dim]`.
    pub query_norm: Option<&'a Tensor>,
    /// `[head_dim]`.
    pub key_norm: Option<&'a Tensor>,
    pub eps: f64,
    /// `[positions, rotary_dim]`, f32: cosines, then sines.
    pub angles: &'a Tensor,
    pub rotary_dim: usize,
    pub heads: Heads,
}

/// Which rows are cached, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// Row `r` is the token of the running slot `r`.
    Slots(&'a State),
    /// Rows of prompts.
    Prompts {
        /// `[rows]`.
        positions: &'a Tensor,
        /// `[rows]`; a row that names no slot is not cached.
        slots: &'a Tensor,
        /// Keys and values once more, `[rows, kv_heads * head_dim]`.
        k: &'a Tensor,
        v: &'a Tensor,
    },
}

/// Norms and rotary on `qkv [rows, (heads + 2 kv_heads) head_dim]`; queries to `q`, keys and values to
/// the cache.
pub(crate) fn rotate(
    qkv: &Tensor,
    rotation: Rotation<'_>,
    rows: Rows<'_>,
    q: &Tensor,
    cache: &LayerCache,
) -> Result<()> {
    let Rotation {
        query_norm,
        key_norm,
        eps,
        angles,
        rotary_dim,
        heads,
    } = rotation;
    one_dtype("decode", &[qkv, q, &cache.keys])?;
    let launch = Launch::of(SOURCE, "decode_rotate", qkv)?
        .tensor(qkv)?
        .optional(query_norm)?
        .optional(key_norm)?
        .tensor(angles)?;
    let launch = match rows {
        Rows::Slots(state) => launch
            .tensor(&state.field(State::POSITION)?)?
            .optional(None)?
            .tensor(&state.field(State::STATUS)?)?
            .tensor(q)?
            .optional(None)?
            .optional(None)?,
        Rows::Prompts {
            positions,
            slots,
            k,
            v,
        } => launch
            .tensor(positions)?
            .tensor(slots)?
            .optional(None)?
            .tensor(q)?
            .tensor(k)?
            .tensor(v)?,
    };
    let items = qkv.dim(0)? * (heads.n_heads + 2 * heads.n_kv_heads);
    launch
        .tensor(&cache.keys)?
        .tensor(&cache.values)?
        .u32(items)?
        .u32(cache.slots()?)?
        .u32(heads.n_heads)?
        .u32(heads.n_kv_heads)?
        .u32(heads.head_dim)?
        .u32(rotary_dim)?
        .u32(cache.capacity()?)?
        .f32(eps as f32)
        .run((items.div_ceil(WARPS), 1), THREADS)
}

/// Attention of one query per slot, with room for its partial results.
#[derive(Debug)]
pub(crate) struct Attend {
    heads: Heads,
    /// `[slots, heads, chunks, head_dim]`, f32.
    partial: Tensor,
    /// `[slots, heads, chunks, 2]`, f32.
    statistics: Tensor,
}

impl Attend {
    /// For caches of `capacity` positions of `slots` sequences.
    pub(crate) fn new(
        slots: usize,
        capacity: usize,
        heads: Heads,
        device: &Device,
    ) -> Result<Self> {
        let shape = |last| (slots, heads.n_heads, capacity.div_ceil(ATTEND_CHUNK), last);
        Ok(Self {
            heads,
            partial: overwritten(shape(heads.head_dim), DType::F32, device)?,
            statistics: overwritten(shape(2), DType::F32, device)?,
        })
    }

    /// `out[slot]` of the running slots, from `q`, both `[slots or more, heads * head_dim]`.
    pub(crate) fn run(
        &self,
        q: &Tensor,
        cache: &LayerCache,
        state: &State,
        out: &Tensor,
    ) -> Result<()> {
        let dtype = one_dtype("decode", &[q, out, &cache.keys])?;
        let Heads {
            n_heads,
            n_kv_heads,
            head_dim,
        } = self.heads;
        let (slots, chunks) = (cache.slots()?, self.partial.dim(2)?);
        let group = n_heads / n_kv_heads;
        let together = group.next_power_of_two().min(MOST_HEADS);
        let blocks = slots * n_kv_heads * group.div_ceil(together);
        let splits = BLOCKS.div_ceil(blocks.max(1)).clamp(1, chunks);
        let elements = 16 / dtype.size_in_bytes();
        let (vectors, width) = (
            head_dim.div_ceil(elements),
            head_dim.next_multiple_of(elements),
        );
        let parts = ATTEND_THREADS / vectors;
        let floats = together * (width + ATTEND_CHUNK.max(parts * width));
        Launch::of(SOURCE, &format!("decode_attend_{together}"), q)?
            .tensor(q)?
            .tensor(&cache.keys)?
            .tensor(&cache.values)?
            .tensor(&state.0)?
            .tensor(&self.partial)?
            .tensor(&self.statistics)?
            .u32(state.slots()?)?
            .u32(n_heads)?
            .u32(n_kv_heads)?
            .u32(head_dim)?
            .u32(cache.capacity()?)?
            .u32(chunks)?
            .u32(splits)?
            .f32(1.0 / (head_dim as f32).sqrt())
            .shared(4 * floats)
            .run(
                (blocks / slots.max(1) * splits, slots),
                ATTEND_THREADS as u32,
            )?;
        let items = slots * n_heads;
        Launch::of(SOURCE, "decode_combine", q)?
            .tensor(&self.partial)?
            .tensor(&self.statistics)?
            .tensor(&state.0)?
            .tensor(out)?
            .u32(items)?
            .u32(state.slots()?)?
            .u32(n_heads)?
            .u32(head_dim)?
            .u32(chunks)?
            .run((items.div_ceil(WARPS), 1), THREADS)
    }
}
