//! A strategy that reads six columns and nothing else, so that the boundary is what costs.

use t3s_plugin::{
    ComponentError, Declaration, Scope, SelectContext, SelectionStrategy, SignalRef, TokenView,
    When, register_strategy,
};

/// The six columns.
pub const COLUMNS: [&str; 6] = ["c0", "c1", "c2", "c3", "c4", "c5"];

/// The mean of six columns.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Blend {}

register_strategy!("blend", Blend, "the mean of six columns");

impl SelectionStrategy for Blend {
    fn needs(&self) -> Vec<SignalRef> {
        COLUMNS.map(SignalRef::new).into()
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        Declaration::new(Scope::PerExample)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let columns: Vec<&[f32]> = COLUMNS
            .iter()
            .map(|name| tokens.column(name))
            .collect::<Result<_, _>>()?;
        let eligible = tokens.eligible();
        for (row, out) in out.iter_mut().enumerate() {
            let sum: f32 = columns.iter().map(|column| column[row]).sum();
            *out = if eligible[row] { sum / 6.0 } else { 0.0 };
        }
        Ok(())
    }
}
