//! The check before the first step: does every tensor that learns get a gradient, and is it the
//! gradient of this loss.
//!
//! A detached operation (a fused kernel without a backward pass, a copy that autograd does not see)
//! leaves gradients that are there, finite and far off wherever a residual path leads around it. So
//! besides being present each gradient is held against the loss itself: along the direction `u` of
//! the gradient of a group of tensors the loss has to change at the rate `<gradient, u> = |gradient|`.
//!
//! Such a slope is measured in f32: in bfloat16 it would be rounded away. Weights in bfloat16 are copied
//! for it, and of a model too large for that the first and the last blocks are, which then are the
//! model: blocks differ in their weights, not in their operations. That every tensor of the whole model
//! gets a gradient is seen in bfloat16 there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use candle_core::{DType, Tensor};
use t3s_core::{DecoderSpec, Draw, Example, ModelBatch, decoder_spec::TensorRole};

use super::Trainer;
use crate::{
    accumulate::{Accumulation, Part, loss_alone, loss_and_gradients},
    error::EngineError,
    grads::Grads,
    kernels::gradients,
    layers::{Mlp, lora},
    params::ParamId,
    score::PackedExamples,
};

/// Tokens that the check reads at most, a first long example aside.
pub const CHECKED_TOKENS: u64 = 256;
/// Weights that are copied at most; of larger models some blocks are.
const MOST_COPIED: usize = 1 << 30;
/// Blocks that stand for a large model, at each end.
const BLOCKS_AT_AN_END: usize = 2;
/// Changes of the loss, nats, that are tried until one shows the slope: large enough to stand out
/// from the rounding of an f32 forward pass, small enough to be straight.
const CHANGES: [f64; 3] = [1e-3, 1e-2, 1e-4];
/// Below this loss, nats, the same shares of it are tried too: an f32 log-probability near 0 is exact
/// to its own size.
const SMALL_LOSS: f64 = 0.1;
/// Largest relative error of a slope.
const TOLERANCE: f64 = 0.05;
/// What `B` of a fresh LoRA adapter is lent for the check: with `B = 0` the gradient of `A` is zero.
const LENT_B: f32 = 1e-2;

/// One group of tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupCheck {
    /// E.g. `attention`.
    pub group: &'static str,
    /// How many tensors.
    pub tensors: usize,
    /// The norm of its gradient: the slope that backward claims.
    pub claimed: f64,
    /// The slope of the loss, by central differences.
    pub measured: f64,
}

/// What the check saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GradientReport {
    /// Every group with something that learns.
    pub groups: Vec<GroupCheck>,
    /// The blocks that slopes were measured with, counted from 0: all, but for large models.
    pub blocks: Vec<usize>,
}

/// The blocks that slopes are measured with: all of them where the weights are f32, which needs no copy,
/// or a copy in f32 is small enough; else the first and the last few.
pub(crate) fn checked_blocks(spec: &DecoderSpec, dtype: DType) -> Vec<usize> {
    match dtype == DType::F32 || spec.n_parameters() <= MOST_COPIED {
        true => (0..spec.n_layers).collect(),
        false => ends(spec.n_layers),
    }
}

/// The first and the last few of `n` blocks.
fn ends(n: usize) -> Vec<usize> {
    let is_end = |block: &usize| *block < BLOCKS_AT_AN_END || *block + BLOCKS_AT_AN_END >= n;
    (0..n).filter(is_end).collect()
}

impl Trainer {
    /// Runs one real backward pass on a few examples and compares it with the loss. The weights are
    /// afterwards, bit for bit, what they were. Of a model in bfloat16 with more than 2^30 weights the
    /// slopes are those of its first two and last two blocks, between embedding and head.
    ///
    /// # Errors
    /// Names the first tensor that gets no gradient, or the group whose gradient is not that of the
    /// loss.
    pub fn check_gradients(&mut self) -> Result<GradientReport, EngineError> {
        let examples = self.few_examples()?;
        if examples.is_empty() {
            // Nothing that the selection keeps: there is no loss to differentiate.
            return Ok(GradientReport::default());
        }
        let dtype = self.decoder.params.tensor(self.decoder.head.weight).dtype();
        let blocks = checked_blocks(&self.decoder.spec, dtype);
        self.check_with(blocks, &examples)
            .map_err(|error| match error {
                EngineError::NotFinite { what } => EngineError::NotFinite {
                    what: format!("{what}, before step 1,"),
                },
                error => error,
            })
    }

