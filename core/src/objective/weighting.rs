//! What the weights of tokens mean to an objective.

use serde::{Deserialize, Serialize};

/// What a token's weight means under an objective, and so what it is where nobody says anything and
/// how the data's and a selection's come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// The token's loss is multiplied by it. Nothing else decides what is trained on, and an example
    /// is the same in every draw.
    Loss,
    /// The chance that the token is masked whatever the objective's own random mask says: the union
    /// of the two is masked, and trained on.
    ForcedMask,
}

impl Weighting {
    /// The weight that changes nothing: what a token has where neither the data nor a selection says
    /// anything. Plain fine-tuning is training with it.
    pub fn neutral(self) -> f32 {
        match self {
            Self::Loss => 1.0,
            Self::ForcedMask => 0.0,
        }
    }

    /// The weight of a token to which the data gives `data` and a selection gives `chosen`: their
    /// product, or the chance that one of two independent events happens.
    pub fn combine(self, data: f32, chosen: f32) -> f32 {
        match self {
            Self::Loss => data * chosen,
            Self::ForcedMask => data + (1.0 - data) * chosen,
        }
    }

    /// How many of the corruptions of an example that differ are worth drawing, given that `asked`
    /// are asked for.
    pub fn draws(self, asked: u32) -> u32 {
        match self {
            Self::Loss => 1,
            Self::ForcedMask => asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Weighting;

    proptest! {
        #[test]
        fn the_neutral_weight_changes_nothing(data in 0.0f32..=1.0, chosen in 0.0f32..=1.0) {
            for weighting in [Weighting::Loss, Weighting::ForcedMask] {
                let neutral = weighting.neutral();
                prop_assert_eq!(weighting.combine(data, neutral), data);
                prop_assert_eq!(weighting.combine(neutral, chosen), chosen);
                let both = weighting.combine(data, chosen);
                prop_assert!((0.0..=1.0).contains(&both), "{both}");
            }
            prop_assert_eq!(Weighting::ForcedMask.combine(1.0, chosen), 1.0);
            prop_assert_eq!(Weighting::ForcedMask.combine(data, 1.0), 1.0);
            prop_assert_eq!(Weighting::Loss.combine(0.0, chosen), 0.0);
        }
    }
}
