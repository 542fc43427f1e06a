//! The decoder: embedding, blocks, final norm, head.

use std::sync::Arc;

use candle_core::Tensor;
use t3s_core::{
    DecoderSpec,
    decoder_spec::{LayerMlp, MoeNames, MoeSpec, TensorNames, TensorRole},
    plan::sections::{LoraPlan, Recompute},
};

use crate::{
    batch::Batch,
    error::EngineError,
    grads::Grads,
    kernels::{
        self,
        attention::Heads,
        cross_entropy::{HeadOutput, HeadRow, SketchSpec},
        rotary::RotaryTable,
        routing::Choice,
    },
    layers::{
        Attention, Block, Context, Embedding, Experts, Grouped, Head, Layer, Linear, Lora, Mlp,
        Projection, QkvProjection, RmsNorm, Routes, Save, Saved, SwiGlu, attention::Qkv, lora,
    },
    params::{ParamId, Params},
};

/// A model: its description, its weights, and the layers that compute with them.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Geometry and tensor names.
    pub spec: DecoderSpec,
    /// The weights.
    pub params: Params,
    /// Ids to vectors.
    pub embedding: Embedding,
    /// The blocks, in order.
    pub blocks: Vec<Block>,
    /// The norm before the head.
    pub final_norm: RmsNorm,
    /// The projection to the vocabulary.
    pub head: Head,
    /// Where the choice of experts is held fixed, as differences of the loss need it.
    pub routes: Option<Arc<Routes>>,
}

/// What a forward pass kept for its backward pass.
#[derive(Debug, Default)]
pub struct Tape {
    ids: Vec<u32>,
    segments: Vec<Segment>,
    blocks_per_segment: usize,
    final_norm: Saved,
}

/// Some neighbouring blocks.
#[derive(Debug)]
enum Segment {
    /// Everything their backward passes need.
    Kept(Vec<Saved>),
    /// Only what went into the first; the rest is computed again.
    Input(Tensor),
}

impl Decoder {
    /// Builds the layers of `spec` over `params`, found by name. With `lora`, only adapter tensors
    /// learn (they must be there: [`lora::attach`] makes them).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape (both named), or the plan adapts nothing.
    pub fn new(
        spec: DecoderSpec,
        mut params: Params,
        lora: Option<&LoraPlan>,
    ) -> Result<Self, EngineError> {
        if let Some(plan) = lora {
            lora::check_plan(&spec, plan)?;
            freeze_all_but_adapters(&mut params);
        }
        freeze_constants(&spec, &mut params);
        let layers = Layers {
            spec: &spec,
            params: &params,
            lora,
            rotary: Arc::new(RotaryTable::new(&spec.rope)),
        };
        layers.check_spec()?;
        let embedding = Embedding {
            weight: layers.find(&spec.names.embedding, &[spec.vocab, spec.width])?,
        };
        let blocks = (0..spec.n_layers)
            .map(|layer| layers.block(layer))
            .collect::<Result<_, _>>()?;
        let final_norm = layers.norm(&spec.names.final_norm, 0)?;
        let head = Head {
            weight: match spec.tied_head {
                true => embedding.weight,
                false => layers.find(&spec.names.head, &[spec.vocab, spec.width])?,
            },
        };
        Ok(Self {
            embedding,
            blocks,
            final_norm,
            head,
            routes: None,
            spec,
            params,
        })
    }

    /// The hidden states before the head (after the final norm), `[rows, width]`, and what
    /// [`Decoder::backward`] needs when `save` says so.
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or ids, positions and offsets disagree.
    pub fn forward(
        &self,
        ids: &[u32],
        batch: &Batch,
        recompute: Recompute,
        save: Save,
    ) -> Result<(Tensor, Tape), EngineError> {
        self.check(ids, batch)?;
        let cx = self.context(batch);
        let mut x = self.embedding.forward(&self.params, ids)?;
        let mut segments = Vec::new();
        let (blocks_per_segment, save_inside) = match (save, recompute) {
            (Save::Nothing, _) => (1, Save::Nothing),
            (Save::ForBackward, Recompute::None) => (1, Save::ForBackward),
            (Save::ForBackward, Recompute::Block) => (1, Save::Nothing),
            (Save::ForBackward, Recompute::Every(n)) => (n.max(1), Save::Nothing),
        };
        for blocks in self.blocks.chunks(blocks_per_segment) {
            let (y, kept) = run_blocks(blocks, &cx, &x, save_inside)?;
            if save == Save::ForBackward {
                segments.push(match save_inside {
                    Save::ForBackward => Segment::Kept(kept),
                    Save::Nothing => Segment::Input(x),
                });
            }
            x = y;
        }
        let (hidden, final_norm) = self.final_norm.forward(&cx, &x, save)?;
        let ids = match save {
            Save::ForBackward => ids.to_vec(),
            Save::Nothing => Vec::new(),
        };
        let tape = Tape {
            ids,
            segments,
            blocks_per_segment,
            final_norm,
        };
        Ok((hidden, tape))
    }

