//! Canvases to hidden states.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use t3s_core::{AttentionPattern, plan::sections::Recompute};

use super::super::cache_error;
use crate::{
    Batch, Decoder, EngineError,
    kernels::{
        buffers::{PREFILL_ROWS, PROMPT_ROWS},
        cuda::{
            attention::{self, CachedQueries},
            decode, embedding,
            memory::{overwritten, upload},
        },
    },
    layers::Save,
};

/// Neighbouring positions of a canvas.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub slot: usize,
    /// The position of the first.
    pub first: usize,
    pub ids: Vec<u32>,
    /// Those whose hidden states are asked for.
    pub asks: &'a [usize],
}

/// Reads canvases, as far as every pass has to.
pub(super) enum Reader<'a> {
    /// Their current blocks.
    Cached(Cached<'a>),
    /// All of them.
    Whole(&'a Decoder),
}

impl Reader<'_> {
    /// Reads what no pass reads again: the whole blocks that `prompts` are, from their starts on. Calls
    /// `after_pass` after every pass.
    pub(super) fn read_prompts(
        &self,
        prompts: &[Piece<'_>],
        after_pass: impl FnMut() -> std::result::Result<(), EngineError>,
    ) -> std::result::Result<(), EngineError> {
        match self {
            Self::Cached(cached) => cached.read_prompts(prompts, after_pass),
            Self::Whole(_) => Ok(()),
        }
    }

    /// Reads `pieces`; the hidden states before the head that they ask for go to the first rows of `to`,
    /// `[rows, width]`, in their order.
    pub(super) fn read(
        &self,
        pieces: &[Piece<'_>],
        to: &Tensor,
    ) -> std::result::Result<(), EngineError> {
        let most = match self {
            Self::Cached(cached) => cached.rows,
            Self::Whole(_) => PREFILL_ROWS,
        };
        let (mut left, mut written) = (pieces, 0);
        while !left.is_empty() {
            // As many as fit into a pass; a longer canvas is one of its own.
            let mut rows = 0;
            let mut fits = |piece: &&Piece<'_>| {
                rows += piece.ids.len();
                rows <= most
            };
            let n = left.iter().take_while(&mut fits).count();
            let (pass, rest) = left.split_at(n.max(1));
            let hidden = match self {
                Self::Cached(cached) => cached.read(pass, cached.rows)?,
                Self::Whole(decoder) => read_whole(decoder, pass)?,
            };
            gather(&hidden, pass, to, &mut written)?;
            left = rest;
        }
        Ok(())
    }
}

/// Copies the rows of `hidden` that `pieces`, which stand there one after the other, ask for to the rows
/// of `to` from `written` on.
fn gather(hidden: &Tensor, pieces: &[Piece<'_>], to: &Tensor, written: &mut usize) -> Result<()> {
    let (mut rows, mut before) = (Vec::new(), 0);
    for piece in pieces {
        let row = |position: &usize| (before + position - piece.first) as u32;
        rows.extend(piece.asks.iter().map(row));
        before += piece.ids.len();
    }
    if rows.is_empty() {
        return Ok(());
    }
    let to = to.narrow(0, *written, rows.len())?;
    *written += rows.len();
    embedding::forward_into(hidden, &upload(&rows, hidden.device())?, &to)
}

/// Hidden states of whole canvases, `[rows, width]`.
fn read_whole(
    decoder: &Decoder,
    canvases: &[Piece<'_>],
) -> std::result::Result<Tensor, EngineError> {
    let (mut ids, mut positions, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
    for canvas in canvases {
        ids.extend_from_slice(&canvas.ids);
        positions.extend(0..canvas.ids.len() as u32);
        offsets.push(ids.len() as u32);
    }
    let batch = Batch {
        positions: Arc::new(positions),
        offsets: Arc::new(offsets),
        attention: AttentionPattern::Bidirectional,
    };
    let (hidden, _) = decoder.forward(&ids, &batch, Recompute::None, Save::Nothing)?;
    Ok(hidden)
}

/// Reads canvases block by block: keys and values of what has been read are kept.
///
/// Every matrix product has a fixed number of rows, filled or not, as for decoding left to right. There are
/// no more of them than a GPU needs for a good part of its speed: who writes alone waits for few others.
pub(super) struct Cached<'a> {
    decoder: &'a Decoder,
    block: u32,
    /// Positions per slot.
    capacity: usize,
    /// Rows of a pass over current blocks.
    rows: usize,
    layers: Vec<LayerCache>,
}

/// Keys and values of a layer, `[slots * capacity, kv_heads * head_dim]` each.
struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

impl<'a> Cached<'a> {
    /// Room for `capacity` positions of `slots` canvases, of whose blocks a pass reads `rows` rows, at least
    /// a block.
    pub(super) fn new(
        decoder: &'a Decoder,
        block: u32,
        slots: usize,
        capacity: usize,
        rows: usize,
    ) -> std::result::Result<Self, EngineError> {
        let spec = &decoder.spec;
        let (dtype, device) = place(decoder);
        let shape = (slots * capacity, spec.n_kv_heads * spec.head_dim);
        // Nothing reads a position before it is written.
        let layer = |_| {
            Ok(LayerCache {
                keys: overwritten(shape, dtype, device)?,
                values: overwritten(shape, dtype, device)?,
            })
        };
        let layers = (0..spec.n_layers).map(layer).collect::<Result<_>>();
        let layers = layers.map_err(|error| cache_error(error, spec, dtype, (slots, capacity)))?;
        Ok(Self {
            decoder,
            block,
            capacity,
            rows,
            layers,
        })
    }

    /// See [`Reader::read_prompts`]: as many blocks at a time as fit into a pass.
    fn read_prompts(
        &self,
        prompts: &[Piece<'_>],
        mut after_pass: impl FnMut() -> std::result::Result<(), EngineError>,
    ) -> std::result::Result<(), EngineError> {
        let block = self.block as usize;
        let rows = product_rows(block);
        let mut pass: Vec<Piece<'_>> = Vec::new();
        let mut room = rows;
        let mut read = |pass: &mut Vec<Piece<'_>>| {
            self.read(pass, rows)?;
            pass.clear();
            after_pass()
        };
        for prompt in prompts {
            let mut first = 0;
            while first < prompt.ids.len() {
                let n = (room / block * block).min(prompt.ids.len() - first);
                if n == 0 {
                    read(&mut pass)?;
                    room = rows;
                    continue;
                }
                pass.push(Piece {
                    slot: prompt.slot,
                    first,
                    ids: prompt.ids[first..first + n].to_vec(),
                    asks: &[],
                });
                first += n;
                room -= n;
            }
        }
        match pass.is_empty() {
            true => Ok(()),
            false => read(&mut pass),
        }
    }

    /// Reads `pieces`, whole blocks of different slots, everything before which has been read: their keys
    /// and values replace those in the cache. Returns their hidden states before the head, `[rows,
    /// width]`; the rows past them mean nothing.
    fn read(&self, pieces: &[Piece<'_>], rows: usize) -> std::result::Result<Tensor, EngineError> {
        let (mut ids, mut positions) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        let (mut places, mut queries) = (Vec::new(), Vec::new());
        for piece in pieces {
            let example = piece.slot * self.capacity;
            queries.push(CachedQueries {
                example,
                rows: piece.first..piece.first + piece.ids.len(),
                first: ids.len(),
            });
            for (position, id) in (piece.first..).zip(&piece.ids) {
                places.extend([ids.len(), example + position].map(|n| n as u32));
                positions.push(position as u32);
                ids.push(*id);
            }
        }
        let n = ids.len();
        ids.resize(rows, 0);
        positions.resize(rows, 0);
        let attention = AttentionPattern::BlockCausal { block: self.block };
        let batch = Batch {
            positions: Arc::new(positions),
            offsets: Arc::new(vec![0, rows as u32]),
            attention,
        };
        let places = upload(&places, place(self.decoder).1)?.reshape((n, 2))?;
        self.decoder.forward_attending(&ids, &batch, |layer, qkv| {
            let LayerCache { keys, values } = &self.layers[layer];
            decode::place(&qkv.k, &places, keys)?;
            decode::place(&qkv.v, &places, values)?;
            let heads = self.decoder.blocks[layer].attention.heads;
            attention::forward_cached([&qkv.q, keys, values], heads, &queries, attention)
        })
    }
}

/// Rows of a matrix product that has any number of blocks of `block` rows to read.
pub(super) fn product_rows(block: usize) -> usize {
    PROMPT_ROWS.max(block)
}

/// The type and the device that `decoder` computes in.
pub(super) fn place(decoder: &Decoder) -> (DType, &Device) {
    let embedding = decoder.params.tensor(decoder.embedding.weight);
    (embedding.dtype(), embedding.device())
}
