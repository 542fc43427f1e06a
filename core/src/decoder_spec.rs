//! A decoder as data: what an adapter makes of a Hugging Face `config.json`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ComponentError;

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

    /// The largest size: far above those of any model, and products of two still fit.
    pub const LARGEST: usize = 1 << 24;

    /// Whether the parts fit together.
    ///
    /// # Errors
    /// Says which field does not, and what it would have to be.
    pub fn check(&self) -> Result<(), ComponentError> {
        let fault = |message: String| ComponentError::Failed(format!("the decoder's {message}"));
        if self.spec_version != Self::VERSION {
            let (found, known) = (self.spec_version, Self::VERSION);
            return Err(fault(format!("spec_version is {found}, not {known}")));
        }
        let mut sizes = vec![
            ("vocab", self.vocab),
            ("width", self.width),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("max_positions", self.max_positions),
            ("rotary_dim", self.rope.rotary_dim),
        ];
        let mut numbers = vec![
            ("norm_eps", self.norm_eps),
            ("rope theta", self.rope.theta),
            ("initializer_range", self.initializer_range),
        ];
        match &self.mlp {
            MlpSpec::SwiGlu { hidden } => sizes.push(("hidden", *hidden)),
            MlpSpec::Moe(moe) => {
                moe.check().map_err(fault)?;
                numbers.push(("scale", moe.scale));
            }
        }
        if let Some((name, size)) = sizes
            .iter()
            .find(|(_, size)| !(1..=Self::LARGEST).contains(size))
        {
            let most = Self::LARGEST;
            return Err(fault(format!("{name} is {size}, not in 1..={most}")));
        }
        if let Some((name, number)) = numbers.iter().find(|(_, n)| !(n.is_finite() && *n > 0.0)) {
            return Err(fault(format!("{name} is {number}, no number above 0")));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let (heads, kv) = (self.n_heads, self.n_kv_heads);
            return Err(fault(format!(
                "n_kv_heads is {kv}, no divisor of n_heads ({heads})"
            )));
        }
        let (rotary, dim) = (self.rope.rotary_dim, self.head_dim);
        if rotary > dim || !rotary.is_multiple_of(2) {
            let message = format!("rotary_dim is {rotary}, no even number up to head_dim ({dim})");
            return Err(fault(message));
        }
        if let Some(id) = self.eos_ids.iter().find(|id| **id as usize >= self.vocab) {
            let vocab = self.vocab;
            return Err(fault(format!(
                "eos_ids hold {id}, which is not below vocab ({vocab})"
            )));
        }
        self.check_names().map_err(fault)
    }

    /// No two tensors have one name: two blocks of each kind, and two experts, stand for all.
    fn check_names(&self) -> Result<(), String> {
        let mut small = self.clone();
        small.n_layers = self.n_layers.min(2);
        if let MlpSpec::Moe(moe) = &mut small.mlp {
            let sparse = self.n_layers.saturating_sub(moe.dense_layers).min(2);
            moe.dense_layers = moe.dense_layers.min(self.n_layers).min(2);
            small.n_layers = moe.dense_layers + sparse;
            moe.n_experts = moe.n_experts.min(2);
        }
        let mut seen = BTreeSet::new();
        for tensor in small.tensors() {
            if tensor.name.is_empty() {
                return Err(format!("names lack one for {:?}", tensor.role));
            }
            if !seen.insert(tensor.name.clone()) {
                return Err(format!("names give {:?} to two tensors", tensor.name));
            }
        }
        Ok(())
    }

    /// Every tensor of the decoder, in the order in which a forward pass reads them.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (width, names) = (self.width, &self.names);
        let mut tensors = vec![TensorSpec::new(
            &names.embedding,
            TensorRole::Embedding,
            [self.vocab, width],
        )];
        tensors.extend((0..self.n_layers).flat_map(|layer| self.block_tensors(layer)));
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

    /// The tensors of block `layer`, in the same order.
    pub fn block_tensors(&self, layer: usize) -> Vec<TensorSpec> {
        let (width, dim) = (self.width, self.head_dim);
        let (q, kv) = (self.n_heads * dim, self.n_kv_heads * dim);
        let names = &self.names;
        let mut tensors = Vec::new();
        let mut push = |template: &str, role, shape: &[usize]| {
            let name = TensorNames::at(template, layer);
            tensors.push(TensorSpec::new(&name, role, shape));
        };
        let attention = TensorRole::Attention;
        push(&names.attention_norm, TensorRole::Norm, &[width]);
        let projections = match self.fused_qkv() {
            true => vec![(&names.query, q + 2 * kv)],
            false => vec![(&names.query, q), (&names.key, kv), (&names.value, kv)],
        };
        for (template, out) in projections {
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
        match self.mlp.at(layer) {
            LayerMlp::Dense { hidden } => {
                push(&names.gate, TensorRole::Mlp, &[hidden, width]);
                push(&names.up, TensorRole::Mlp, &[hidden, width]);
                push(&names.down, TensorRole::Mlp, &[width, hidden]);
            }
            LayerMlp::Experts(moe) => moe.push_tensors(width, &mut push),
        }
        tensors
    }

    /// Whether queries, keys and values are one tensor, their rows in that order.
    pub fn fused_qkv(&self) -> bool {
        let names = &self.names;
        names.query == names.key && names.key == names.value
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
    /// Vectors to the scores by which experts are chosen.
    Router,
    /// Read and written, never learned.
    Constant,
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
    /// The first blocks dense, the others a mixture of experts.
    Moe(Box<MoeSpec>),
}

/// The feed-forward part of one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LayerMlp<'a> {
    /// One SwiGLU.
    Dense {
        /// Width of its hidden layer.
        hidden: usize,
    },
    /// Experts, chosen token by token.
    Experts(&'a MoeSpec),
}

impl MlpSpec {
    /// That of block `layer`.
    pub fn at(&self, layer: usize) -> LayerMlp<'_> {
        match self {
            Self::SwiGlu { hidden } => LayerMlp::Dense { hidden: *hidden },
            Self::Moe(moe) if layer < moe.dense_layers => LayerMlp::Dense {
                hidden: moe.dense_hidden,
            },
            Self::Moe(moe) => LayerMlp::Experts(moe),
        }
    }
}