    /// The hidden states before the head of rows whose keys and values `attend` puts among others, block
    /// by block: see [`Block::forward_attending`]. The batch's pattern is not read.
    ///
    /// # Errors
    /// As [`Decoder::forward`], and what `attend` returns.
    pub(crate) fn forward_attending(
        &self,
        ids: &[u32],
        batch: &Batch,
        mut attend: impl FnMut(usize, &Qkv) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor, EngineError> {
        self.check(ids, batch)?;
        let cx = self.context(batch);
        let mut x = self.embedding.forward(&self.params, ids)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward_attending(&cx, &x, |qkv| attend(layer, qkv))?;
        }
        let (hidden, _) = self.final_norm.forward(&cx, &x, Save::Nothing)?;
        Ok(hidden)
    }

    /// Adds the gradient of every trainable parameter below the head into `grads`, from that of the
    /// hidden states, `[rows, width]`.
    ///
    /// # Errors
    /// When the tape is of another batch or was not kept.
    pub fn backward(
        &self,
        d_hidden: Tensor,
        tape: Tape,
        batch: &Batch,
        grads: &mut Grads,
    ) -> Result<(), EngineError> {
        if tape.ids.len() != batch.n_rows() {
            return Err(EngineError::Batch {
                message: format!(
                    "the tape holds {} rows, the batch {}; run forward with Save::ForBackward",
                    tape.ids.len(),
                    batch.n_rows()
                ),
            });
        }
        let cx = self.context(batch);
        let mut dx = self
            .final_norm
            .backward(&cx, &d_hidden, tape.final_norm, grads)?;
        drop(d_hidden);
        let blocks = self.blocks.chunks(tape.blocks_per_segment.max(1));
        for (blocks, segment) in blocks.zip(tape.segments).rev() {
            let kept = match segment {
                Segment::Kept(kept) => kept,
                Segment::Input(x) => run_blocks(blocks, &cx, &x, Save::ForBackward)?.1,
            };
            for (block, saved) in blocks.iter().zip(kept).rev() {
                dx = block.backward(&cx, &dx, saved, grads)?;
            }
        }
        self.embedding
            .backward(&self.params, &dx, &tape.ids, grads)?;
        Ok(())
    }

    /// Logits of `hidden`, `[rows, vocab]`: for tests and generation.
    ///
    /// # Errors
    /// When the width is not the model's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, EngineError> {
        Ok(self.head.logits(&self.params, hidden)?)
    }

    /// Statistics of `rows` of the hidden states, without gradients.
    ///
    /// # Errors
    /// When rows are not ascending, or a row or target does not exist.
    pub fn head_forward(
        &self,
        hidden: &Tensor,
        rows: &[HeadRow],
        sketch: Option<SketchSpec>,
    ) -> Result<HeadOutput, EngineError> {
        Ok(self.head.forward(&self.params, hidden, rows, sketch)?)
    }

    /// Statistics and gradients of `sum over rows of -coefficient * logp`: returns that of the
    /// hidden states, `[rows of hidden, width]`, and adds the head's own into `grads` (into the
    /// embedding's slot when tied).
    ///
    /// # Errors
    /// When rows are not ascending, or a row or target does not exist.
    pub fn head_forward_backward(
        &self,
        hidden: &Tensor,
        rows: &[HeadRow],
        sketch: Option<SketchSpec>,
        grads: &mut Grads,
    ) -> Result<(HeadOutput, Tensor), EngineError> {
        let (pending, d_hidden) =
            self.head
                .forward_backward(&self.params, hidden, rows, sketch, grads)?;
        Ok((pending.read()?, d_hidden))
    }

    /// What layers read besides their input.
    pub fn context<'a>(&'a self, batch: &'a Batch) -> Context<'a> {
        Context {
            params: &self.params,
            batch,
            routes: self.routes.as_deref(),
        }
    }

    fn check(&self, ids: &[u32], batch: &Batch) -> Result<(), EngineError> {
        let malformed = |message: String| Err(EngineError::Batch { message });
        if ids.len() != batch.n_rows() {
            return malformed(format!("{} ids, {} positions", ids.len(), batch.n_rows()));
        }
        let covers = batch.offsets.first() == Some(&0)
            && batch.offsets.last().map(|end| *end as usize) == Some(ids.len())
            && batch.offsets.is_sorted();
        if !covers {
            return malformed(format!(
                "offsets are not an ascending cover of {} rows",
                ids.len()
            ));
        }
        let vocab = self.spec.vocab;
        match ids.iter().position(|id| *id as usize >= vocab) {
            None => Ok(()),
            Some(row) => Err(EngineError::TokenId {
                row,
                id: ids[row],
                vocab,
            }),
        }
    }
}

