//! Random models of a given shape.

use candle_core::{Device, Tensor};
use t3s_core::{
    CounterRng, DecoderSpec,
    decoder_spec::{MlpSpec, RopeSpec, TensorNames},
};
use t3s_engine::Params;

/// The sizes of a Qwen3-like decoder with a tied head.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Ids.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub hidden: usize,
}

impl Shape {
    /// What the train step is measured on: 5.8 M parameters.
    pub const TRAINED: Self = Self {
        vocab: 4096,
        width: 256,
        n_layers: 6,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        hidden: 768,
    };

    /// A student of about 1 M parameters, as in the quickstart.
    pub const STUDENT: Self = Self {
        vocab: 512,
        width: 128,
        n_layers: 5,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        hidden: 384,
    };

    /// The spec; `eos_ids` is empty, so that every answer has the length asked for.
    pub fn spec(&self) -> DecoderSpec {
        DecoderSpec {
            spec_version: DecoderSpec::VERSION,
            vocab: self.vocab,
            width: self.width,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            mlp: MlpSpec::SwiGlu {
                hidden: self.hidden,
            },
            norm_eps: 1e-6,
            rope: RopeSpec {
                theta: 1e6,
                rotary_dim: self.head_dim,
            },
            qk_norm: true,
            qkv_bias: false,
            tied_head: true,
            max_positions: 4096,
            initializer_range: 0.02,
            eos_ids: Vec::new(),
            names: TensorNames::llama(),
        }
    }

    /// Random weights: norms at 1, matrices uniform with a standard deviation of 0.02.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn params(&self, seed: u64) -> candle_core::Result<Params> {
        let names = self.spec().names;
        let (q, kv) = (
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
        );
        let mut list: Vec<(String, Vec<usize>)> = vec![
            (names.embedding, vec![self.vocab, self.width]),
            (names.final_norm, vec![self.width]),
        ];
        for layer in 0..self.n_layers {
            for (name, dims) in [
                (&names.attention_norm, vec![self.width]),
                (&names.query, vec![q, self.width]),
                (&names.key, vec![kv, self.width]),
                (&names.value, vec![kv, self.width]),
                (&names.output, vec![self.width, q]),
                (&names.query_norm, vec![self.head_dim]),
                (&names.key_norm, vec![self.head_dim]),
                (&names.mlp_norm, vec![self.width]),
                (&names.gate, vec![self.hidden, self.width]),
                (&names.up, vec![self.hidden, self.width]),
                (&names.down, vec![self.width, self.hidden]),
            ] {
                list.push((TensorNames::at(name, layer), dims));
            }
        }
        let rng = CounterRng::new(seed, "bench-weights");
        let mut params = Params::default();
        for (index, (name, dims)) in list.into_iter().enumerate() {
            let bound = 0.02 * 3f64.sqrt();
            let value = |i: usize| match dims.len() {
                1 => 1.0,
                _ => ((2.0 * rng.uniform(index as u64, i as u64) - 1.0) * bound) as f32,
            };
            let values: Vec<f32> = (0..dims.iter().product()).map(value).collect();
            params.push(name, Tensor::from_vec(values, dims, &Device::Cpu)?);
        }
        Ok(params)
    }

    /// `n` random token ids.
    pub fn text(&self, seed: u64, n: usize) -> Vec<u32> {
        let rng = CounterRng::new(seed, "bench-text");
        let id = |i: u64| (rng.bits(0, i) % self.vocab as u64) as u32;
        (0..n as u64).map(id).collect()
    }
}
