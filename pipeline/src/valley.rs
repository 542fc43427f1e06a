//! When a probe that is watched has its bottleneck behind it: `[valley]` in docs/equations.md.

use std::cmp::Ordering;

use t3s_core::plan::{BottleneckPlan, Tie};

use crate::{
    bottleneck::{Bottleneck, FoundBy},
    statistics::of_difference,
};

/// One measurement: the share of right answers to each of the same prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Optimiser steps done; 0 is the base.
    pub step: u64,
    /// `[prompts]`.
    pub shares: Vec<f64>,
}

/// The bottleneck, if `measured`, the base first and then in the order of their steps, shows that it
/// is behind.
///
/// It is the lowest smoothed measurement after the base, with `plan.patience` measurements (and at
/// least as many as smoothing looks ahead) after it; it has to be below the base by more than
/// `plan.minimum_drop`, and the paired 95 % interval of that drop has to be above 0.
pub fn valley(measured: &[Measured], plan: &BottleneckPlan) -> Option<Bottleneck> {
    let (base, after) = measured.split_first()?;
    let smooth = |index: usize| smoothed(measured, index + 1, plan.smoothing);
    let means: Vec<f64> = (0..after.len()).map(|index| mean(&smooth(index))).collect();
    let lower = |a: &usize, b: &usize| {
        let ties = match plan.tie {
            Tie::Earliest => a.cmp(b),
            Tie::Latest => b.cmp(a),
        };
        means[*a]
            .partial_cmp(&means[*b])
            .unwrap_or(Ordering::Equal)
            .then(ties)
    };
    let lowest = (0..after.len()).min_by(lower)?;
    let since = (after.len() - 1 - lowest) as u64;
    if since < plan.patience.max(plan.smoothing) {
        return None;
    }
    let differences: Vec<f64> = base
        .shares
        .iter()
        .zip(smooth(lowest))
        .map(|(base, low)| base - low)
        .collect();
    let drop = mean(&differences);
    let interval = of_difference(&[differences])?;
    let dropped = drop > 0.0 && drop >= plan.minimum_drop && interval.low > 0.0;
    dropped.then(|| Bottleneck {
        step: after[lowest].step,
        by: FoundBy::TrainAccuracy,
        value: Some(means[lowest]),
        base: Some(mean(&base.shares)),
        drop: Some(drop),
        drop_interval: Some(interval),
        dropped,
    })
}

