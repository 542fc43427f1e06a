//! A decoder made ready for generation: weights repacked, adapters merged, activations in buffers
//! that are used again.

use std::sync::Arc;

use crate::{
    Decoder, EngineError, ParamId, Params,
    kernels::{
        decode_attention::attend,
        decode_linear::PackedLinear,
        decode_rows::{rms_norm, rotate, swiglu},
        host::{self, View},
        matmul::{self, Mat, MatMut, Threads},
    },
    kv_cache::{CacheShape, KvCache},
    layers::{Mlp, Projection},
};

/// One token to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Which of the pass's caches is its sequence.
    pub cache: usize,
    /// Its position there.
    pub position: usize,
    /// The token.
    pub id: u32,
    /// Whether the next token's logits are asked for.
    pub wants_logits: bool,
}

/// A decoder whose weights do not change any more.
pub(super) struct FrozenDecoder<'a> {
    pub(super) shape: CacheShape,
    pub(super) vocab: usize,
    width: usize,
    hidden: usize,
    n_heads: usize,
    eps: f64,
    embedding: View<'a>,
    blocks: Vec<FrozenBlock<'a>>,
    final_norm: View<'a>,
    head: PackedLinear,
    /// `[positions, 2 * half]`.
    angles: Arc<Vec<f32>>,
    rotary_dim: usize,
}

struct FrozenBlock<'a> {
    attention_norm: View<'a>,
    /// Queries, keys and values.
    qkv: PackedLinear,
    query_norm: Option<View<'a>>,
    key_norm: Option<View<'a>>,
    output: PackedLinear,
    mlp_norm: View<'a>,
    /// Gates and ups.
    gate_up: PackedLinear,
    down: PackedLinear,
}

/// Activations of one pass, `[rows, ...]`.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    h: Vec<f32>,
    /// `[rows that ask, vocab]`, in the order of the rows.
    pub(super) logits: Vec<f32>,
}

impl<'a> FrozenDecoder<'a> {
    /// Packs the weights of `decoder`, for sequences of at most `positions` tokens. Takes as much
    /// memory as the decoder's matrices.
    pub(super) fn new(decoder: &'a Decoder, positions: usize) -> Result<Self, EngineError> {
        let (spec, params) = (&decoder.spec, &decoder.params);
        let read = |id: ParamId| host::read("generation", params.tensor(id));
        let mut hidden = 0;
        let mut blocks = Vec::with_capacity(spec.n_layers);
        for block in &decoder.blocks {
            let Mlp::Dense(mlp) = &block.mlp else {
                unreachable!("`generate` refuses mixtures of experts from left to right")
            };
            let attention = &block.attention;
            let gate_up = pack(params, &[&mlp.gate, &mlp.up])?;
            hidden = gate_up.out() / 2;
            blocks.push(FrozenBlock {
                attention_norm: read(block.attention_norm.weight)?,
                qkv: pack(params, &attention.qkv.parts())?,
                query_norm: attention.query_norm.map(read).transpose()?,
                key_norm: attention.key_norm.map(read).transpose()?,
                output: pack(params, &[&attention.output])?,
                mlp_norm: read(block.mlp_norm.weight)?,
                gate_up,
                down: pack(params, &[&mlp.down])?,
            });
        }
        let rotary = decoder.blocks.first().map(|block| &block.attention.rotary);
        let last = positions.saturating_sub(1) as u32;
        Ok(Self {
            shape: CacheShape {
                n_layers: spec.n_layers,
                n_kv_heads: spec.n_kv_heads,
                head_dim: spec.head_dim,
            },
            vocab: spec.vocab,
            width: spec.width,
            hidden,
            n_heads: spec.n_heads,
            eps: spec.norm_eps,
            embedding: read(decoder.embedding.weight)?,
            blocks,
            final_norm: read(decoder.final_norm.weight)?,
            head: PackedLinear::new(&[&read(decoder.head.weight)?], spec.width, None),
            angles: rotary.map_or_else(Arc::default, |rotary| rotary.covering(&[last])),
            rotary_dim: spec.rope.rotary_dim,
        })
    }

