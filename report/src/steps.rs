//! Curves over optimiser steps, short enough for a page: a run may have any number of steps.

use t3s_pipeline::events::StepEvent;

/// Most points of a curve.
const POINTS: usize = 300;

/// Some neighbouring steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// The last of them.
    pub step: u64,
    /// Mean loss.
    pub loss: f64,
    /// Mean loss of kept tokens; of runs of earlier versions, the weighted loss.
    pub kept: f64,
    /// Mean loss of dropped tokens, over the steps in which it was measured.
    pub dropped: Option<f64>,
}

/// The steps as points, and how many steps each is the mean of.
pub fn curve(steps: &[StepEvent]) -> (Vec<Point>, usize) {
    let every = steps.len().div_ceil(POINTS).max(1);
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
        (n > 0).then(|| sum / f64::from(n))
    };
    let points = steps.chunks(every).map(|steps| Point {
        step: steps.last().map_or(0, |step| step.step),
        loss: mean(&mut steps.iter().map(|s| s.loss)).unwrap_or(f64::NAN),
        kept: mean(&mut steps.iter().map(|s| s.kept_loss.unwrap_or(s.loss))).unwrap_or(f64::NAN),
        dropped: mean(&mut steps.iter().filter_map(|s| s.dropped_loss)),
    });
    (points.collect(), every)
}

/// The sentence that says of how many steps a point is the mean; empty for one.
pub fn caption(every: usize) -> String {
    match every {
        1 => String::new(),
        every => format!(" Each point is the mean of {every} steps."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> StepEvent {
        serde_json::from_value(serde_json::json!({
            "stage": "train", "step": step, "steps": 1, "epoch": 0.0, "loss": step,
            "dropped_loss": step.is_multiple_of(10).then_some(step), "learning_rate": 0.0,
            "grad_norm": 0.0, "tokens": 0, "response_tokens": 0, "kept_tokens": 0, "seconds": 0.0,
            "tokens_per_second": 0.0, "peak_memory": null,
        }))
        .unwrap()
    }

    #[test]
    fn few_steps_are_points_and_many_are_means() {
        let few: Vec<StepEvent> = (1..=300).map(step).collect();
        let (points, every) = curve(&few);
        assert_eq!((points.len(), every), (300, 1));
        assert_eq!((points[9].loss, points[9].dropped), (10.0, Some(10.0)));
        assert_eq!(points[10].dropped, None);
        let many: Vec<StepEvent> = (1..=3001).map(step).collect();
        let (points, every) = curve(&many);
        assert_eq!((points.len(), every), (273, 11));
        assert_eq!((points[0].step, points[0].loss), (11, 6.0));
        assert_eq!(points.last().map(|p| p.step), Some(3001));
        assert_eq!(curve(&[]).0, []);
    }
}
