//! The trajectory signal: how much likelier a token became.

use serde::{Deserialize, Serialize};
use t3s_core::{ComponentError, ConfidenceSignal, ObservableRef, TokenView, register_signal};

use super::At;

/// `[delta-c]` in docs/equations.md: `log p` at `to` minus `log p` at `from`, nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeltaLogp {
    /// The earlier checkpoint.
    pub from: At,
    /// The later one.
    pub to: At,
}

register_signal!(
    "delta-logp",
    DeltaLogp,
    "change of the token's log-probability between two checkpoints, nats (from, to)"
);

impl Default for DeltaLogp {
    fn default() -> Self {
        Self {
            from: At::base(),
            to: At::bottleneck(),
        }
    }
}

impl DeltaLogp {
    fn columns(&self) -> [ObservableRef; 2] {
        [&self.from, &self.to].map(|at| ObservableRef::logp(at.checkpoint()))
    }
}

impl ConfidenceSignal for DeltaLogp {
    fn needs(&self) -> Vec<ObservableRef> {
        self.columns().into()
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        let [from, to] = self.columns().map(|column| column.to_string());
        let (from, to) = (tokens.column(&from)?, tokens.column(&to)?);
        for ((out, from), to) in out.iter_mut().zip(from).zip(to) {
            *out = to - from;
        }
        Ok(())
    }
}
