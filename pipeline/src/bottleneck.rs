//! Which checkpoint is the imitation bottleneck: a rule over a curve, `[bottleneck]` in
//! docs/equations.md.

use serde::{Deserialize, Serialize};
use t3s_core::plan::{BottleneckPlan, BottleneckRule, Tie};

use crate::statistics::Interval;

/// One checkpoint's value under a rule: higher is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Optimiser steps done; 0 is the base.
    pub step: u64,
    /// Accuracy (a share of 1), or mean log-probability (nats).
    pub value: f64,
}

/// The bottleneck, and how it was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bottleneck {
    /// The probe's step.
    pub step: u64,
    /// How it was found.
    pub by: FoundBy,
    /// The curve's value there; absent for a step that was named by hand.
    pub value: Option<f64>,
    /// The curve's value at step 0.
    pub base: Option<f64>,
    /// `base - value`.
    pub drop: Option<f64>,
    /// Its 95 % interval over the prompts that both were asked; only of a probe that was watched.
    pub drop_interval: Option<Interval>,
    /// Whether the drop is at least the plan's `minimum_drop`, and above zero. True for a step
    /// that was named by hand.
    pub dropped: bool,
}

/// How a bottleneck was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    /// Lowest accuracy of generated answers on the training prompts.
    TrainAccuracy,
    /// Lowest mean log-probability of the answers' tokens.
    AnswerTokenLogp,
    /// The plan names the step.
    Step,
}

impl From<BottleneckRule> for FoundBy {
    fn from(rule: BottleneckRule) -> Self {
        match rule {
            BottleneckRule::TrainAccuracy => Self::TrainAccuracy,
            BottleneckRule::AnswerTokenLogp => Self::AnswerTokenLogp,
        }
    }
}

impl FoundBy {
    /// The plan's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TrainAccuracy => "train-accuracy",
            Self::AnswerTokenLogp => "answer-token-logp",
            Self::Step => "step",
        }
    }
}

/// The lowest point of `curve` after step 0. `None` when there is no point after step 0 with a
/// finite value.
pub fn lowest(curve: &[Point], rule: FoundBy, plan: &BottleneckPlan) -> Option<Bottleneck> {
    let after_start = || curve.iter().filter(|p| p.step > 0 && p.value.is_finite());
    let value = after_start().map(|p| p.value).min_by(f64::total_cmp)?;
    let mut equally_low = after_start().filter(|p| p.value == value).map(|p| p.step);
    let step = match plan.tie {
        Tie::Earliest => equally_low.min(),
        Tie::Latest => equally_low.by_ref().max(),
    }?;
    let base = curve.iter().find(|p| p.step == 0).map(|p| p.value);
    let drop = base.map(|base| base - value);
    Some(Bottleneck {
        step,
        by: rule,
        value: Some(value),
        base,
        drop,
        drop_interval: None,
        dropped: drop.is_some_and(|drop| drop > 0.0 && drop >= plan.minimum_drop),
    })
}

/// The bottleneck that the plan names by hand.
pub fn named(step: u64) -> Bottleneck {
    Bottleneck {
        step,
        by: FoundBy::Step,
        value: None,
        base: None,
        drop: None,
        drop_interval: None,
        dropped: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(values: &[f64]) -> Vec<Point> {
        let point = |(i, value): (usize, &f64)| Point {
            step: 5 * i as u64,
            value: *value,
        };
        values.iter().enumerate().map(point).collect()
    }

    fn find(values: &[f64], plan: &BottleneckPlan) -> Option<Bottleneck> {
        lowest(&curve(values), FoundBy::TrainAccuracy, plan)
    }

    #[test]
    fn the_lowest_point_after_the_start_is_found() {
        let plan = BottleneckPlan::default();
        let found = find(&[0.8, 0.5, 0.3, 0.6], &plan).unwrap();
        assert_eq!((found.step, found.dropped), (10, true));
        assert!((found.drop.unwrap() - 0.5).abs() < 1e-12);
        // The base itself is never the bottleneck.
        let rising = find(&[0.1, 0.5, 0.3, 0.6], &plan).unwrap();
        assert_eq!((rising.step, rising.dropped), (10, false));
        assert_eq!(find(&[0.8], &plan), None);
        assert_eq!(find(&[0.8, f64::NAN], &plan), None);
        assert_eq!(find(&[0.8, f64::NAN, 0.9], &plan).unwrap().step, 10);
    }

    #[test]
    fn ties_follow_the_plan() {
        let mut plan = BottleneckPlan::default();
        assert_eq!(find(&[0.8, 0.3, 0.5, 0.3], &plan).unwrap().step, 5);
        plan.tie = Tie::Latest;
        assert_eq!(find(&[0.8, 0.3, 0.5, 0.3], &plan).unwrap().step, 15);
    }

    #[test]
    fn a_small_drop_is_reported_as_none() {
        let plan = BottleneckPlan {
            minimum_drop: 0.1,
            ..BottleneckPlan::default()
        };
        assert!(!find(&[0.8, 0.75, 0.9], &plan).unwrap().dropped);
        assert!(find(&[0.8, 0.6, 0.9], &plan).unwrap().dropped);
        // Without a minimum an equal value is still no drop.
        assert!(
            !find(&[0.8, 0.8], &BottleneckPlan::default())
                .unwrap()
                .dropped
        );
    }
}
