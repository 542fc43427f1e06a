//! Intervals for the figures that a run reports.

use serde::{Deserialize, Serialize};
use t3s_core::CounterRng;

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The 95 % interval of a share with `successes` of `n` independent trials, `[wilson]` in
/// docs/equations.md. Of no trials at all: `0..=1`.
pub fn wilson(successes: u64, n: u64) -> Interval {
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return Interval {
            low: 0.0,
            high: 1.0,
        };
    }
    let (n, share) = (n as f64, successes as f64 / n as f64);
    let centre = share + Z * Z / (2.0 * n);
    let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    Interval {
        // The ends are reached exactly; rounding would leave 1e-18 of a chance.
        low: match successes {
            0 => 0.0,
            _ => ((centre - spread) / scale).max(0.0),
        },
        high: if share == 1.0 {
            1.0
        } else {
            ((centre + spread) / scale).min(1.0)
        },
    }
}

/// How often figures are resampled.
pub const RESAMPLES: u64 = 2000;
/// Seed of the resampling, the same for every figure: that of a run changes what is measured, not
/// how it is counted.
pub const RESAMPLING_SEED: u64 = 0;

/// The 95 % interval of an accuracy from `right[p]` right answers of `samples` to each prompt `p`,
/// `[bootstrap]` in docs/equations.md.
///
/// Answers to one prompt are not independent, so prompts are drawn, not answers. Where every prompt
/// came out alike (the resamples do not differ, and one prompt has nothing to be resampled with) it
/// is the Wilson interval over the prompts.
pub fn over_prompts(right: &[u32], samples: u32) -> Interval {
    let share = |right: &u32| f64::from(*right) / f64::from(samples.max(1));
    of_accuracy(&[right.iter().map(share).collect()])
}

/// The 95 % interval of the mean of `shares[run][prompt]`, shares of right answers of several runs
/// (seeds) to the same prompts, `[bootstrap-runs]` in docs/equations.md; for one run `[bootstrap]`.
/// Where all are alike it is the Wilson interval over the prompts, and of nothing `0..=1`.
///
/// # Panics
/// When the runs have not the same number of prompts.
pub fn of_accuracy(shares: &[Vec<f64>]) -> Interval {
    let Some(first) = shares.first().and_then(|run| run.first()) else {
        return wilson(0, 0);
    };
    let n = shares[0].len();
    if shares.iter().flatten().all(|share| share == first) {
        return wilson((first * n as f64).round() as u64, n as u64);
    }
    resampled(shares)
}

/// The 95 % interval of the mean of `differences[run][prompt]`, `[bootstrap-difference]` in
/// docs/equations.md: pairs are drawn, so that what two models have in common cancels. `None` of
/// nothing.
///
/// # Panics
/// When the runs have not the same number of prompts.
pub fn of_difference(differences: &[Vec<f64>]) -> Option<Interval> {
    differences.first()?.first()?;
    Some(resampled(differences))
}

/// Percentiles of the mean under draws of runs and, independently, of prompts: both are crossed, so
/// a run keeps all its prompts and a prompt all its runs.
fn resampled(values: &[Vec<f64>]) -> Interval {
    let (runs, prompts) = (values.len(), values[0].len());
    assert!(
        values.iter().all(|run| run.len() == prompts),
        "runs answer the same prompts"
    );
    let of_prompts = CounterRng::new(RESAMPLING_SEED, "bootstrap");
    let of_runs = CounterRng::new(RESAMPLING_SEED, "bootstrap-runs");
    let index = |rng: &CounterRng, resample, draw: usize, n: usize| {
        ((rng.uniform(resample, draw as u64) * n as f64) as usize).min(n - 1)
    };
    let mut mean_run = vec![0.0; prompts];
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|resample| {
            mean_run.fill(0.0);
            for draw in 0..runs {
                let run = &values[index(&of_runs, resample, draw, runs)];
                for (mean, value) in mean_run.iter_mut().zip(run) {
                    *mean += value / runs as f64;
                }
            }
            let sum: f64 = (0..prompts)
                .map(|draw| mean_run[index(&of_prompts, resample, draw, prompts)])
                .sum();
            sum / prompts as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((means.len() - 1) as f64 * share).round() as usize];
    Interval {
        low: at(0.025),
        high: at(0.975),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_agrees_with_published_values() {
        // R: prop.test(k, n, correct = FALSE)$conf.int
        for (k, n, low, high) in [
            (0, 10, 0.0, 0.277_532_8),
            (5, 10, 0.236_593_1, 0.763_406_9),
            (81, 263, 0.255_243_4, 0.366_159_0),
            (10, 10, 0.722_467_2, 1.0),
        ] {
            let found = wilson(k, n);
            assert!((found.low - low).abs() < 2e-4, "{k}/{n}: {found:?}");
            assert!((found.high - high).abs() < 2e-4, "{k}/{n}: {found:?}");
        }
    }

    #[test]
    fn the_bootstrap_draws_prompts_not_answers() {
        // Each prompt is answered right always or never, so four samples say no more than one.
        let right: Vec<u32> = (0..100).map(|p| if p % 2 == 0 { 4 } else { 0 }).collect();
        let found = over_prompts(&right, 4);
        let one_each = wilson(50, 100);
        assert!((found.low - one_each.low).abs() < 0.02, "{found:?}");
        assert!((found.high - one_each.high).abs() < 0.02, "{found:?}");
        assert_eq!(found, over_prompts(&right, 4));
    }

    #[test]
    fn unanimous_prompts_still_have_an_interval() {
        let found = over_prompts(&[4; 20], 4);
        assert!(found.low < 0.9 && found.high == 1.0, "{found:?}");
        assert_eq!(over_prompts(&[], 4), wilson(0, 0));
    }
}
