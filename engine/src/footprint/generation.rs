//! What generation on a GPU takes: generate/on_device.

use t3s_core::{
    AttentionPattern, DecodeRule,
    adapter::{BlockDecoding, DecodeAttention},
    decoder_spec::{LayerMlp, TensorNames},
    plan::GeneratePlan,
};

use super::{F32, Footprint, PassRows};
use crate::{
    EngineError,
    kernels::buffers::{
        ATTEND_CHUNK, CACHE_POSITIONS, FEWEST_STEP_ROWS, PREFILL_ROWS, PROMPT_ROWS,
        head_chunk_rows, step_rows,
    },
    layers::lora,
    sample::Sampler,
};

/// The workspace that cuBLAS is given while steps are recorded (kernels/cuda/graph.rs), in bytes; beside
/// what [`Footprint::generation`] counts.
pub const GENERATION_WORKSPACE: u64 = 32 << 20;

/// What follows from [`Answers`].
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Answers that are written at a time.
    slots: u64,
    /// Different answers to a prompt.
    samples: u64,
    /// Of the longest prompt and its answer.
    positions: u64,
    /// Whether tokens may be left out before one is drawn.
    filters: bool,
}

/// Answers to some prompts.
#[derive(Debug, Clone, Copy)]
pub struct Answers<'a> {
    /// How they are drawn, and how many at a time.
    pub plan: &'a GeneratePlan,
    /// In which order.
    pub rule: &'a DecodeRule,
    /// How many prompts there are.
    pub prompts: u64,
    /// Answers to each.
    pub samples: u64,
    /// Tokens of the longest prompt.
    pub longest: u64,
}

