//! A strategy that reads a column: it keeps what fell by the bottleneck.

use t3s_plugin::{
    register_strategy, ComponentError, Declaration, Scope, SelectContext, SelectionStrategy,
    SignalRef, TokenView, When,
};

const DELTA: &str = "delta-logp";

#[derive(schemars::JsonSchema, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Fell {}

register_strategy!("fell", Fell, "what fell by the bottleneck");

impl SelectionStrategy for Fell {
    fn needs(&self) -> Vec<SignalRef> {
        vec![SignalRef::new(DELTA)]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        Declaration::new(Scope::PerExample).falling(DELTA)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let delta = tokens.numbers(DELTA)?;
        for row in 0..out.len() {
            out[row] = f32::from(u8::from(tokens.eligible()[row] && delta[row] < 0.0));
        }
        Ok(())
    }
}
