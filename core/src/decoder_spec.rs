//! A decoder as data: what an adapter makes of a Hugging Face `config.json`.

use serde::{Deserialize, Serialize};

/// The geometry of a decoder and the names of its tensors. Sizes are counts of elements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderSpec {
    /// Version of this structure; [`DecoderSpec::VERSION`].
    pub spec_version: u32,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// The feed-forward part of each block.
    pub mlp: MlpSpec,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f64,
    /// Rotary position embedding.
    pub rope: RopeSpec,
    /// RMSNorm over each query and key head before rotary.
    pub qk_norm: bool,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// The head shares the embedding's weights.
    pub tied_head: bool,
    /// Longest sequence the model was made for, tokens.
    pub max_positions: usize,
    /// Standard deviation of random initial weights.
    pub initializer_range: f64,
    /// Ids at which generation stops.
    pub eos_ids: Vec<u32>,
    /// Where each tensor is in the checkpoint.
    pub names: TensorNames,
}

impl DecoderSpec {
    /// The version this build writes and reads.
    pub const VERSION: u32 = 1;

    /// Every tensor of the decoder, in the order in which a forward pass reads them.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (width, dim) = (self.width, self.head_dim);
        let (q, kv) = (self.n_heads * dim, self.n_kv_heads * dim);
        let MlpSpec::SwiGlu { hidden } = self.mlp;
        let names = &self.names;
        let mut tensors = vec![TensorSpec::new(
            &names.embedding,
            TensorRole::Embedding,
            [self.vocab, width],
        )];
        for layer in 0..self.n_layers {
            let mut push = |template: &str, role, shape: &[usize]| {
                let name = TensorNames::at(template, layer);
                tensors.push(TensorSpec::new(&name, role, shape));
            };
            let attention = TensorRole::Attention;
            push(&names.attention_norm, TensorRole::Norm, &[width]);
            for (template, out) in [(&names.query, q), (&names.key, kv), (&names.value, kv)] {
                push(template, attention, &[out, width]);
                if self.qkv_bias {
                    push(&TensorNames::bias(template), TensorRole::Bias, &[out]);
                }
            }
            if self.qk_norm {
                push(&names.query_norm, TensorRole::Norm, &[dim]);
                push(&names.key_norm, TensorRole::Norm, &[dim]);
            }
            push(&names.output, attention, &[width, q]);
            push(&names.mlp_norm, TensorRole::Norm, &[width]);
            push(&names.gate, TensorRole::Mlp, &[hidden, width]);
            push(&names.up, TensorRole::Mlp, &[hidden, width]);
            push(&names.down, TensorRole::Mlp, &[width, hidden]);
        }
        tensors.push(TensorSpec::new(
            &names.final_norm,
            TensorRole::Norm,
            [width],
        ));
        if !self.tied_head {
            let shape = [self.vocab, width];
            tensors.push(TensorSpec::new(&names.head, TensorRole::Head, shape));
        }
        tensors
    }

    /// The number of weights.
    pub fn n_parameters(&self) -> usize {
        let sizes = self.tensors();
        sizes
            .iter()
            .map(|t| t.shape.iter().product::<usize>())
            .sum()
    }
}

/// One tensor of a decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the checkpoint.
    pub name: String,
    /// What it does.
    pub role: TensorRole,
    /// Its shape; matrices are `[out, in]`.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    fn new(name: &str, role: TensorRole, shape: impl AsRef<[usize]>) -> Self {
        Self {
            name: name.to_owned(),
            role,
            shape: shape.as_ref().to_vec(),
        }
    }
}

/// What a tensor does in a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TensorRole {
    /// Ids to vectors; also the head where it is tied.
    Embedding,
    /// A projection of attention.
    Attention,
    /// A projection of the feed-forward part.
    Mlp,
    /// The gain of an RMSNorm.
    Norm,
    /// A bias.
    Bias,
    /// Vectors to logits, where it is not tied.
    Head,
}

/// The feed-forward part of a block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
#[non_exhaustive]
pub enum MlpSpec {
    /// `down(silu(gate(x)) * up(x))`, `hidden` wide.
    SwiGlu {
        /// Width of the hidden layer.
        hidden: usize,
    },
}

/// Rotary position embedding (RoFormer, arXiv 2104.09864), rotate-half layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeSpec {
    /// Base of the inverse frequencies.
    pub theta: f64,
    /// How many leading elements of a head are rotated; even, at most `head_dim`.
    pub rotary_dim: usize,
}

/// Tensor names of a checkpoint; `{layer}` stands for the block's number, from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorNames {
    /// `[vocab, width]`.
    pub embedding: String,
    /// `[width]`, the norm before the head.
    pub final_norm: String,
    /// `[vocab, width]`; not read when the head is tied.
    pub head: String,
    /// `[width]`, the norm before attention.
    pub attention_norm: String,
    /// `[n_heads * head_dim, width]`.
    pub query: String,
    /// `[n_kv_heads * head_dim, width]`.
    pub key: String,
    /// `[n_kv_heads * head_dim, width]`.
    pub value: String,
    /// `[width, n_heads * head_dim]`.
    pub output: String,
    /// `[head_dim]`; only with `qk_norm`.
    pub query_norm: String,
    /// `[head_dim]`; only with `qk_norm`.
    pub key_norm: String,
    /// `[width]`, the norm before the feed-forward part.
    pub mlp_norm: String,
    /// `[hidden, width]`.
    pub gate: String,
    /// `[hidden, width]`.
    pub up: String,
    /// `[width, hidden]`.
    pub down: String,
}

impl TensorNames {
    /// `template` with `{layer}` replaced.
    pub fn at(template: &str, layer: usize) -> String {
        template.replace("{layer}", &layer.to_string())
    }

    /// The names of the Llama family as transformers writes them, with Qwen3's norms of query and key
    /// heads.
    pub fn llama() -> Self {
        let block = |name: &str| format!("model.layers.{{layer}}.{name}.weight");
        Self {
            embedding: "model.embed_tokens.weight".into(),
            final_norm: "model.norm.weight".into(),
            head: "lm_head.weight".into(),
            attention_norm: block("input_layernorm"),
            query: block("self_attn.q_proj"),
            key: block("self_attn.k_proj"),
            value: block("self_attn.v_proj"),
            output: block("self_attn.o_proj"),
            query_norm: block("self_attn.q_norm"),
            key_norm: block("self_attn.k_norm"),
            mlp_norm: block("post_attention_layernorm"),
            gate: block("mlp.gate_proj"),
            up: block("mlp.up_proj"),
            down: block("mlp.down_proj"),
        }
    }

    /// The name of the bias that belongs to the weight `weight`.
    pub fn bias(weight: &str) -> String {
        format!("{}.bias", weight.strip_suffix(".weight").unwrap_or(weight))
    }
}