/// Runs `blocks` one after the other.
fn run_blocks(
    blocks: &[Block],
    cx: &Context<'_>,
    x: &Tensor,
    save: Save,
) -> candle_core::Result<(Tensor, Vec<Saved>)> {
    let mut kept = Vec::with_capacity(blocks.len());
    let mut x = x.clone();
    for block in blocks {
        let (y, saved) = block.forward(cx, &x, save)?;
        kept.push(saved);
        x = y;
    }
    Ok((x, kept))
}

/// What is read and never learned has no gradient and no optimiser state.
fn freeze_constants(spec: &DecoderSpec, params: &mut Params) {
    for tensor in spec.tensors() {
        if tensor.role == TensorRole::Constant
            && let Some(id) = params.id(&tensor.name)
        {
            params.set_trainable(id, false);
        }
    }
}

fn freeze_all_but_adapters(params: &mut Params) {
    let ids: Vec<(ParamId, bool)> = params
        .iter()
        .map(|(id, param)| (id, param.name.contains(".lora_")))
        .collect();
    for (id, learns) in ids {
        params.set_trainable(id, learns);
    }
}

/// Finds the tensors of each layer.
struct Layers<'a> {
    spec: &'a DecoderSpec,
    params: &'a Params,
    lora: Option<&'a LoraPlan>,
    rotary: Arc<RotaryTable>,
}

