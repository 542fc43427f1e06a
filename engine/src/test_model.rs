//! A tiny decoder and a few texts, for unit tests.

use t3s_core::{
    CounterRng, DecoderSpec, Example,
    decoder_spec::{MlpSpec, RopeSpec, TensorNames},
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
