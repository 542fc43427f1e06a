//! How many floating-point operations a piece of work needs; a multiplication and an addition are two.
//!
//! Counted are matrix products, as they would have to be done, not as a program does them: recomputed
//! activations are not counted, rows of the head without a target are not, a causal query is counted
//! with the keys it sees and not with all, and with LoRA no gradient of a frozen weight is. Norms,
//! rotary, softmax and the optimiser are left out; they are linear in what the products are quadratic in.

use t3s_core::{
    DecoderSpec,
    decoder_spec::{LayerMlp, TensorNames},
    plan::LoraPlan,
};
use t3s_engine::layers::lora;

/// Operations of work on one geometry.
#[derive(Debug, Clone, Copy)]
pub struct Flops {
    /// Weights that a token is multiplied with in the blocks: `N` without embedding and head.
    blocks: u64,
    /// Of them those of the first block that read its input: what is before them may be frozen.
    first_inputs: u64,
    /// Weights of the head.
    head: u64,
    /// Operations of one query with one key, over all layers and heads: scores and values.
    pair: u64,
    /// Weights of the adapters; `None` when all weights learn.
    adapters: Option<Adapters>,
}

#[derive(Debug, Clone, Copy)]
struct Adapters {
    all: u64,
    /// Of the first block's projections that read its input, only `A`.
    first_a: u64,
}

impl Flops {
    /// For `spec`, every weight learning or only the adapters of `plan`, which are taken to sit on
    /// queries, keys and values too.
    pub fn new(spec: &DecoderSpec, plan: Option<&LoraPlan>) -> Self {
        let (q, kv) = (
            (spec.n_heads * spec.head_dim) as u64,
            (spec.n_kv_heads * spec.head_dim) as u64,
        );
        let (width, layers) = (spec.width as u64, spec.n_layers as u64);
        let mlp = |layer| match spec.mlp.at(layer) {
            LayerMlp::Dense { hidden } => 3 * width * hidden as u64,
            LayerMlp::Experts(moe) => {
                let hidden = moe.n_chosen * moe.hidden + moe.shared_hidden;
                width * (3 * hidden + moe.n_experts) as u64
            }
        };
        let attention = width * (2 * q + 2 * kv);
        let adapters = plan.map(|plan| {
            let rank = plan.rank as u64;
            let adapted = spec.tensors().into_iter();
            let adapted = adapted.filter(|t| t.shape.len() == 2 && lora::is_target(plan, &t.name));
            let names = &spec.names;
            let reads_input = [&names.query, &names.key, &names.value]
                .map(|template| TensorNames::at(template, 0));
            let (mut all, mut first_a) = (0, 0);
            for tensor in adapted {
                all += rank * (tensor.shape[0] + tensor.shape[1]) as u64;
                if reads_input.contains(&tensor.name) {
                    first_a += rank * width;
                }
            }
            Adapters { all, first_a }
        });
        Self {
            blocks: (0..spec.n_layers).map(mlp).sum::<u64>() + layers * attention,
            first_inputs: if layers > 0 { width * (q + 2 * kv) } else { 0 },
            head: width * spec.vocab as u64,
            pair: 4 * layers * q,
            adapters,
        }
    }

    /// A forward pass over `examples` examples of `seq` tokens, `rows` of which ask the head.
    pub fn forward(&self, examples: u64, seq: u64, rows: u64) -> u64 {
        let tokens = examples * seq;
        let weights = self.blocks + self.adapters.map_or(0, |a| a.all);
        2 * tokens * weights + self.pair * examples * pairs(seq) + 2 * rows * self.head
    }

    /// Forward and backward.
    pub fn train(&self, examples: u64, seq: u64, rows: u64) -> u64 {
        let tokens = examples * seq;
        // Scores, values, and what goes back through each.
        let attention = 2 * self.pair * examples * pairs(seq);
        let backward = match self.adapters {
            // Gradients of inputs and of weights.
            None => 4 * tokens * self.blocks + 4 * rows * self.head,
            // Gradients of inputs through frozen weights and adapters, and those of the adapters; none
            // where nothing before learns.
            Some(adapters) => {
                2 * tokens * (self.blocks - self.first_inputs)
                    + 2 * tokens * (2 * adapters.all - adapters.first_a)
                    + 2 * rows * self.head
            }
        };
        self.forward(examples, seq, rows) + attention + backward
    }

    /// The head alone, forward and backward.
    pub fn head(&self, rows: u64) -> u64 {
        6 * rows * self.head
    }

