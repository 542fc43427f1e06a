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

/// The 95 % interval of an accuracy from `right[p]` right answers of `samples` to each prompt `p`,
/// `[bootstrap]` in docs/equations.md.
///
/// Answers to one prompt are not independent, so prompts are drawn, not answers: percentiles of
/// 2000 resamples of the prompts. Where every prompt came out alike (the resamples do not differ,
/// and one prompt has nothing to be resampled with) it is the Wilson interval over the prompts.
pub fn over_prompts(right: &[u32], samples: u32, seed: u64) -> Interval {
    const RESAMPLES: u64 = 2000;
    let n = right.len() as u64;
    let answers = n * u64::from(samples);
    if answers == 0 {
        return wilson(0, 0);
    }
    if right.iter().all(|r| *r == right[0]) {
        let share = f64::from(right[0]) / f64::from(samples);
        return wilson((share * n as f64).round() as u64, n);
    }
    let rng = CounterRng::new(seed, "bootstrap");
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|resample| {
            let sum: u64 = (0..n)
                .map(|draw| {
                    let prompt = (rng.uniform(resample, draw) * n as f64) as usize;
                    u64::from(right[prompt.min(right.len() - 1)])
                })
                .sum();
            sum as f64 / answers as f64
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
        let found = over_prompts(&right, 4, 1);
        let one_each = wilson(50, 100);
        assert!((found.low - one_each.low).abs() < 0.02, "{found:?}");
        assert!((found.high - one_each.high).abs() < 0.02, "{found:?}");
        assert_eq!(found, over_prompts(&right, 4, 1));
    }

    #[test]
    fn unanimous_prompts_still_have_an_interval() {
        let found = over_prompts(&[4; 20], 4, 1);
        assert!(found.low < 0.9 && found.high == 1.0, "{found:?}");
        assert_eq!(over_prompts(&[], 4, 1), wilson(0, 0));
    }
}
