//! A decoder made ready for decoding on its device: adapters merged, projections of one input stacked.

use candle_core::{DType, Result, Tensor};

use crate::{
    Decoder, ParamId, Params,
    kernels::{
        Into,
        attention::Heads,
        cuda::{
            decode::Rotation,
            gemm::{Matrix, gemm},
            memory::{overwritten, zeros},
            residual, rms_norm, rotary, swiglu,
        },
    },
    layers::{Mlp, Projection},
};

/// A decoder whose weights do not change any more, in the model's type.
///
/// Adapters are merged once, in f32, and the sum is rounded to the model's type: a step then costs no
/// more than without, and prompts and answers are read by the same weights. Stacked and merged matrices
/// are copies (queries, keys, values, gates and ups: more than half of a block); all others are the
/// decoder's own.
pub(super) struct Frozen {
    pub(super) embedding: Tensor,
    pub(super) blocks: Vec<FrozenBlock>,
    pub(super) final_norm: Tensor,
    pub(super) head: FrozenLinear,
    pub(super) heads: Heads,
    pub(super) eps: f64,
    /// Flat `[positions, rotary_dim]`, f32.
    angles: Tensor,
    rotary_dim: usize,
}

pub(super) struct FrozenBlock {
    attention_norm: Tensor,
    /// Queries, keys and values.
    qkv: FrozenLinear,
    query_norm: Option<Tensor>,
    key_norm: Option<Tensor>,
    output: FrozenLinear,
    mlp_norm: Tensor,
    /// Gates and ups.
    gate_up: FrozenLinear,
    down: FrozenLinear,
}

/// A matrix `[out, in]` with its bias.
pub(super) struct FrozenLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl FrozenLinear {
    /// `y (+)= x W^T + b`, in products of `rows` rows each: cuBLAS chooses its kernel by the shape, so
    /// that rows computed in products of one shape do not depend on how many stand beside them.
    pub(super) fn apply(&self, x: &Tensor, y: &Tensor, into: Into, rows: usize) -> Result<()> {
        let n = x.dim(0)?;
        for start in (0..n).step_by(rows) {
            let len = rows.min(n - start);
            let (x, y) = (x.narrow(0, start, len)?, y.narrow(0, start, len)?);
            let weight = Matrix::new(&self.weight)?.t();
            gemm("linear", &y, into, Matrix::new(&x)?, weight, 1.0)?;
        }
        match &self.bias {
            Some(bias) => residual::add_bias(y, bias),
            None => Ok(()),
        }
    }
}

/// Activations of some rows, `[rows, ...]`; written again and again.
pub(super) struct Activations {
    pub(super) x: Tensor,
    pub(super) normed: Tensor,
    pub(super) qkv: Tensor,
    pub(super) q: Tensor,
    pub(super) attended: Tensor,
    gate_up: Tensor,
    hidden: Tensor,
}

impl Frozen {
    /// Merges and stacks the weights of `decoder`, for sequences of at most `positions` tokens.
    pub(super) fn new(decoder: &Decoder, positions: usize) -> Result<Self> {
        let (spec, params) = (&decoder.spec, &decoder.params);
        rotary::check_head(spec.head_dim)?;
        let own = |id: ParamId| params.tensor(id).clone();
        let embedding = own(decoder.embedding.weight);
        let mut blocks = Vec::with_capacity(spec.n_layers);
        for block in &decoder.blocks {
            let Mlp::Dense(mlp) = &block.mlp else {
                unreachable!("`generate` refuses mixtures of experts from left to right")
            };
            let attention = &block.attention;
            blocks.push(FrozenBlock {
                attention_norm: own(block.attention_norm.weight),
                qkv: stack(params, &attention.qkv.parts())?,
                query_norm: attention.query_norm.map(own),
                key_norm: attention.key_norm.map(own),
                output: stack(params, &[&attention.output])?,
                mlp_norm: own(block.mlp_norm.weight),
                gate_up: stack(params, &[&mlp.gate, &mlp.up])?,
                down: stack(params, &[&mlp.down])?,
            });
        }
        let last = positions.saturating_sub(1) as u32;
        let device = embedding.device();
        let angles = match decoder.blocks.first() {
            Some(block) => rotary::angles(&block.attention.rotary, &[last], device)?,
            None => zeros(1, DType::F32, device)?,
        };
        Ok(Self {
            blocks,
            final_norm: own(decoder.final_norm.weight),
            head: FrozenLinear {
                weight: own(decoder.head.weight),
                bias: None,
            },
            heads: Heads {
                n_heads: spec.n_heads,
                n_kv_heads: spec.n_kv_heads,
                head_dim: spec.head_dim,
            },
            eps: spec.norm_eps,
            angles,
            rotary_dim: spec.rope.rotary_dim,
            embedding,
        })
    }