    /// The check with slopes of `blocks`, ascending; puts everything back.
    fn check_with(
        &mut self,
        blocks: Vec<usize>,
        examples: &[Example],
    ) -> Result<GradientReport, EngineError> {
        let left_out = self.left_out(&blocks);
        let before = (self.decoder.params.clone(), self.decoder.blocks.clone());
        self.decoder.routes = Some(Arc::default());
        let report = self.lend_b().and_then(|()| {
            if !left_out.is_empty() {
                let mut grads = Grads::new(&self.decoder.params);
                self.loss(examples, &mut grads)?;
                self.expect_gradients(&grads)?;
                drop(grads);
                self.leave_out(&left_out, &blocks);
            }
            // In f32: what a slope is measured by would be rounded away in bfloat16.
            let params = &mut self.decoder.params;
            params.cast(DType::F32, |param| !left_out.contains(&param.name))?;
            self.check(examples)
        });
        self.decoder.routes = None;
        (self.decoder.params, self.decoder.blocks) = before;
        Ok(GradientReport { blocks, ..report? })
    }

    /// Names of the tensors of all blocks but `blocks`, their adapters' included.
    fn left_out(&self, blocks: &[usize]) -> BTreeSet<String> {
        let spec = &self.decoder.spec;
        (0..spec.n_layers)
            .filter(|block| !blocks.contains(block))
            .flat_map(|block| spec.block_tensors(block))
            .flat_map(|tensor| {
                let [a, b] =
                    ["lora_A", "lora_B"].map(|part| lora::adapter_name(&tensor.name, part));
                [a, b, tensor.name]
            })
            .collect()
    }

    /// Makes `blocks` the model; the tensors `left_out` of the others do not learn.
    fn leave_out(&mut self, left_out: &BTreeSet<String>, blocks: &[usize]) {
        let decoder = &mut self.decoder;
        let kept = blocks.iter().map(|block| decoder.blocks[*block].clone());
        decoder.blocks = kept.collect();
        for name in left_out {
            // Not every tensor has an adapter.
            if let Some(id) = decoder.params.id(name) {
                decoder.params.set_trainable(id, false);
            }
        }
    }

    /// The first examples of which the first draw trains something, up to a few tokens.
    fn few_examples(&self) -> Result<Vec<Example>, EngineError> {
        let (mut few, mut tokens) = (Vec::new(), 0);
        let mut rows = ModelBatch::default();
        for example in self.examples.iter() {
            let packed = PackedExamples::new([example]);
            let draw = Draw::new(self.seed, 0);
            self.objective
                .prepare(&packed.as_batch(), draw, &mut rows)?;
            if !rows.weights.iter().any(|weight| *weight > 0.0) {
                continue;
            }
            tokens += example.n_tokens();
            if !few.is_empty() && tokens > CHECKED_TOKENS as usize {
                break;
            }
            few.push(example.clone());
        }
        Ok(few)
    }

    /// Gives every all-zero `B` small values.
    fn lend_b(&mut self) -> Result<(), EngineError> {
        let zero: Vec<(ParamId, Tensor)> = self
            .decoder
            .params
            .iter()
            .filter(|(_, p)| p.trainable && p.name.contains(".lora_B"))
            .map(|(id, p)| (id, p.tensor.clone()))
            .collect();
        for (id, tensor) in zero {
            if gradients::sum_of_squares(&tensor)? == 0.0 {
                let n = tensor.elem_count();
                // Any pattern that is not symmetric will do.
                let values: Vec<f32> = (0..n)
                    .map(|i| LENT_B * ((i % 7) as f32 - 2.5) / 7.0)
                    .collect();
                let value = Tensor::from_vec(values, tensor.shape(), tensor.device())?;
                self.decoder.params.replace(id, value);
            }
        }
        Ok(())
    }