    /// Reading prompts of `prompt` tokens: one row each asks the head.
    pub fn prefill(&self, answers: u64, prompt: u64) -> u64 {
        self.forward(answers, prompt, answers)
    }

    /// Writing `new` tokens after prompts of `prompt`, the first of which the prefill has drawn.
    pub fn decode(&self, answers: u64, prompt: u64, new: u64) -> u64 {
        let steps = new.saturating_sub(1);
        let seen = pairs(prompt + steps) - pairs(prompt);
        answers * (2 * steps * (self.blocks + self.head) + self.pair * seen)
    }
}

/// Keys seen by the queries of one causal example, together.
fn pairs(seq: u64) -> u64 {
    seq * (seq + 1) / 2
}

#[cfg(test)]
mod tests {
    use t3s_core::decoder_spec::{MlpSpec, RopeSpec};

    use super::*;

    /// 2 layers, width 3, 2 heads of 2 over 1, feed-forward 5, vocabulary 7.
    fn small() -> DecoderSpec {
        DecoderSpec {
            spec_version: DecoderSpec::VERSION,
            vocab: 7,
            width: 3,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 2,
            mlp: MlpSpec::SwiGlu { hidden: 5 },
            norm_eps: 1e-6,
            rope: RopeSpec {
                theta: 1e4,
                rotary_dim: 2,
            },
            qk_norm: true,
            qkv_bias: false,
            tied_head: true,
            max_positions: 16,
            initializer_range: 0.02,
            eos_ids: Vec::new(),
            names: TensorNames::llama(),
        }
    }

    /// Every product of two matrices, written out: one example of 4 tokens, 2 rows asking.
    #[test]
    fn a_step_is_what_a_hand_counts() {
        let flops = Flops::new(&small(), None);
        let product = |m: u64, k: u64, n: u64| 2 * m * k * n;
        let projections = |t| {
            product(t, 3, 4)                // queries
                + 2 * product(t, 3, 2)      // keys, values
                + product(t, 4, 3)          // output
                + 2 * product(t, 3, 5)      // gate, up
                + product(t, 5, 3) // down
        };
        // Query t sees t keys: a score of 2 multiply-adds each, a value of 2, for 2 heads.
        let attention: u64 = (1..=4)
            .map(|t| 2 * (product(1, 2, t) + product(1, t, 2)))
            .sum();
        let head = product(2, 3, 7);
        let forward = 2 * (projections(4) + attention) + head;
        assert_eq!(flops.forward(1, 4, 2), forward);
        // Each product has two gradients, each a product of the same size.
        assert_eq!(flops.train(1, 4, 2), 3 * forward);
        assert_eq!(flops.train(5, 4, 10), 15 * forward);
        assert_eq!(flops.head(2), 3 * head);
        // Two tokens after a prompt of 3: the second is read after the prompt and itself.
        assert_eq!(flops.decode(1, 3, 1), 0);
        let last_query = 2 * (product(1, 2, 4) + product(1, 4, 2));
        let written = 2 * (projections(1) + last_query) + product(1, 3, 7);
        assert_eq!(flops.decode(1, 3, 2), written);
        assert_eq!(flops.prefill(1, 3) + written, flops.forward(1, 4, 2));
    }

    #[test]
    fn frozen_weights_have_no_gradient() {
        let plan = LoraPlan {
            rank: 1,
            ..LoraPlan::default()
        };
        let (full, lora) = (
            Flops::new(&small(), None),
            Flops::new(&small(), Some(&plan)),
        );
        let (t, rows) = (4, 2);
        // A and B of queries, keys, values, output, gate, up and down: in + out each, forward and
        // both gradients ...
        let sizes = (3 + 4) + 2 * (3 + 2) + (4 + 3) + 2 * (3 + 5) + (5 + 3);
        // ... but the first block's queries, keys and values read what nothing that learns made: no
        // input gradient through A there, nor through the frozen weights.
        let adapters = 3 * 2 * (2 * t * sizes) - 3 * (2 * t * 3);
        let forward = full.forward(1, t, rows);
        let attention = 2 * 2 * (1..=t).map(|n| 2 * 2 * 2 * n).sum::<u64>();
        let through = forward - attention - 2 * t * 3 * (4 + 2 + 2);
        assert_eq!(
            lora.train(1, t, rows),
            forward + through + 2 * attention + adapters
        );
        // Where a rank is small beside the widths, adapters cost less than what they save.
        let wide = DecoderSpec {
            width: 96,
            ..small()
        };
        let step = |lora| Flops::new(&wide, lora).train(1, t, rows);
        assert!(step(Some(&plan)) < step(None));
    }
}