/// The mean of the measurement `index` with `on_either_side` of it, as far as there are any: one
/// measurement right after the base is no valley when the base beside it is high.
fn smoothed(measured: &[Measured], index: usize, on_either_side: u64) -> Vec<f64> {
    let reach = usize::try_from(on_either_side).unwrap_or(usize::MAX);
    let last = index.saturating_add(reach).min(measured.len() - 1);
    let window = &measured[index.saturating_sub(reach)..=last];
    let mut sum = vec![0.0; window[0].shares.len()];
    for measured in window {
        for (sum, share) in sum.iter_mut().zip(&measured.shares) {
            *sum += share / window.len() as f64;
        }
    }
    sum
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use t3s_core::CounterRng;

    use super::*;

    const PROMPTS: usize = 40;

    /// Of 40 prompts, each measurement has this share right: the easiest ones.
    fn curve(shares: &[f64]) -> Vec<Measured> {
        let of = |share: f64| {
            (0..PROMPTS)
                .map(|p| f64::from(u8::from((p as f64) < (share * PROMPTS as f64).round())))
                .collect()
        };
        let measured = shares.iter().enumerate();
        measured
            .map(|(i, share)| Measured {
                step: 5 * i as u64,
                shares: of(*share),
            })
            .collect()
    }

    fn plan(smoothing: u64, patience: u64, minimum_drop: f64) -> BottleneckPlan {
        BottleneckPlan {
            watch: true,
            smoothing,
            patience,
            minimum_drop,
            ..BottleneckPlan::default()
        }
    }

    /// After how many measurements the rule stops, and where it says the bottleneck is.
    fn stop(measured: &[Measured], plan: &BottleneckPlan) -> Option<(usize, Bottleneck)> {
        (1..=measured.len()).find_map(|n| Some((n, valley(&measured[..n], plan)?)))
    }

    #[test]
    fn a_valley_is_found_when_patience_is_over() {
        let measured = curve(&[0.8, 0.6, 0.3, 0.5, 0.7, 0.8]);
        for patience in 1..=3 {
            let (n, found) = stop(&measured, &plan(0, patience, 0.0)).unwrap();
            assert_eq!((n as u64, found.step), (3 + patience, 10));
            assert!((found.drop.unwrap() - 0.5).abs() < 1e-12);
            let interval = found.drop_interval.unwrap();
            assert!(interval.low > 0.3 && interval.high < 0.7, "{interval:?}");
        }
        assert_eq!(
            stop(&measured, &plan(0, 4, 0.0)),
            None,
            "the run ends before"
        );
        assert_eq!(
            stop(&measured, &plan(0, 1, 0.6)),
            None,
            "the drop is too small"
        );
    }

    #[test]
    fn one_bad_measurement_is_no_valley_once_it_is_smoothed() {
        let spike = [0.8, 0.8, 0.4, 0.8, 0.6, 0.5, 0.45, 0.45, 0.5, 0.7, 0.8, 0.8];
        let raw = stop(&curve(&spike), &plan(0, 2, 0.0)).unwrap();
        assert_eq!(raw.1.step, 10);
        let smooth = stop(&curve(&spike), &plan(1, 2, 0.0)).unwrap();
        assert!((30..=35).contains(&smooth.1.step), "{smooth:?}");
    }

    #[test]
    fn a_drop_that_the_prompts_do_not_agree_on_is_none() {
        // As many gained as nearly lost: the mean falls a little, the pairs say nothing.
        let rng = CounterRng::new(7, "test");
        let noisy = |step: u64, share: f64| Measured {
            step,
            shares: (0..PROMPTS as u64)
                .map(|p| f64::from(u8::from(rng.uniform(step, p) < share)))
                .collect(),
        };
        let measured: Vec<_> = (0..6).map(|k| noisy(5 * k, 0.5)).collect();
        assert_eq!(stop(&measured, &plan(0, 2, 0.0)), None);
    }

    #[test]
    fn ties_follow_the_plan() {
        let measured = curve(&[0.8, 0.3, 0.3, 0.5, 0.6, 0.7]);
        let mut plan = plan(0, 2, 0.0);
        assert_eq!(stop(&measured, &plan).unwrap().1.step, 5);
        plan.tie = Tie::Latest;
        assert_eq!(stop(&measured, &plan).unwrap().1.step, 10);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_never_falls_below_the_base_never_stops(
            mut shares in prop::collection::vec(0.0..1.0_f64, 2..12),
            smoothing in 0_u64..3,
            patience in 1_u64..4,
        ) {
            shares.sort_by(f64::total_cmp);
            prop_assert_eq!(stop(&curve(&shares), &plan(smoothing, patience, 0.0)), None);
        }

        #[test]
        fn a_clean_valley_is_found_where_it_is(
            fall in 1_usize..5,
            depth in 0.3..0.7_f64,
            patience in 1_u64..4,
        ) {
            // From 0.9 down in `fall` measurements, and up again for as long as it takes.
            let down = (0..=fall).map(|k| 0.9 - depth * k as f64 / fall as f64);
            let up = (1..=5).map(|k| 0.9 - depth + depth * f64::from(k) / 5.0);
            let shares: Vec<f64> = down.chain(up).collect();
            let (n, found) = stop(&curve(&shares), &plan(0, patience, 0.1)).unwrap();
            prop_assert_eq!(found.step, 5 * fall as u64);
            prop_assert_eq!(n as u64, fall as u64 + 1 + patience);
        }

        #[test]
        fn asking_for_more_never_stops_earlier(
            shares in prop::collection::vec(0.0..1.0_f64, 3..14),
            patience in 1_u64..4,
            minimum in 0.0..0.5_f64,
        ) {
            let measured = curve(&shares);
            let when = |plan: &BottleneckPlan| stop(&measured, plan).map_or(usize::MAX, |s| s.0);
            let first = when(&plan(0, patience, minimum));
            prop_assert!(when(&plan(0, patience + 1, minimum)) > first || first == usize::MAX);
            prop_assert!(when(&plan(0, patience, minimum + 0.1)) >= first);
        }
    }
}
