//! The options that diffusion families share: `[student.objective]` and `[student.decode]`.

use serde::Deserialize;
use t3s_core::{
    ComponentError, DecodeRule, HfConfig,
    adapter::{BlockDecoding, DecodeAttention, FamilyOptions},
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

/// Options of [`BlockDiffusion`], with LLaDA 2.0's defaults.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BlockObjectiveOptions {
    mask_id: Option<u32>,
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
    ) -> Result<BlockDiffusion, ComponentError> {
        let options: Self = read_options(options)?;
        let [low, high] = options.ratio;
        let objective = BlockDiffusion {
            corruption: Corruption {
                mask_id: options.mask_id.unwrap_or(mask_id),
                ratio: RatioRange { low, high },
                loss_weight: options.loss_weight,
            },
            block: options.block,
            complementary: options.complementary,
            pad_to_block: options.pad_to_block,
        };
        objective.check()?;
        Ok(objective)
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
}

impl BlockDecodeOptions {
    /// LLaDA 2.0's rule: blocks of 32, tokens of probability 0.95 at once.
    pub(crate) fn read(options: &toml::Table, mask_id: u32) -> Result<DecodeRule, ComponentError> {
        Self::rule(options, mask_id, 0.95, DecodeAttention::BlockCausal)
    }

    /// LLaDA's rule: as many of the most confident tokens per pass as the schedule says.
    pub(crate) fn bidirectional(
        options: &toml::Table,
        mask_id: u32,
    ) -> Result<DecodeRule, ComponentError> {
        // No probability is above 1.
        Self::rule(options, mask_id, 2.0, DecodeAttention::Bidirectional)
    }

    fn rule(
        options: &toml::Table,
        mask_id: u32,
        threshold: f64,
        attention: DecodeAttention,
    ) -> Result<DecodeRule, ComponentError> {
        let options: Self = read_options(options)?;
        let block = options.block.unwrap_or(32);
        let rule = BlockDecoding {
            mask_id: options.mask_id.unwrap_or(mask_id),
            block,
            steps: options.steps.unwrap_or(block),
            threshold: options.threshold.unwrap_or(threshold),
            attention,
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
        Ok(DecodeRule::Blocks(rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> toml::Table {
        text.parse().expect("TOML")
    }

    #[test]
    fn defaults_are_the_families() {
        let objective = BlockObjectiveOptions::read(&table(""), 9).expect("defaults");
        assert_eq!((objective.block, objective.corruption.mask_id), (32, 9));
        let objective = MaskedObjectiveOptions::read(&table("mask_id = 4"), 9).expect("read");
        assert_eq!(objective.corruption.mask_id, 4);
        assert_eq!(objective.corruption.loss_weight, LossWeight::InverseRatio);
        let DecodeRule::Blocks(rule) =
            BlockDecodeOptions::read(&table("block = 8"), 9).expect("read")
        else {
            panic!("another rule")
        };
        assert_eq!((rule.block, rule.steps, rule.threshold), (8, 8, 0.95));
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
        ] {
            assert!(
                BlockObjectiveOptions::read(&table(text), 9).is_err(),
                "{text}"
            );
        }
        for text in ["block = 0", "steps = 0", "threshold = nan", "eos = 3"] {
            assert!(BlockDecodeOptions::read(&table(text), 9).is_err(), "{text}");
        }
    }
}