    fn check(&mut self, examples: &[Example]) -> Result<GradientReport, EngineError> {
        let mut grads = Grads::new(&self.decoder.params);
        let loss = self.loss(examples, &mut grads)?;
        // Where little is left to learn, changes as large as the loss itself are not straight.
        let mut changes = CHANGES.to_vec();
        if loss < SMALL_LOSS {
            changes.extend(CHANGES.map(|change| change * loss));
        }
        self.expect_gradients(&grads)?;
        let tensors = self.decoder.spec.tensors().into_iter();
        let roles: BTreeMap<String, TensorRole> = tensors.map(|t| (t.name, t.role)).collect();
        let mut groups: Vec<(&'static str, Vec<ParamId>)> = Vec::new();
        for (id, param) in self.decoder.params.iter().filter(|(_, p)| p.trainable) {
            let group = group(&param.name, &roles);
            match groups.iter_mut().find(|(known, _)| *known == group) {
                Some((_, ids)) => ids.push(id),
                None => groups.push((group, vec![id])),
            }
        }
        let groups = groups
            .into_iter()
            .map(|(group, ids)| self.check_group(group, &ids, &grads, &changes, examples))
            .collect::<Result<_, _>>()?;
        Ok(GradientReport {
            groups,
            blocks: Vec::new(),
        })
    }

    /// Every tensor that learns has a gradient that is a number other than zero.
    fn expect_gradients(&self, grads: &Grads) -> Result<(), EngineError> {
        let idle = self.idle_experts(grads)?;
        for (id, param) in self.decoder.params.iter().filter(|(_, p)| p.trainable) {
            let dead = |problem: &str| EngineError::Gradient {
                tensor: param.name.clone(),
                message: problem.to_owned(),
            };
            let squares = match grads.get(id) {
                Some(gradient) => gradients::sum_of_squares(gradient)?,
                None => return Err(dead("it gets no gradient, so it would never learn")),
            };
            if !squares.is_finite() {
                return Err(dead("its gradient is not finite"));
            }
            if squares == 0.0 && !idle.contains(&id) {
                return Err(dead("its gradient is zero, so it would never learn"));
            }
        }
        Ok(())
    }

    /// Parameters of experts that none of the few tokens chose, in blocks where others were chosen.
    fn idle_experts(&self, grads: &Grads) -> Result<BTreeSet<ParamId>, EngineError> {
        let mut idle = BTreeSet::new();
        for block in &self.decoder.blocks {
            let Mlp::Experts(experts) = &block.mlp else {
                continue;
            };
            let (mut still, mut any) = (Vec::new(), false);
            for id in experts.routed() {
                match grads.get(id).map(gradients::sum_of_squares).transpose()? {
                    Some(0.0) => still.push(id),
                    Some(_) => any = true,
                    None => {}
                }
            }
            if any {
                idle.extend(still);
            }
        }
        Ok(idle)
    }

    fn check_group(
        &mut self,
        group: &'static str,
        ids: &[ParamId],
        grads: &Grads,
        changes: &[f64],
        examples: &[Example],
    ) -> Result<GroupCheck, EngineError> {
        let mut directions = Vec::new();
        let mut squares = 0.0;
        for id in ids {
            let gradient = grads.get(*id).expect("checked before").clone();
            squares += gradients::sum_of_squares(&gradient)?;
            directions.push((*id, self.decoder.params.tensor(*id).clone(), gradient));
        }
        let claimed = squares.sqrt();
        let mut best = f64::NAN;
        for change in changes {
            // Along `gradient / claimed` the loss changes by `claimed` per unit of length.
            let step = change / squares;
            let above = self.loss_at(&directions, step, examples)?;
            let below = self.loss_at(&directions, -step, examples)?;
            let measured = (above - below) / (2.0 * step * claimed);
            if best.is_nan() || (measured - claimed).abs() < (best - claimed).abs() {
                best = measured;
            }
            if (best - claimed).abs() <= TOLERANCE * claimed {
                return Ok(GroupCheck {
                    group,
                    tensors: ids.len(),
                    claimed,
                    measured: best,
                });
            }
        }
        Err(EngineError::Gradient {
            tensor: format!("group {group:?} ({} tensors)", ids.len()),
            message: format!(
                "the loss changes at the rate {best:.6e} along its gradient, but the gradient \
                 claims {claimed:.6e}; an operation has no or a wrong backward pass"
            ),
        })
    }

    /// The loss with each tensor moved by `step` times its direction; puts the tensors back.
    fn loss_at(
        &mut self,
        directions: &[(ParamId, Tensor, Tensor)],
        step: f64,
        examples: &[Example],
    ) -> Result<f64, EngineError> {
        for (id, value, direction) in directions {
            let moved = (value + (direction * step)?)?;
            self.decoder.params.replace(*id, moved);
        }
        let (part, how) = self.one_pass(examples);
        let loss = loss_alone(&self.decoder, self.objective.as_ref(), &[part], &how);
        for (id, value, _) in directions {
            self.decoder.params.replace(*id, value.clone());
        }
        loss
    }

    fn loss(&self, examples: &[Example], grads: &mut Grads) -> Result<f64, EngineError> {
        let (part, how) = self.one_pass(examples);
        let objective = self.objective.as_ref();
        Ok(loss_and_gradients(&self.decoder, objective, &[part], &how, grads)?.loss)
    }

    /// All of `examples` in one pass, so that a router's rows are the same ones every time.
    fn one_pass<'e>(&self, examples: &'e [Example]) -> (Part<'e>, Accumulation) {
        let part = Part {
            examples: examples.iter().collect(),
            draw: 0,
        };
        let how = Accumulation {
            packing: true,
            micro_batch_tokens: usize::MAX,
            ..Accumulation::of(&self.plan, self.seed)
        };
        (part, how)
    }
}

