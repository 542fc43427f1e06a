//! The trend of a token's confidence over all checkpoints: `Delta c` without a bottleneck.

use serde::{Deserialize, Serialize};
use t3s_core::{ComponentError, ConfidenceSignal, ObservableRef, TokenView, register_signal};

use super::trajectory;

/// `[trajectory-slope]` in docs/equations.md, nats per optimiser step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrajectorySlope {
    /// The first checkpoint that counts, in optimiser steps; 0: the base.
    pub from: u64,
    /// The last one; without it the probe's last.
    pub to: Option<u64>,
}

register_signal!(
    "trajectory-slope",
    TrajectorySlope,
    "slope of the token's log-probability over the probe's checkpoints, nats per step (from, to)"
);

impl ConfidenceSignal for TrajectorySlope {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![trajectory::column()]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        let checkpoints = trajectory::read(tokens, self.from, self.to)?;
        let n = checkpoints.len() as f64;
        let mean = checkpoints.iter().map(|(s, _)| *s as f64).sum::<f64>() / n;
        let spread: f64 = checkpoints
            .iter()
            .map(|(s, _)| (*s as f64 - mean).powi(2))
            .sum();
        for (row, out) in out.iter_mut().enumerate() {
            let product: f64 = checkpoints
                .iter()
                .map(|(s, logp)| (*s as f64 - mean) * f64::from(logp[row]))
                .sum();
            *out = (product / spread) as f32;
        }
        Ok(())
    }
}