impl Footprint<'_> {
    /// Most bytes of writing answers on a GPU, weights included.
    ///
    /// # Errors
    /// When the plan's sampling makes no sense.
    pub fn generation(&self, of: Answers<'_>) -> Result<u64, EngineError> {
        let sampler = Sampler::new(of.plan)?;
        let most = self.spec.max_positions as u64;
        // Without a draw all samples are copies of one.
        let samples = match sampler.is_greedy() {
            true => 1,
            false => of.samples.max(1),
        };
        let sizes = Sizes {
            slots: (of.plan.batch as u64).min((of.prompts * samples).max(1)),
            samples,
            positions: (of.longest + of.plan.max_new_tokens as u64).min(most),
            filters: sampler.filters(self.spec.vocab),
        };
        Ok(match of.rule {
            DecodeRule::Blocks(rule) => self.weights() + self.blocks(of, rule, sizes),
            _ => self.weights() + self.left_to_right(of, sizes),
        })
    }

    /// generate/on_device/slots.rs `Slots`, beside weights.
    fn left_to_right(&self, of: Answers<'_>, sizes: Sizes) -> u64 {
        let spec = self.spec;
        let Sizes {
            slots, positions, ..
        } = sizes;
        let rows = step_rows(slots as usize, of.plan.batch, FEWEST_STEP_ROWS) as u64;
        let capacity = positions.next_multiple_of(CACHE_POSITIONS as u64);

        // `Slots::new`, in its order.
        let caches = self.caches(slots, capacity);
        let chunks = capacity.div_ceil(ATTEND_CHUNK as u64);
        let attend = slots * chunks * (spec.n_heads * (spec.head_dim + 2)) as u64 * F32;
        let prompt_ends = rows * self.width();
        let logits = rows * spec.vocab as u64 * F32;
        let most = (of.plan.max_new_tokens as u64).min(spec.max_positions as u64);
        let answers = rows * most * F32;
        let lists = if sizes.filters { logits } else { 0 };
        let held = caches
            + attend
            + rows * self.decoding_row()
            + prompt_ends
            + logits
            + answers
            + lists
            + positions * spec.rope.rotary_dim as u64 * F32;
        // `Slots::read`: activations, keys, values and log-sum-exps of a pass over prompts, each of which
        // is read once.
        let prompts = slots.div_ceil(sizes.samples) * of.longest;
        let prompts = prompts.min(PREFILL_ROWS as u64).max(of.longest);
        let prompts = prompts.next_multiple_of(PROMPT_ROWS as u64);
        let reading = prompts * (self.decoding_row() + 2 * self.keys() + self.log_sums());
        let (copies, merging) = self.frozen();
        copies + merging.max(held + reading)
    }

    /// generate/on_device/blocks.rs, beside weights.
    fn blocks(&self, of: Answers<'_>, rule: &BlockDecoding, sizes: Sizes) -> u64 {
        let spec = self.spec;
        let (block, most) = (u64::from(rule.block), spec.max_positions as u64);
        let Sizes {
            slots, positions, ..
        } = sizes;
        let product = block.max(PROMPT_ROWS as u64);
        let rows = product.min(of.plan.batch as u64 * block);
        // blocks/head.rs `Head::new`: one side, or with guidance two.
        let sides = 1 + u64::from(rule.guidance != 0.0);
        let chunk = head_chunk_rows(spec.vocab * sides as usize, rows as usize) as u64;
        let logits = chunk * spec.vocab as u64 * F32;
        let hidden = (slots * block).next_multiple_of(chunk.max(1)) * self.width();
        let lists = if sizes.filters { logits } else { 0 };
        let head = sides * (logits + hidden) + lists;
        // blocks/reader.rs `Cached` or `read_whole`.
        let (caches, rows, attention) = match rule.attention {
            DecodeAttention::BlockCausal => {
                let capacity = positions.next_multiple_of(block.max(1)).min(most);
                let attention = AttentionPattern::BlockCausal { block: rule.block };
                let prompts = if of.longest < block { 0 } else { product };
                (self.caches(slots, capacity), rows.max(prompts), attention)
            }
            DecodeAttention::Bidirectional => {
                let canvas = (positions + block).min(most);
                let rows = (slots * canvas).min(PREFILL_ROWS as u64).max(canvas);
                (0, rows, AttentionPattern::Bidirectional)
            }
        };
        let pass = PassRows {
            rows,
            asked: 0,
            positions,
            attention,
        };
        caches + head + self.tables(pass) + self.forward(pass)
    }

    /// Keys and values of `slots` answers of `capacity` positions.
    fn caches(&self, slots: u64, capacity: u64) -> u64 {
        2 * self.spec.n_layers as u64 * slots * capacity * self.keys()
    }

    /// generate/on_device/frozen.rs `Activations`, per row.
    fn decoding_row(&self) -> u64 {
        let hidden = match self.spec.n_layers {
            0 => 0,
            _ => self.elements(self.hidden(0)),
        };
        let qkv = self.queries() + 2 * self.keys();
        2 * self.width() + qkv + 2 * self.queries() + 3 * hidden
    }

    /// Width of the hidden layer of a dense block: mixtures of experts are not decoded left to right.
    fn hidden(&self, layer: usize) -> usize {
        match self.spec.mlp.at(layer) {
            LayerMlp::Dense { hidden } => hidden,
            LayerMlp::Experts(_) => 0,
        }
    }

    /// generate/on_device/frozen.rs `Frozen::new`: bytes of the matrices that are copies, and most bytes
    /// that merging adapters takes beside them.
    fn frozen(&self) -> (u64, u64) {
        let (spec, names) = (self.spec, &self.spec.names);
        let width = spec.width as u64;
        let (queries, keys) = (
            self.queries() / self.element(),
            self.keys() / self.element(),
        );
        let (mut copies, mut merging) = (0, 0);
        // `stack`: of matrices, each by its name and number of weights.
        let mut stack = |layer: usize, parts: &[(&str, u64)]| {
            let all: u64 = parts.iter().map(|(_, weights)| weights).sum();
            let adapted = parts.iter().filter(|(name, _)| {
                let name = TensorNames::at(name, layer);
                self.lora.is_some_and(|plan| lora::is_target(plan, &name))
            });
            let (merged, largest) = adapted.fold((0, 0), |(sum, most), (_, weights)| {
                (sum + weights, weights.max(&most).to_owned())
            });
            if parts.len() > 1 || merged > 0 {
                copies += all * self.element();
            }
            // The sum in f32, made of another copy; the pieces of the stack.
            merging = merging.max(merged * self.element() + 2 * largest * F32);
        };
        for layer in 0..spec.n_layers {
            match spec.fused_qkv() {
                true => stack(layer, &[(&names.query, (queries + 2 * keys) * width)]),
                false => stack(
                    layer,
                    &[
                        (&names.query, queries * width),
                        (&names.key, keys * width),
                        (&names.value, keys * width),
                    ],
                ),
            }
            stack(layer, &[(&names.output, queries * width)]);
            let hidden = self.hidden(layer) as u64 * width;
            stack(layer, &[(&names.gate, hidden), (&names.up, hidden)]);
            stack(layer, &[(&names.down, hidden)]);
        }
        (copies, merging)
    }
}