    /// Room for `rows` rows. Zeros where not every row is written before it is read.
    pub(super) fn activations(&self, rows: usize) -> Result<Activations> {
        let (dtype, device) = (self.embedding.dtype(), self.embedding.device());
        let width = self.embedding.dim(1)?;
        let (q, kv) = (self.heads.width(), self.heads.kv_width());
        let gate_up = match self.blocks.first() {
            Some(block) => block.gate_up.weight.dim(0)?,
            None => 0,
        };
        let blank = |columns: usize| zeros((rows, columns), dtype, device);
        let new = |columns: usize| overwritten((rows, columns), dtype, device);
        Ok(Activations {
            x: blank(width)?,
            normed: new(width)?,
            qkv: new(q + 2 * kv)?,
            q: blank(q)?,
            attended: blank(q)?,
            gate_up: new(gate_up)?,
            hidden: new(gate_up / 2)?,
        })
    }

    /// Takes `a.x` through all blocks, in products of `rows` rows. `attend` makes `a.attended` of
    /// `a.qkv` in the layer of that number.
    pub(super) fn run_blocks(
        &self,
        a: &Activations,
        rows: usize,
        mut attend: impl FnMut(usize, Rotation<'_>) -> Result<()>,
    ) -> Result<()> {
        for (layer, block) in self.blocks.iter().enumerate() {
            rms_norm::forward_into(&a.x, &block.attention_norm, self.eps, &a.normed)?;
            block.qkv.apply(&a.normed, &a.qkv, Into::Overwrite, rows)?;
            let rotation = Rotation {
                query_norm: block.query_norm.as_ref(),
                key_norm: block.key_norm.as_ref(),
                eps: self.eps,
                angles: &self.angles,
                rotary_dim: self.rotary_dim,
                heads: self.heads,
            };
            attend(layer, rotation)?;
            block.output.apply(&a.attended, &a.x, Into::Add, rows)?;
            rms_norm::forward_into(&a.x, &block.mlp_norm, self.eps, &a.normed)?;
            block
                .gate_up
                .apply(&a.normed, &a.gate_up, Into::Overwrite, rows)?;
            swiglu::side_by_side(&a.gate_up, &a.hidden)?;
            block.down.apply(&a.hidden, &a.x, Into::Add, rows)?;
        }
        Ok(())
    }
}

/// Stacks projections of the same input; adapters are added to the weights they adapt.
fn stack(params: &Params, projections: &[&Projection]) -> Result<FrozenLinear> {
    let (mut weights, mut biases) = (Vec::new(), Vec::new());
    for projection in projections {
        let plain = match projection {
            Projection::Plain(plain) => plain,
            Projection::Adapted(lora) => &lora.frozen,
        };
        let weight = params.tensor(plain.weight);
        weights.push(match projection {
            Projection::Plain(_) => weight.clone(),
            Projection::Adapted(lora) => {
                let wide = |id: ParamId| params.tensor(id).to_dtype(DType::F32);
                let (a, b) = (wide(lora.a)?, wide(lora.b)?);
                // A copy even of what is f32 already: the decoder keeps its own.
                let sum = weight.to_dtype(DType::F32)?.copy()?;
                let (low, high) = (Matrix::new(&b)?, Matrix::new(&a)?);
                gemm("lora", &sum, Into::Add, low, high, lora.scale)?;
                sum.to_dtype(weight.dtype())?
            }
        });
        biases.extend(plain.bias.map(|id| params.tensor(id).clone()));
    }
    let one = |mut tensors: Vec<Tensor>| match tensors.len() {
        1 => Ok(tensors.remove(0)),
        _ => Tensor::cat(&tensors, 0)?.contiguous(),
    };
    let bias = match biases.len() {
        0 => None,
        n if n == projections.len() => Some(one(biases)?),
        n => candle_core::bail!("{n} of {} projections have a bias", projections.len()),
    };
    Ok(FrozenLinear {
        weight: one(weights)?,
        bias,
    })
}
