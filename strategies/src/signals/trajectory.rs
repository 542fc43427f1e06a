//! Every checkpoint's confidence, in the order of training.

use t3s_core::{CheckpointRef, ComponentError, Observable, ObservableRef, TokenView};

/// What every signal over the trajectory reads.
pub(super) fn column() -> ObservableRef {
    ObservableRef::logp(CheckpointRef::EveryStep)
}

/// (optimiser steps, `logp` after them `[tokens]`) of the checkpoints `from..=to`, ascending; at
/// least two.
pub(super) fn read<'t>(
    tokens: &TokenView<'t>,
    from: u64,
    to: Option<u64>,
) -> Result<Vec<(u64, &'t [f32])>, ComponentError> {
    let mut steps = Vec::new();
    let mut available = Vec::new();
    for name in tokens.column_names() {
        let Ok(ObservableRef {
            observable: Observable::Logp,
            at: CheckpointRef::Step(step),
        }) = name.parse()
        else {
            continue;
        };
        available.push(step);
        if step >= from && to.is_none_or(|to| step <= to) {
            steps.push((step, tokens.column(name)?));
        }
    }
    steps.sort_unstable_by_key(|(step, _)| *step);
    if steps.len() < 2 {
        available.sort_unstable();
        let to = to.map_or_else(String::new, |to| to.to_string());
        return Err(ComponentError::Failed(format!(
            "a trajectory has at least two checkpoints; of {from}..={to} there are {}: steps with \
             logp are {available:?}",
            steps.len()
        )));
    }
    Ok(steps)
}