/// What a tensor is checked with.
fn group(name: &str, roles: &BTreeMap<String, TensorRole>) -> &'static str {
    if name.contains(".lora_") {
        return "lora";
    }
    match roles.get(name) {
        Some(TensorRole::Embedding) => "embedding",
        Some(TensorRole::Attention) => "attention",
        Some(TensorRole::Mlp) => "feed-forward",
        Some(TensorRole::Norm) => "norms",
        Some(TensorRole::Bias) => "biases",
        Some(TensorRole::Head) => "head",
        Some(TensorRole::Router) => "router",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use t3s_core::{
        objective::NextToken,
        plan::{LoraPlan, TrainPlan},
    };

    use super::*;
    use crate::{Decoder, init::init_params};

    fn trainer() -> Trainer {
        trainer_of(TrainPlan::new(1, 1e-3))
    }

    fn trainer_of(plan: TrainPlan) -> Trainer {
        trainer_with(plan, crate::test_model::spec())
    }

    fn trainer_with(plan: TrainPlan, spec: DecoderSpec) -> Trainer {
        let mut params = init_params(&spec, 1, &Device::Cpu, DType::F32).unwrap();
        if let Some(lora) = &plan.lora {
            lora::attach(&spec, &mut params, lora, 1).unwrap();
        }
        let decoder = Decoder::new(spec, params, plan.lora.as_ref()).unwrap();
        let examples = Arc::new(crate::test_model::examples(4));
        Trainer::new(decoder, Box::new(NextToken), examples, plan, 0).unwrap()
    }

    #[test]
    fn a_gradient_that_is_not_the_losss_is_found() {
        let mut trainer = trainer();
        let examples = trainer.few_examples().unwrap();
        let mut grads = Grads::new(&trainer.decoder.params);
        trainer.loss(&examples, &mut grads).unwrap();
        let id = |name: &str| trainer.decoder.params.id(name).unwrap();
        let gate = id("model.layers.0.mlp.gate_proj.weight");
        assert!(
            trainer
                .check_group("g", &[gate], &grads, &CHANGES, &examples)
                .is_ok()
        );
        // What a residual path around a detached operation leaves: a share of the gradient.
        let slot = grads.slot(gate, &trainer.decoder.params).unwrap().unwrap();
        let wrong = (slot * 0.6).unwrap();
        gradients::zero(slot).unwrap();
        crate::kernels::residual::add_assign(slot, &wrong).unwrap();
        let error = trainer
            .check_group("g", &[gate], &grads, &CHANGES, &examples)
            .unwrap_err();
        assert!(error.to_string().contains("claims"), "{error}");
    }

    fn deep(lora: Option<LoraPlan>) -> Trainer {
        let spec = DecoderSpec {
            n_layers: 6,
            ..crate::test_model::spec()
        };
        let plan = TrainPlan {
            lora,
            ..TrainPlan::new(1, 1e-3)
        };
        trainer_with(plan, spec)
    }

    #[test]
    fn the_ends_of_a_large_model_stand_for_it() {
        assert_eq!(ends(3), [0, 1, 2]);
        let large = |n_layers, vocab| DecoderSpec {
            n_layers,
            vocab,
            ..crate::test_model::spec()
        };
        let blocks = |dtype, spec| checked_blocks(&spec, dtype);
        assert_eq!(blocks(DType::BF16, large(5, 1 << 26)), [0, 1, 3, 4]);
        assert_eq!(blocks(DType::F32, large(5, 1 << 26)).len(), 5);
        assert_eq!(blocks(DType::BF16, large(5, 37)).len(), 5);
        for lora in [None, Some(LoraPlan::default())] {
            let mut trainer = deep(lora.clone());
            let examples = trainer.few_examples().unwrap();
            let whole = trainer.check_with((0..6).collect(), &examples).unwrap();
            let some = trainer.check_with(ends(6), &examples).unwrap();
            assert_eq!(some.blocks, [0, 1, 4, 5]);
            for (whole, some) in whole.groups.iter().zip(&some.groups) {
                assert_eq!(whole.group, some.group);
                // Embedding and head are always there.
                let apart = lora.is_some() || whole.group != "embedding";
                assert_eq!(some.tensors < whole.tensors, apart, "{some:?}");
            }
            assert_eq!(trainer.decoder.blocks.len(), 6);
            let n = trainer.decoder.params.n_elements(true);
            assert_eq!(n, deep(lora).decoder.params.n_elements(true));
        }
    }

    #[test]
    fn a_tensor_between_the_ends_that_gets_no_gradient_is_named() {
        let mut trainer = deep(None);
        let params = &mut trainer.decoder.params;
        // What it makes of gate and up is nothing.
        let id = params.id("model.layers.3.mlp.down_proj.weight").unwrap();
        let zeros = params.tensor(id).zeros_like().unwrap();
        params.replace(id, zeros);
        let examples = trainer.few_examples().unwrap();
        let error = trainer.check_with(ends(6), &examples).unwrap_err();
        let error = error.to_string();
        // What it reads is reached by no gradient: the norm before it is the first of that.
        assert!(error.contains("model.layers.3."), "{error}");
    }

    #[test]
    fn a_loss_near_zero_is_no_wrong_gradient() {
        let mut trainer = trainer_of(TrainPlan::new(400, 1e-2));
        let mut loss = f64::INFINITY;
        while loss > 2e-3 {
            assert!(!trainer.is_done(), "{loss}");
            loss = trainer.step().unwrap().loss;
        }
        let examples = trainer.few_examples().unwrap();
        assert!(
            trainer
                .loss(&examples, &mut Grads::new(&trainer.decoder.params))
                .unwrap()
                < 2e-3
        );
        trainer.check_gradients().unwrap();
    }

    #[test]
    fn a_tensor_without_a_gradient_is_named() {
        let mut trainer = trainer();
        // Positions in one-token texts: no query or key can matter.
        let examples: Vec<Example> = trainer
            .few_examples()
            .unwrap()
            .into_iter()
            .map(|mut e| {
                e.ids.truncate(2);
                e.trainable = vec![false, true];
                e.weights = vec![1.0; 2];
                e
            })
            .collect();
        let error = trainer.check(&examples).unwrap_err().to_string();
        assert!(error.contains("layers.0.self_attn."), "{error}");
        assert!(error.contains("never learn"), "{error}");
    }
}
