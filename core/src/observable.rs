//! What can be recorded per token, at which checkpoint, and how columns are named.

use std::{fmt, str::FromStr};

use crate::ComponentError;

/// A per-token quantity that the engine's head computes in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Observable {
    /// `log p(y_t | y_<t, x)`, nats.
    Logp,
    /// `-sum_v p(v) log p(v)` of the predictive distribution, nats.
    Entropy,
    /// Number of logits strictly larger than the target's (0 = arg max).
    Rank,
    /// Frobenius norm of the token's last-layer gradient, `|p - e_y| * |h|`.
    GradNorm,
    /// Johnson-Lindenstrauss sketch of that gradient, `k` floats per token.
    Sketch,
}

impl Observable {
    /// Every observable, in the order of the store's columns.
    pub const ALL: [Self; 5] = [
        Self::Logp,
        Self::Entropy,
        Self::Rank,
        Self::GradNorm,
        Self::Sketch,
    ];

    /// The column name, e.g. `grad_norm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Logp => "logp",
            Self::Entropy => "entropy",
            Self::Rank => "rank",
            Self::GradNorm => "grad_norm",
            Self::Sketch => "sketch",
        }
    }
}

/// At which weights an observable is measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum CheckpointRef {
    /// The student before training, `theta_0`.
    Base,
    /// The imitation bottleneck of the probe, `theta_b`.
    Bottleneck,
    /// The probe's last checkpoint, `theta_f`.
    Final,
    /// The probe's checkpoint after this many optimiser steps.
    Step(u64),
    /// Every checkpoint of the probe, base included: one column each.
    EveryStep,
    /// Another model of the same tokenizer, named in the plan.
    Reference,
}

impl fmt::Display for CheckpointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base"),
            Self::Bottleneck => f.write_str("bottleneck"),
            Self::Final => f.write_str("final"),
            Self::Step(step) => write!(f, "step:{step}"),
            Self::EveryStep => f.write_str("step:*"),
            Self::Reference => f.write_str("reference"),
        }
    }
}

impl FromStr for CheckpointRef {
    type Err = ComponentError;

    fn from_str(text: &str) -> Result<Self, ComponentError> {
        Ok(match text {
            "base" => Self::Base,
            "bottleneck" => Self::Bottleneck,
            "final" => Self::Final,
            "step:*" => Self::EveryStep,
            "reference" => Self::Reference,
            _ => match text.strip_prefix("step:").map(str::parse) {
                Some(Ok(step)) => Self::Step(step),
                _ => {
                    return Err(ComponentError::Failed(format!(
                        "unknown checkpoint {text:?}; known: base, bottleneck, final, step:N, \
                         step:*, reference"
                    )));
                }
            },
        })
    }
}

/// One recorded column: an observable at a checkpoint, written `logp@base`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObservableRef {
    /// What is measured.
    pub observable: Observable,
    /// At which weights.
    pub at: CheckpointRef,
}

impl ObservableRef {
    /// `observable@at`.
    pub fn new(observable: Observable, at: CheckpointRef) -> Self {
        Self { observable, at }
    }

    /// The token's log-probability at `at`, nats.
    pub fn logp(at: CheckpointRef) -> Self {
        Self::new(Observable::Logp, at)
    }
}

impl fmt::Display for ObservableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.observable.name(), self.at)
    }
}

impl FromStr for ObservableRef {
    type Err = ComponentError;

    fn from_str(text: &str) -> Result<Self, ComponentError> {
        let (name, at) = text.split_once('@').ok_or_else(|| {
            ComponentError::Failed(format!(
                "{text:?} is not a column; write OBSERVABLE@CHECKPOINT, e.g. logp@base"
            ))
        })?;
        let observable = Observable::ALL
            .into_iter()
            .find(|o| o.name() == name)
            .ok_or_else(|| {
                ComponentError::Failed(format!(
                    "unknown observable {name:?}; known: {}",
                    Observable::ALL.map(Observable::name).join(", ")
                ))
            })?;
        Ok(Self {
            observable,
            at: at.parse()?,
        })
    }
}

/// Which signal a strategy reads, and the name of its column in the strategy's view.
///
/// Three spellings, tried in this order when a plan is resolved:
/// 1. the id of a `[signals.ID]` table of the plan;
/// 2. `NAME@CHECKPOINT`: the signal `NAME` with the option `at = "CHECKPOINT"`, e.g. `logp@base`;
/// 3. `NAME`: the signal `NAME` with its default options, e.g. `delta-logp`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignalRef(String);

impl SignalRef {
    /// A reference to the signal `id`.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The id, which is also the column's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SignalRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
