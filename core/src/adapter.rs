//! The trait of a model adapter: a model family as data.

use serde::{Deserialize, Serialize};

use crate::{ComponentError, DecoderSpec, Objective};

/// A parsed Hugging Face `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct HfConfig(pub serde_json::Map<String, serde_json::Value>);

impl HfConfig {
    /// The family, e.g. `"qwen3"`.
    pub fn model_type(&self) -> Option<&str> {
        self.0.get("model_type")?.as_str()
    }
}

/// How a family turns a prompt into an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
#[non_exhaustive]
pub enum DecodeRule {
    /// One token after the other, sampled from the last row's logits.
    LeftToRight,
    /// Block after block of masked positions, each filled over several passes (`[denoising]` in
    /// docs/equations.md).
    Blocks(BlockDecoding),
}

impl DecodeRule {
    /// How many tokens are written before the next are begun: 1, or a block.
    pub fn unit(&self) -> usize {
        match self {
            Self::LeftToRight => 1,
            Self::Blocks(rule) => rule.block as usize,
        }
    }

    /// An id that no text holds, where there is one: the mask token.
    pub fn reserved(&self) -> Option<u32> {
        match self {
            Self::LeftToRight => None,
            Self::Blocks(rule) => Some(rule.mask_id),
        }
    }

    /// The same rule for a model with fewer ids, as is timed in place of a large one.
    #[must_use]
    pub fn within(&self, vocab: usize) -> Self {
        match self {
            Self::LeftToRight => Self::LeftToRight,
            Self::Blocks(rule) => Self::Blocks(BlockDecoding {
                mask_id: rule.mask_id.min(vocab.saturating_sub(1) as u32),
                ..rule.clone()
            }),
        }
    }
}

/// How masked positions are filled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDecoding {
    /// The id that stands for a masked token.
    pub mask_id: u32,
    /// Tokens per block.
    pub block: u32,
    /// Passes per block at most; pass `s` of `steps` fills its share of the block's masked positions
    /// at least.
    pub steps: u32,
    /// A position whose token has at least this probability is filled at once; above 1, only the
    /// schedule fills.
    pub threshold: f64,
    /// What sees what.
    pub attention: DecodeAttention,
    /// When an end token may be written.
    #[serde(default, skip_serializing_if = "EndTokens::is_free")]
    pub end_tokens: EndTokens,
    /// Scale `s` of classifier-free guidance: every pass also reads the canvas with the prompt
    /// masked, and logits become `without + (1 + s) (with - without)` (arXiv 2502.09992). At 0 there
    /// is one canvas. For [`DecodeAttention::Bidirectional`] only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub guidance: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// When an end token may be written: what LLaDA's published sampler has two switches for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndTokens {
    /// Like any other.
    #[default]
    Free,
    /// Where a pass has to write it because nothing else is left to write, however sure the model is.
    Last,
    /// Not at all: every answer has the full length.
    Never,
}

impl EndTokens {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_free(&self) -> bool {
        *self == Self::Free
    }
}

/// What sees what while masked positions are filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecodeAttention {
    /// Blocks are counted from the prompt's start; a block sees itself and those before it, whose
    /// keys and values are kept.
    BlockCausal,
    /// Everything sees everything, the whole answer being masked at first; blocks are counted from
    /// the answer's start. Every pass reads everything.
    Bidirectional,
}

/// Options that a `config.json` decides: what `[student.objective]` and `[student.decode]` say goes
/// before them, key by key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FamilyOptions {
    /// For [`ModelAdapter::objective`].
    pub objective: toml::Table,
    /// For [`ModelAdapter::decode`].
    pub decode: toml::Table,
}

/// A model family, as data: how a `config.json` maps to a decoder, how a batch is corrupted,
/// aligned, attended and weighted, how it decodes. No method has a default.
pub trait ModelAdapter: Send + Sync {
    /// Is this `config.json` of the adapter's family?
    fn claims(&self, config: &HfConfig) -> bool;

    /// The decoder that `config` describes.
    ///
    /// # Errors
    /// Names the key that the adapter does not fully understand.
    fn decoder(&self, config: &HfConfig) -> Result<DecoderSpec, ComponentError>;

    /// The options that `config` decides, e.g. which id is the mask token.
    ///
    /// # Errors
    /// Names the key whose value makes no sense.
    fn options(&self, config: &HfConfig) -> Result<FamilyOptions, ComponentError>;

    /// The training objective, configured by the plan's `[student.objective]` table.
    ///
    /// # Errors
    /// Names the option that was refused.
    fn objective(&self, options: &toml::Table) -> Result<Box<dyn Objective>, ComponentError>;

    /// How the family generates, configured by the plan's `[student.decode]` table.
    ///
    /// # Errors
    /// Names the option that was refused.
    fn decode(&self, options: &toml::Table) -> Result<DecodeRule, ComponentError>;
}