impl Layers<'_> {
    fn check_spec(&self) -> Result<(), EngineError> {
        let spec = self.spec;
        let refuse = |key: &str, message: String| {
            Err(EngineError::Spec {
                key: key.to_owned(),
                message,
            })
        };
        if spec.n_kv_heads == 0 || !spec.n_heads.is_multiple_of(spec.n_kv_heads) {
            let (heads, kv) = (spec.n_heads, spec.n_kv_heads);
            return refuse("n_kv_heads", format!("{kv} does not divide {heads} heads"));
        }
        let rotary = spec.rope.rotary_dim;
        if rotary > spec.head_dim || !rotary.is_multiple_of(2) {
            let dim = spec.head_dim;
            return refuse(
                "rope.rotary_dim",
                format!("{rotary}; write an even number up to the head's {dim}"),
            );
        }
        for (key, size) in [
            ("vocab", spec.vocab),
            ("width", spec.width),
            ("head_dim", spec.head_dim),
        ] {
            if size == 0 {
                return refuse(key, "0; sizes are at least 1".into());
            }
        }
        Ok(())
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<ParamId, EngineError> {
        let id = self
            .params
            .id(name)
            .ok_or_else(|| EngineError::MissingTensor {
                tensor: name.to_owned(),
                hint: if name.contains(".lora_") {
                    "attach or load the adapter before building the decoder".to_owned()
                } else {
                    "the checkpoint is incomplete or of another model family".to_owned()
                },
            })?;
        let tensor = self.params.tensor(id);
        if tensor.dims() != shape {
            return Err(EngineError::Shape {
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.dims().to_vec(),
            });
        }
        if !kernels::compute_in_its_type(tensor) {
            return Err(EngineError::Spec {
                key: name.to_owned(),
                message: format!(
                    "{:?}; a CPU computes in F32, a GPU in F32 or BF16: convert it",
                    tensor.dtype()
                ),
            });
        }
        Ok(id)
    }

    fn norm(&self, template: &str, layer: usize) -> Result<RmsNorm, EngineError> {
        let name = TensorNames::at(template, layer);
        Ok(RmsNorm {
            weight: self.find(&name, &[self.spec.width])?,
            eps: self.spec.norm_eps,
        })
    }

    fn projection(
        &self,
        template: &str,
        layer: usize,
        (out, width): (usize, usize),
        has_bias: bool,
    ) -> Result<Projection, EngineError> {
        let name = TensorNames::at(template, layer);
        let weight = self.find(&name, &[out, width])?;
        let bias = match has_bias {
            true => Some(self.find(&TensorNames::bias(&name), &[out])?),
            false => None,
        };
        let plain = Linear { weight, bias };
        let Some(plan) = self.lora.filter(|plan| lora::is_target(plan, &name)) else {
            return Ok(Projection::Plain(plain));
        };
        let (a, b) = (
            lora::adapter_name(&name, "lora_A"),
            lora::adapter_name(&name, "lora_B"),
        );
        Ok(Projection::Adapted(Lora {
            frozen: plain,
            a: self.find(&a, &[plan.rank, width])?,
            b: self.find(&b, &[out, plan.rank])?,
            scale: (plan.alpha / plan.rank as f64) as f32,
        }))
    }

    fn block(&self, layer: usize) -> Result<Block, EngineError> {
        let (spec, names) = (self.spec, &self.spec.names);
        let (width, dim) = (spec.width, spec.head_dim);
        let (q, kv) = (spec.n_heads * dim, spec.n_kv_heads * dim);
        let head_norm = |template: &str| match spec.qk_norm {
            true => self
                .find(&TensorNames::at(template, layer), &[dim])
                .map(Some),
            false => Ok(None),
        };
        let attention_norm = self.norm(&names.attention_norm, layer)?;
        let project = |name, out| self.projection(name, layer, (out, width), spec.qkv_bias);
        let qkv = match spec.fused_qkv() {
            true => QkvProjection::Fused(project(&names.query, q + 2 * kv)?),
            false => QkvProjection::Apart([
                project(&names.query, q)?,
                project(&names.key, kv)?,
                project(&names.value, kv)?,
            ]),
        };
        Ok(Block {
            attention_norm,
            attention: Attention {
                qkv,
                output: self.projection(&names.output, layer, (width, q), false)?,
                query_norm: head_norm(&names.query_norm)?,
                key_norm: head_norm(&names.key_norm)?,
                norm_eps: spec.norm_eps,
                heads: Heads {
                    n_heads: spec.n_heads,
                    n_kv_heads: spec.n_kv_heads,
                    head_dim: dim,
                },
                rotary: self.rotary.clone(),
            },
            mlp_norm: self.norm(&names.mlp_norm, layer)?,
            mlp: match spec.mlp.at(layer) {
                LayerMlp::Dense { hidden } => {
                    let parts = [&names.gate, &names.up, &names.down];
                    Mlp::Dense(self.swiglu(parts, layer, hidden)?)
                }
                LayerMlp::Experts(moe) => Mlp::Experts(self.experts(moe, layer)?),
            },
        })
    }

    fn swiglu(
        &self,
        [gate, up, down]: [&String; 3],
        layer: usize,
        hidden: usize,
    ) -> Result<SwiGlu, EngineError> {
        let width = self.spec.width;
        Ok(SwiGlu {
            gate: self.projection(gate, layer, (hidden, width), false)?,
            up: self.projection(up, layer, (hidden, width), false)?,
            down: self.projection(down, layer, (width, hidden), false)?,
        })
    }

    fn experts(&self, moe: &MoeSpec, layer: usize) -> Result<Experts, EngineError> {
        let (width, names) = (self.spec.width, &moe.names);
        let find = |name: &str, shape: &[usize]| self.find(&TensorNames::at(name, layer), shape);
        let grouped = |name: &str, shape| {
            let project = |e| self.projection(&MoeNames::expert(name, e), layer, shape, false);
            let experts = (0..moe.n_experts).map(project);
            Ok::<_, EngineError>(Grouped(experts.collect::<Result<_, _>>()?))
        };
        let shared = [&names.shared_gate, &names.shared_up, &names.shared_down];
        Ok(Experts {
            router: find(&names.router, &[moe.n_experts, width])?,
            choice_bias: match &names.choice_bias {
                Some(name) => Some(find(name, &[moe.n_experts])?),
                None => None,
            },
            choice: Choice {
                n_chosen: moe.n_chosen,
                n_groups: moe.n_groups,
                n_groups_kept: moe.n_groups_kept,
                normalise: moe.normalise,
                scale: moe.scale as f32,
            },
            gate: grouped(&names.gate, (moe.hidden, width))?,
            up: grouped(&names.up, (moe.hidden, width))?,
            down: grouped(&names.down, (width, moe.hidden))?,
            shared: match moe.shared_hidden {
                0 => None,
                hidden => Some(self.swiglu(shared, layer, hidden)?),
            },
        })
    }
}
