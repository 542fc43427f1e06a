//! How steadily a token's confidence rises.

use serde::{Deserialize, Serialize};
use t3s_core::{ComponentError, ConfidenceSignal, ObservableRef, TokenView, register_signal};

use super::trajectory;

/// `[trajectory-rise]` in docs/equations.md, from -1 (falls every time) to 1 (rises every time).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrajectoryRise {
    /// The first checkpoint that counts, in optimiser steps; 0: the base.
    pub from: u64,
    /// The last one; without it the probe's last.
    pub to: Option<u64>,
}

register_signal!(
    "trajectory-rise",
    TrajectoryRise,
    "rises less falls of the token's log-probability from checkpoint to checkpoint, as a share \
     (from, to)"
);

impl ConfidenceSignal for TrajectoryRise {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![trajectory::column()]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        let checkpoints = trajectory::read(tokens, self.from, self.to)?;
        let changes = (checkpoints.len() - 1) as f32;
        for (row, out) in out.iter_mut().enumerate() {
            let signs = checkpoints.windows(2).map(|pair| {
                let (before, after) = (pair[0].1[row], pair[1].1[row]);
                i32::from(after > before) - i32::from(after < before)
            });
            *out = signs.sum::<i32>() as f32 / changes;
        }
        Ok(())
    }
}
