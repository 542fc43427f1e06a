//! A tiny decoder and a few texts, for unit tests.

use t3s_core::{
    CounterRng, DecoderSpec, Example,
    decoder_spec::{MlpSpec, MoeNames, MoeSpec, RopeSpec, TensorNames},
};

pub(crate) fn spec() -> DecoderSpec {
    DecoderSpec {
        spec_version: DecoderSpec::VERSION,
        vocab: 37,
        width: 24,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        mlp: MlpSpec::SwiGlu { hidden: 40 },
        norm_eps: 1e-6,
        rope: RopeSpec {
            theta: 1e4,
            rotary_dim: 8,
        },
        qk_norm: true,
        qkv_bias: false,
        tied_head: true,
        max_positions: 512,
        initializer_range: 0.2,
        eos_ids: vec![0],
        names: TensorNames::llama(),
    }
}

/// Eight experts in four groups, two of them chosen, a shared one, and a bias for choosing; the first
/// block is dense.
pub(crate) fn mixture() -> MoeSpec {
    let name = |name: &str| format!("model.layers.{{layer}}.mlp.{name}.weight");
    MoeSpec {
        dense_layers: 1,
        dense_hidden: 24,
        n_experts: 8,
        n_chosen: 2,
        hidden: 16,
        shared_hidden: 8,
        n_groups: 4,
        n_groups_kept: 2,
        normalise: true,
        scale: 2.5,
        names: MoeNames {
            router: name("router"),
            choice_bias: Some(name("choice_bias")),
            gate: name("experts.{expert}.gate_proj"),
            up: name("experts.{expert}.up_proj"),
            down: name("experts.{expert}.down_proj"),
            shared_gate: name("shared.gate_proj"),
            shared_up: name("shared.up_proj"),
            shared_down: name("shared.down_proj"),
            stacked: None,
        },
    }
}

/// Random texts of 5 to 20 tokens, the first three of each a prompt.
pub(crate) fn examples(n: u64) -> Vec<Example> {
    let rng = CounterRng::new(5, "examples");
    (0..n)
        .map(|id| {
            let tokens = 5 + rng.bits(id, u64::MAX) % 16;
            Example {
                id,
                ids: (0..tokens).map(|i| (rng.bits(id, i) % 37) as u32).collect(),
                trainable: (0..tokens).map(|i| i >= 3).collect(),
                weights: (0..tokens)
                    .map(|i| rng.uniform(id + 1000, i) as f32)
                    .collect(),
                prompt_len: 3,
                noisy_ids: None,
                answer: None,
            }
        })
        .collect()
}
