//! The options that diffusion families share: `[student.objective]` and `[student.decode]`.

use serde::Deserialize;
use t3s_core::{
    ComponentError, DecodeRule, HfConfig, Objective,
    adapter::{BlockDecoding, DecodeAttention, EndTokens, FamilyOptions},
    objective::{BlockDiffusion, Corruption, LossWeight, MaskedDiffusion, RatioRange},
    registry::read_options,
};

use crate::config_keys::ConfigKeys;

/// The mask token where `config.json` names it.
///
/// # Errors
/// When `mask_token_id` is no id. Whether it is in the vocabulary, `decoder` has checked.
pub(crate) fn mask_option(config: &HfConfig) -> Result<FamilyOptions, ComponentError> {
    let keys = ConfigKeys::new(config);
    let mut options = FamilyOptions::default();
    if let Some(id) = keys.ids("mask_token_id", usize::MAX)?.first() {
        for table in [&mut options.objective, &mut options.decode] {
            table.insert("mask_id".to_owned(), i64::from(*id).into());
        }
    }
    Ok(options)
}

/// What sees what, in training and in decoding, where a family allows both.
#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Attention {
    /// A block sees itself and those before it.
    #[default]
    Blocks,
    /// Everything sees everything.
    Full,
}

/// Options of [`BlockDiffusion`], or of [`MaskedDiffusion`] with `attention = "full"`, with LLaDA
/// 2.0's defaults.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BlockObjectiveOptions {
    mask_id: Option<u32>,
    attention: Attention,
    block: u32,
    ratio: [f64; 2],
    loss_weight: LossWeight,
    complementary: bool,
    pad_to_block: bool,
}

impl Default for BlockObjectiveOptions {
    fn default() -> Self {
        Self {
            mask_id: None,
            attention: Attention::Blocks,
            block: 32,
            ratio: [0.3, 0.8],
            loss_weight: LossWeight::One,
            complementary: false,
            pad_to_block: false,
        }
    }
}

impl BlockObjectiveOptions {
    pub(crate) fn read(
        options: &toml::Table,
        mask_id: u32,
    ) -> Result<Box<dyn Objective>, ComponentError> {
        let options: Self = read_options(options)?;
        let [low, high] = options.ratio;
        let corruption = Corruption {
            mask_id: options.mask_id.unwrap_or(mask_id),
            ratio: RatioRange { low, high },
            loss_weight: options.loss_weight,
        };
        if options.attention == Attention::Full {
            if options.complementary {
                let message = "a second copy needs attention = \"blocks\"";
                return Err(ComponentError::option("complementary", message));
            }
            if options.block == 0 {
                return Err(ComponentError::option("block", "0; write at least 1"));
            }
            corruption.check()?;
            return Ok(Box::new(MaskedDiffusion {
                corruption,
                pad_to_multiple_of: if options.pad_to_block {
                    options.block
                } else {
                    1
                },
            }));
        }
        let objective = BlockDiffusion {
            corruption,
            block: options.block,
            complementary: options.complementary,
            pad_to_block: options.pad_to_block,
        };
        objective.check()?;
        Ok(Box::new(objective))
    }
}

/// Options of [`MaskedDiffusion`], with LLaDA's defaults.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MaskedObjectiveOptions {
    mask_id: Option<u32>,
    ratio: [f64; 2],
    loss_weight: LossWeight,
    pad_to_multiple_of: u32,
}

impl Default for MaskedObjectiveOptions {
    fn default() -> Self {
        Self {
            mask_id: None,
            ratio: [1e-3, 1.0],
            loss_weight: LossWeight::InverseRatio,
            pad_to_multiple_of: 1,
        }
    }
}

impl MaskedObjectiveOptions {
    pub(crate) fn read(
        options: &toml::Table,
        mask_id: u32,
    ) -> Result<MaskedDiffusion, ComponentError> {
        let options: Self = read_options(options)?;
        let [low, high] = options.ratio;
        let corruption = Corruption {
            mask_id: options.mask_id.unwrap_or(mask_id),
            ratio: RatioRange { low, high },
            loss_weight: options.loss_weight,
        };
        corruption.check()?;
        Ok(MaskedDiffusion {
            corruption,
            pad_to_multiple_of: options.pad_to_multiple_of,
        })
    }
}

/// Options of [`BlockDecoding`].
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BlockDecodeOptions {
    mask_id: Option<u32>,
    block: Option<u32>,
    steps: Option<u32>,
    threshold: Option<f64>,
    end_tokens: EndTokens,
    attention: Option<Attention>,
    guidance: f64,
}

impl BlockDecodeOptions {
    /// LLaDA 2.0's rule: blocks of 32, tokens of probability 0.95 at once.
    pub(crate) fn read(options: &toml::Table, mask_id: u32) -> Result<DecodeRule, ComponentError> {
        let read: Self = read_options(options)?;
        read.rule(mask_id, 0.95, Attention::Blocks)
    }