/// A mixture of SwiGLU experts, routed as DeepSeek-V3 (arXiv 2412.19437) and LLaDA 2.0 route:
/// `s = sigmoid(router(x))`; groups of experts are ranked by the sum of their two largest `s + bias`
/// and the best are kept, in them the experts with the largest `s + bias` are chosen. The result is
/// the sum of the chosen weighted by `s` (without the bias), normalised and scaled, plus the shared
/// expert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeSpec {
    /// Blocks `0..dense_layers` are dense.
    pub dense_layers: usize,
    /// Width of the hidden layer of those.
    pub dense_hidden: usize,
    /// Routed experts.
    pub n_experts: usize,
    /// Routed experts per token.
    pub n_chosen: usize,
    /// Width of the hidden layer of a routed expert.
    pub hidden: usize,
    /// Width of the hidden layer of the shared expert; 0 without one.
    pub shared_hidden: usize,
    /// Groups of neighbouring experts; divides `n_experts`.
    pub n_groups: usize,
    /// Groups that a token may choose from.
    pub n_groups_kept: usize,
    /// The weights of a token's experts are divided by their sum.
    pub normalise: bool,
    /// What they are multiplied by then.
    pub scale: f64,
    /// Where each tensor is in the checkpoint.
    pub names: MoeNames,
}

/// Tensor names of experts; `{layer}` stands for the block's number and `{expert}` for the expert's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeNames {
    /// `[n_experts, width]`.
    pub router: String,
    /// `[n_experts]`, added for choosing only; not learned.
    pub choice_bias: Option<String>,
    /// `[hidden, width]`.
    pub gate: String,
    /// `[hidden, width]`.
    pub up: String,
    /// `[width, hidden]`.
    pub down: String,
    /// `[shared_hidden, width]`.
    pub shared_gate: String,
    /// `[shared_hidden, width]`.
    pub shared_up: String,
    /// `[width, shared_hidden]`.
    pub shared_down: String,
    /// What a checkpoint may hold in place of `gate`, `up` and `down`; it is written as its base was.
    #[serde(default)]
    pub stacked: Option<StackedNames>,
}

/// Names of tensors that hold a projection of all experts of a block, `[n_experts, ...]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackedNames {
    /// `[n_experts, hidden, width]`.
    pub gate: String,
    /// `[n_experts, hidden, width]`.
    pub up: String,
    /// `[n_experts, width, hidden]`.
    pub down: String,
}

impl MoeNames {
    /// `template` with `{expert}` replaced.
    pub fn expert(template: &str, expert: usize) -> String {
        template.replace("{expert}", &expert.to_string())
    }
}

impl MoeSpec {
    /// What does not fit together.
    fn check(&self) -> Result<(), String> {
        let mut sizes = vec![
            ("n_experts", self.n_experts),
            ("n_chosen", self.n_chosen),
            ("hidden of the experts", self.hidden),
            ("n_groups", self.n_groups),
            ("n_groups_kept", self.n_groups_kept),
        ];
        if self.dense_layers > 0 {
            sizes.push(("dense_hidden", self.dense_hidden));
        }
        if self.shared_hidden > 0 {
            sizes.push(("shared_hidden", self.shared_hidden));
        }
        let most = DecoderSpec::LARGEST;
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=most).contains(size)) {
            return Err(format!("{name} is {size}, not in 1..={most}"));
        }
        if !self.n_experts.is_multiple_of(self.n_groups) {
            let (groups, experts) = (self.n_groups, self.n_experts);
            return Err(format!(
                "n_groups is {groups}, no divisor of n_experts ({experts})"
            ));
        }
        if self.n_groups_kept > self.n_groups {
            let (kept, groups) = (self.n_groups_kept, self.n_groups);
            return Err(format!(
                "n_groups_kept is {kept}, above n_groups ({groups})"
            ));
        }
        let there = self.n_groups_kept * (self.n_experts / self.n_groups);
        if self.n_chosen > there {
            let chosen = self.n_chosen;
            return Err(format!(
                "n_chosen is {chosen}; the groups kept have {there} experts"
            ));
        }
        Ok(())
    }

    /// The tensors of one block, in the order in which they are read.
    fn push_tensors(&self, width: usize, push: &mut dyn FnMut(&str, TensorRole, &[usize])) {
        let names = &self.names;
        push(&names.router, TensorRole::Router, &[self.n_experts, width]);
        if let Some(bias) = &names.choice_bias {
            push(bias, TensorRole::Constant, &[self.n_experts]);
        }
        let mlp = TensorRole::Mlp;
        for expert in 0..self.n_experts {
            let name = |template| MoeNames::expert(template, expert);
            push(&name(&names.gate), mlp, &[self.hidden, width]);
            push(&name(&names.up), mlp, &[self.hidden, width]);
            push(&name(&names.down), mlp, &[width, self.hidden]);
        }
        if self.shared_hidden > 0 {
            push(&names.shared_gate, mlp, &[self.shared_hidden, width]);
            push(&names.shared_up, mlp, &[self.shared_hidden, width]);
            push(&names.shared_down, mlp, &[width, self.shared_hidden]);
        }
    }
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
    /// `[n_heads * head_dim, width]`. Where `query`, `key` and `value` are one name, that tensor holds
    /// the rows of all three in this order.
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
