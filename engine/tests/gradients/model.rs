//! Small random decoders and examples.

use candle_core::{DType, Device, Tensor};
use t3s_core::{
    CounterRng, DecoderSpec, Example,
    decoder_spec::{MlpSpec, RopeSpec, TensorNames},
};
use t3s_engine::Params;

/// A Qwen3-shaped decoder.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub vocab: usize,
    pub width: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub hidden: usize,
    pub tied: bool,
    pub qk_norm: bool,
    pub qkv_bias: bool,
}

impl Shape {
    pub const TINY: Self = Self {
        vocab: 37,
        width: 24,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        hidden: 40,
        tied: true,
        qk_norm: true,
        qkv_bias: false,
    };

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
            qk_norm: self.qk_norm,
            qkv_bias: self.qkv_bias,
            tied_head: self.tied,
            max_positions: 512,
            initializer_range: 0.02,
            eos_ids: vec![0],
            names: TensorNames::llama(),
        }
    }

    /// Random weights, large enough that every part of the model matters.
    pub fn params(&self, seed: u64) -> Params {
        let names = self.spec().names;
        let (q, kv) = (
            self.n_heads * self.head_dim,
            self.n_kv_heads * self.head_dim,
        );
        let mut list: Vec<(String, Vec<usize>)> = vec![
            (names.embedding, vec![self.vocab, self.width]),
            (names.final_norm, vec![self.width]),
        ];
        if !self.tied {
            list.push((names.head, vec![self.vocab, self.width]));
        }
        for layer in 0..self.n_layers {
            let mut add = |name: &str, dims| list.push((TensorNames::at(name, layer), dims));
            for (name, dims) in [
                (&names.attention_norm, vec![self.width]),
                (&names.query, vec![q, self.width]),
                (&names.key, vec![kv, self.width]),
                (&names.value, vec![kv, self.width]),
                (&names.output, vec![self.width, q]),
                (&names.mlp_norm, vec![self.width]),
                (&names.gate, vec![self.hidden, self.width]),
                (&names.up, vec![self.hidden, self.width]),
                (&names.down, vec![self.width, self.hidden]),
            ] {
                add(name, dims);
            }
            if self.qk_norm {
                add(&names.query_norm, vec![self.head_dim]);
                add(&names.key_norm, vec![self.head_dim]);
            }
            if self.qkv_bias {
                add(&TensorNames::bias(&names.query), vec![q]);
                add(&TensorNames::bias(&names.key), vec![kv]);
                add(&TensorNames::bias(&names.value), vec![kv]);
            }
        }
        let mut params = Params::default();
        for (index, (name, dims)) in list.into_iter().enumerate() {
            let (centre, spread) = match dims.len() {
                1 => (1.0, 0.3),
                _ => (0.0, 1.5 / (dims[1] as f32).sqrt()),
            };
            let values = random(seed, index as u64, dims.iter().product());
            let values = values.iter().map(|v| centre + spread * v).collect();
            params.push(name, tensor(values, &dims));
        }
        params
    }
}

pub fn tensor(values: Vec<f32>, dims: &[usize]) -> Tensor {
    Tensor::from_vec(values, dims, &Device::Cpu).expect("length fits")
}

/// `len` draws, uniform in [-1, 1).
pub fn random(seed: u64, stream: u64, len: usize) -> Vec<f32> {
    let rng = CounterRng::new(seed, "test-values");
    (0..len as u64)
        .map(|i| (2.0 * rng.uniform(stream, i) - 1.0) as f32)
        .collect()
}

pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor
        .flatten_all()
        .and_then(|t| t.to_dtype(DType::F32)?.to_vec1())
        .expect("a float tensor")
}

/// Examples of the given lengths with random ids, masks and weights.
pub fn examples(shape: &Shape, lengths: &[usize], seed: u64) -> Vec<Example> {
    let rng = CounterRng::new(seed, "test-examples");
    lengths
        .iter()
        .enumerate()
        .map(|(e, length)| {
            let draw = |what: u64, i: usize| rng.uniform(4 * e as u64 + what, i as u64);
            Example {
                id: 10 + e as u64,
                ids: (0..*length)
                    .map(|i| (draw(0, i) * shape.vocab as f64) as u32)
                    .collect(),
                trainable: (0..*length).map(|i| draw(1, i) < 0.7).collect(),
                weights: (0..*length).map(|i| draw(2, i) as f32).collect(),
                prompt_len: 0,
                noisy_ids: None,
                answer: None,
            }
        })
        .collect()
}

/// `|a - b| / |b|` in the Frobenius norm.
pub fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(
        &mut found
            .iter()
            .zip(wanted)
            .map(|(f, w)| f64::from(*f) - f64::from(*w)),
    );
    difference / norm(&mut wanted.iter().map(|w| f64::from(*w))).max(1e-30)
}