    /// LLaDA's rule: as many of the most confident tokens per pass as the schedule says.
    pub(crate) fn bidirectional(
        options: &toml::Table,
        mask_id: u32,
    ) -> Result<DecodeRule, ComponentError> {
        let read: Self = read_options(options)?;
        if read.attention == Some(Attention::Blocks) {
            let message = "this family was trained with full attention alone; leave it out";
            return Err(ComponentError::option("attention", message));
        }
        // No probability is above 1.
        read.rule(mask_id, 2.0, Attention::Full)
    }

    fn rule(
        self,
        mask_id: u32,
        threshold: f64,
        attention: Attention,
    ) -> Result<DecodeRule, ComponentError> {
        let options = self;
        let attention = match options.attention.unwrap_or(attention) {
            Attention::Blocks => DecodeAttention::BlockCausal,
            Attention::Full => DecodeAttention::Bidirectional,
        };
        let block = options.block.unwrap_or(32);
        let rule = BlockDecoding {
            mask_id: options.mask_id.unwrap_or(mask_id),
            block,
            steps: options.steps.unwrap_or(block),
            threshold: options.threshold.unwrap_or(threshold),
            attention,
            end_tokens: options.end_tokens,
            guidance: options.guidance,
        };
        for (key, value) in [("block", rule.block), ("steps", rule.steps)] {
            if value == 0 {
                return Err(ComponentError::option(key, "0; write at least 1"));
            }
        }
        if rule.threshold.is_nan() || rule.threshold < 0.0 {
            return Err(ComponentError::option(
                "threshold",
                format!("{}; write a probability", rule.threshold),
            ));
        }
        if !rule.guidance.is_finite() {
            return Err(ComponentError::option("guidance", "write a finite number"));
        }
        if rule.guidance != 0.0 && attention == DecodeAttention::BlockCausal {
            let message = "a canvas with the prompt masked needs full attention; leave it out";
            return Err(ComponentError::option("guidance", message));
        }
        Ok(DecodeRule::Blocks(rule))
    }
}

#[cfg(test)]
mod tests {
    use t3s_core::AttentionPattern;

    use super::*;

    fn table(text: &str) -> toml::Table {
        text.parse().expect("TOML")
    }

    #[test]
    fn defaults_are_the_families() {
        let attention = |text: &str| {
            let objective = BlockObjectiveOptions::read(&table(text), 9).expect("read");
            objective.attention()
        };
        let blocks = |block| AttentionPattern::BlockDiffusion { block, views: 1 };
        assert_eq!(attention(""), blocks(32));
        assert_eq!(
            attention("attention = \"full\""),
            AttentionPattern::Bidirectional
        );
        let objective = MaskedObjectiveOptions::read(&table("mask_id = 4"), 9).expect("read");
        assert_eq!(objective.corruption.mask_id, 4);
        assert_eq!(objective.corruption.loss_weight, LossWeight::InverseRatio);
        let DecodeRule::Blocks(rule) =
            BlockDecodeOptions::read(&table("block = 8"), 9).expect("read")
        else {
            panic!("another rule")
        };
        assert_eq!((rule.block, rule.steps, rule.threshold), (8, 8, 0.95));
        assert_eq!(rule.attention, DecodeAttention::BlockCausal);
        let options = table("attention = \"full\"\nend_tokens = \"last\"\nguidance = 1.5");
        for read in [BlockDecodeOptions::read, BlockDecodeOptions::bidirectional] {
            let Ok(DecodeRule::Blocks(rule)) = read(&options, 9) else {
                panic!("another rule")
            };
            assert_eq!(rule.attention, DecodeAttention::Bidirectional);
            assert_eq!((rule.end_tokens, rule.guidance), (EndTokens::Last, 1.5));
        }
        let options = table("attention = \"blocks\"");
        assert!(BlockDecodeOptions::bidirectional(&options, 9).is_err());
    }

    #[test]
    fn bad_options_are_refused() {
        for text in [
            "block = 0",
            "ratio = [0.0, 0.5]",
            "ratio = [0.9, 0.5]",
            "loss_weight = \"two\"",
            "complementary = true\nratio = [0.3, 1.0]",
            "blocks = 3",
            "attention = \"causal\"",
            "attention = \"full\"\ncomplementary = true",
        ] {
            assert!(
                BlockObjectiveOptions::read(&table(text), 9).is_err(),
                "{text}"
            );
        }
        for text in [
            "block = 0",
            "steps = 0",
            "threshold = nan",
            "eos = 3",
            "guidance = 1.0",
            "attention = \"full\"\nguidance = inf",
            "end_tokens = \"soon\"",
        ] {
            assert!(BlockDecodeOptions::read(&table(text), 9).is_err(), "{text}");
        }
    }
}
