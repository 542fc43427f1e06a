//! The course of the learning rate.

use t3s_core::plan::{Schedule, TrainPlan};

/// The learning rate of step `step` (from 0) of `plan`: `[schedule]` in docs/equations.md.
pub fn learning_rate(plan: &TrainPlan, step: u64) -> f64 {
    let (peak, steps) = (plan.learning_rate, plan.steps as f64);
    let warmup = (plan.warmup * steps).floor();
    let s = step as f64;
    if s < warmup {
        return peak * (s + 1.0) / warmup;
    }
    let u = ((s - warmup) / (steps - warmup).max(1.0)).min(1.0);
    peak * match plan.schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => 1.0 - u,
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * u).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, warmup: f64, steps: u64) -> Vec<f64> {
        let plan = TrainPlan {
            schedule,
            warmup,
            ..TrainPlan::new(steps, 2.0)
        };
        (0..steps).map(|step| learning_rate(&plan, step)).collect()
    }

    #[test]
    fn schedules_are_what_the_equations_say() {
        assert_eq!(rates(Schedule::Constant, 0.0, 3), [2.0, 2.0, 2.0]);
        assert_eq!(rates(Schedule::Linear, 0.0, 4), [2.0, 1.5, 1.0, 0.5]);
        assert_eq!(rates(Schedule::Linear, 0.5, 4), [1.0, 2.0, 2.0, 1.0]);
        let cosine = rates(Schedule::Cosine, 0.25, 4);
        let expected = [2.0, 2.0, 1.5, 0.5];
        for (found, expected) in cosine.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{cosine:?}");
        }
        assert_eq!(rates(Schedule::Cosine, 1.0, 2), [1.0, 2.0]);
    }
}
