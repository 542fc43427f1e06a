//! `[train]` and what it is made of; `[probe]` has the same keys. Each doc comment is the manual's
//! entry for its key.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[train]`: the training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainPlan {
    /// Optimiser steps.
    pub steps: u64,
    /// Most examples per optimiser step; 0: no limit but `batch_tokens`.
    #[serde(default = "default_batch_examples")]
    pub batch_examples: usize,
    /// Most tokens per optimiser step, prompts included; 0: no limit but `batch_examples`.
    #[serde(default)]
    pub batch_tokens: usize,
    /// Most tokens per forward pass; a step accumulates as many passes as it needs. A longer
    /// example is a pass of its own.
    #[serde(default = "default_micro_batch_tokens")]
    pub micro_batch_tokens: usize,
    /// Several examples per forward pass (never seeing each other); false: one.
    #[serde(default = "yes")]
    pub packing: bool,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Its course over the steps.
    #[serde(default)]
    pub schedule: Schedule,
    /// Share of the steps over which the rate rises from 0.
    #[serde(default)]
    pub warmup: f64,
    /// AdamW.
    #[serde(default)]
    pub adamw: AdamWPlan,
    /// Largest global gradient norm; 0: no clipping.
    #[serde(default = "one")]
    pub clip_norm: f64,
    /// What a step's summed loss is divided by.
    #[serde(default)]
    pub normaliser: Normaliser,
    /// Which activations are recomputed in the backward pass.
    #[serde(default)]
    pub recompute: Recompute,
    /// Low-rank adaptation; absent: full fine-tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraPlan>,
    /// Steps between two saved states; 0: only at the end and on Ctrl-C.
    #[serde(default)]
    pub save_every: u64,
}

impl TrainPlan {
    /// A plan of `steps` steps with this peak learning rate, and every other key at its default.
    pub fn new(steps: u64, learning_rate: f64) -> Self {
        Self {
            steps,
            batch_examples: default_batch_examples(),
            batch_tokens: 0,
            micro_batch_tokens: default_micro_batch_tokens(),
            packing: yes(),
            learning_rate,
            schedule: Schedule::default(),
            warmup: 0.0,
            adamw: AdamWPlan::default(),
            clip_norm: one(),
            normaliser: Normaliser::default(),
            recompute: Recompute::default(),
            lora: None,
            save_every: 0,
        }
    }
}

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// Falls to 0 in a straight line.
    Linear,
    /// Falls to 0 along half a cosine.
    #[default]
    Cosine,
}

/// AdamW (arXiv 1711.05101); defaults are PyTorch's, except for the weight decay (0, as the paper
/// fine-tunes).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWPlan {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; matrices only, never norms and biases.
    pub weight_decay: f64,
    /// How the moments of both kinds are kept.
    pub states: StatePrecision,
}

/// How the optimiser's moments are kept between steps; computed in f32 in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StatePrecision {
    /// 8 bytes per weight.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// 4 bytes per weight: both moments in bfloat16, rounded up or down at random (`[adamw-bf16]` in
    /// docs/equations.md); tensors of fewer than 4096 weights stay in f32.
    #[serde(rename = "bf16")]
    Bf16,
    /// 2 bytes per weight: blocks of 256 with a scale each (`[adamw-8bit]` in docs/equations.md);
    /// tensors of fewer than 4096 weights stay in f32.
    #[serde(rename = "8bit")]
    Bits8,
}

impl Default for AdamWPlan {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            states: StatePrecision::F32,
        }
    }
}

/// What a step's summed, weighted loss is divided by: one number for the whole accumulated batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normaliser {
    /// The sum of the weights.
    #[default]
    SumWeights,
    /// The number of tokens whose weight is not zero.
    KeptTokens,
    /// The number of response tokens, kept or not.
    AllResponseTokens,
    /// Each example by the number of its kept tokens, then the mean over examples that have any.
    PerSequence,
}

/// Which activations are recomputed in the backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
#[schemars(with = "String")]
pub enum Recompute {
    /// `"none"`: all are kept.
    #[default]
    None,
    /// `"block"`: only each block's input is kept.
    Block,
    /// `"every N"`: only the input of every Nth block is kept.
    Every(usize),
}

impl From<Recompute> for String {
    fn from(recompute: Recompute) -> Self {
        match recompute {
            Recompute::None => "none".to_owned(),
            Recompute::Block => "block".to_owned(),
            Recompute::Every(n) => format!("every {n}"),
        }
    }
}

impl TryFrom<String> for Recompute {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "none" => Ok(Self::None),
            "block" => Ok(Self::Block),
            _ => match text.strip_prefix("every ").map(str::parse) {
                Some(Ok(n)) if n > 0 => Ok(Self::Every(n)),
                _ => Err(format!(
                    "{text:?} is no policy; write none, block or \"every N\""
                )),
            },
        }
    }
}

/// `[train.lora]`: low-rank adaptation (arXiv 2106.09685), `W + (alpha / rank) B A`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraPlan {
    /// Rank of `A` and `B`.
    pub rank: usize,
    /// Scale; the product is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Which projections, by the last part of their Hugging Face name.
    pub targets: Vec<String>,
}

impl Default for LoraPlan {
    fn default() -> Self {
        let targets = [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ];
        Self {
            rank: 16,
            alpha: 32.0,
            targets: targets.map(str::to_owned).into(),
        }
    }
}

fn default_batch_examples() -> usize {
    64
}

fn default_micro_batch_tokens() -> usize {
    8_192
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}