    /// Reads `rows`: extends their caches and computes the logits that are asked for. Rows of one
    /// sequence stand in ascending order of their positions.
    pub(super) fn read(&self, rows: &[Row], caches: &mut [KvCache], buffers: &mut Buffers) {
        let (n, width, hidden) = (rows.len(), self.width, self.hidden);
        let head_dim = self.shape.head_dim;
        let (q, kv) = (self.n_heads * head_dim, self.shape.n_kv_heads * head_dim);
        let Buffers {
            x,
            normed,
            qkv,
            attended,
            gate_up,
            h,
            logits,
        } = buffers;
        x.clear();
        for row in rows {
            x.extend_from_slice(&self.embedding[row.id as usize * width..][..width]);
        }
        normed.resize(n * width, 0.0);
        qkv.resize(n * (q + 2 * kv), 0.0);
        attended.resize(n * q, 0.0);
        gate_up.resize(n * 2 * hidden, 0.0);
        h.resize(n * hidden, 0.0);
        for (layer, block) in self.blocks.iter().enumerate() {
            rms_norm(x, &block.attention_norm, self.eps, normed);
            block.qkv.apply(normed, qkv, false);
            let slices = qkv.chunks_exact_mut(q + 2 * kv);
            for ((row, qkv), attended) in rows.iter().zip(slices).zip(attended.chunks_exact_mut(q))
            {
                let angles = &self.angles[row.position * self.rotary_dim..][..self.rotary_dim];
                let (query, kv_pair) = qkv.split_at_mut(q);
                let (key, value) = kv_pair.split_at_mut(kv);
                rotate(
                    query,
                    block.query_norm.as_deref(),
                    self.eps,
                    head_dim,
                    angles,
                );
                rotate(key, block.key_norm.as_deref(), self.eps, head_dim, angles);
                let cache = &mut caches[row.cache];
                cache.write(layer, row.position, key, value);
                let (visible, kv_heads) = (row.position + 1, self.shape.n_kv_heads);
                attend(query, cache, layer, visible, kv_heads, head_dim, attended);
            }
            block.output.apply(attended, x, true);
            rms_norm(x, &block.mlp_norm, self.eps, normed);
            block.gate_up.apply(normed, gate_up, false);
            swiglu(gate_up, hidden, h);
            block.down.apply(h, x, true);
        }
        // The rows that ask move to the front.
        let mut asking = 0;
        for (i, row) in rows.iter().enumerate() {
            if row.wants_logits {
                x.copy_within(i * width..(i + 1) * width, asking * width);
                asking += 1;
            }
        }
        let x = &x[..asking * width];
        let normed = &mut normed[..asking * width];
        rms_norm(x, &self.final_norm, self.eps, normed);
        logits.resize(asking * self.vocab, 0.0);
        self.head.apply(normed, logits, false);
    }
}

/// Stacks projections of the same input; adapters are added to the weights they adapt.
fn pack(params: &Params, projections: &[&Projection]) -> Result<PackedLinear, EngineError> {
    let mut weights = Vec::new();
    let mut bias = Vec::new();
    let mut width = 0;
    for projection in projections {
        let plain = match projection {
            Projection::Plain(plain) => plain,
            Projection::Adapted(lora) => &lora.frozen,
        };
        let tensor = params.tensor(plain.weight);
        let (out, columns) = host::dims2("generation", tensor)?;
        width = columns;
        let mut weight = host::read("generation", tensor)?.to_vec();
        if let Projection::Adapted(lora) = projection {
            let (a, b) = (params.tensor(lora.a), params.tensor(lora.b));
            let (rank, _) = host::dims2("generation", a)?;
            let (a, b) = (host::read("generation", a)?, host::read("generation", b)?);
            matmul::matmul(
                MatMut::new(&mut weight, out, width, width),
                matmul::Into::Add,
                Mat::new(&b, out, rank, rank),
                Mat::new(&a, rank, width, width),
                lora.scale,
                Threads::All,
            );
        }
        weights.push(weight);
        if let Some(id) = plain.bias {
            bias.extend_from_slice(&host::read("generation", params.tensor(id))?);
        }
    }
    let weights: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
    let bias = (!bias.is_empty()).then_some(bias);
    Ok(PackedLinear::new(&weights, width, bias))
}
