//! An example plugin: a signal over `logp@step:*`, every checkpoint of the probe. It is the slope of
//! the least-squares line through a token's log-probabilities, nats per optimiser step.
//!
//! The built-in `trajectory-slope` is the same, so this one has another name.

use t3s_plugin::{
    CheckpointRef, ComponentError, ConfidenceSignal, ObservableRef, TokenView, register_signal,
};

/// The slope; no options.
#[derive(Debug, Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FittedSlope {}

register_signal!(
    "fitted-slope",
    FittedSlope,
    "slope of the log-probability over the probe's checkpoints, nats per step"
);

const COLUMNS: &str = "logp@step:";

impl ConfidenceSignal for FittedSlope {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![ObservableRef::logp(CheckpointRef::EveryStep)]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        let mut steps = Vec::new();
        for name in tokens.column_names() {
            let step = name.strip_prefix(COLUMNS).map(str::parse::<u32>);
            if let Some(Ok(step)) = step {
                steps.push((f64::from(step), tokens.numbers(name)?));
            }
        }
        if steps.len() < 2 {
            return Err(ComponentError::MissingColumn {
                column: format!("{COLUMNS}* (two of them)"),
                available: tokens.column_names().map(str::to_owned).collect(),
            });
        }
        // Columns come by name, and sums must not depend on that.
        steps.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mean = steps.iter().map(|(step, _)| step).sum::<f64>() / steps.len() as f64;
        let spread: f64 = steps.iter().map(|(step, _)| (step - mean).powi(2)).sum();
        for (row, out) in out.iter_mut().enumerate() {
            let rise: f64 = steps
                .iter()
                .map(|(step, logp)| (step - mean) * f64::from(logp[row]))
                .sum();
            *out = (rise / spread) as f32;
        }
        Ok(())
    }
}

#[test]
fn laws_hold() {
    t3s_plugin::laws::assert_signal(|| Box::new(FittedSlope {}));
}
