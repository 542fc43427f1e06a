//! The sampler against its definitions, spelt out naively in f64.

use proptest::prelude::*;

use super::*;

fn sampler(temperature: f64, top_k: usize, top_p: f64) -> Sampler {
    let plan = GeneratePlan {
        temperature,
        top_k,
        top_p,
        ..GeneratePlan::default()
    };
    Sampler::new(&plan).expect("a valid plan")
}

/// `softmax(logits / temperature)` in f64.
fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp = |z: &f32| (f64::from(z - largest) / temperature).exp();
    let masses: Vec<f64> = logits.iter().map(exp).collect();
    let sum: f64 = masses.iter().sum();
    masses.iter().map(|m| m / sum).collect()
}

/// How many tokens are likelier than `token`; of equals the earlier is the likelier.
fn rank(logits: &[f32], token: usize) -> usize {
    let mine = logits[token];
    let beats = |other: usize| logits[other] > mine || (logits[other] == mine && other < token);
    (0..logits.len()).filter(|other| beats(*other)).count()
}

/// The probabilities that remain after top-k and top-p, by their definitions.
fn filtered(logits: &[f32], temperature: f64, top_k: usize, top_p: f64) -> Vec<f64> {
    let mut p = softmax(logits, temperature);
    if top_k > 0 {
        for (token, p) in p.iter_mut().enumerate() {
            if rank(logits, token) >= top_k {
                *p = 0.0;
            }
        }
        let sum: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= sum);
    }
    let before = |token: usize| -> f64 {
        let likelier = (0..p.len()).filter(|o| rank(logits, *o) < rank(logits, token));
        likelier.map(|o| p[o]).sum()
    };
    let keep: Vec<bool> = (0..p.len()).map(|t| before(t) < top_p).collect();
    let mut p: Vec<f64> = p
        .iter()
        .zip(keep)
        .map(|(p, keep)| if keep { *p } else { 0.0 })
        .collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

/// The probability that `pick` gives each token, measured on a grid of draws.
fn measured(sampler: &Sampler, logits: &[f32], draws: usize) -> Vec<f64> {
    let mut scratch = SampleScratch::default();
    let mut counts = vec![0.0; logits.len()];
    for i in 0..draws {
        let uniform = (i as f64 + 0.5) / draws as f64;
        let id = sampler
            .pick(logits, uniform, &mut scratch)
            .expect("finite logits");
        counts[id as usize] += 1.0 / draws as f64;
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Quantised logits make ties; on a regular grid of draws every share is exact to one draw.
    #[test]
    fn every_filter_means_what_it_says(
        logits in prop::collection::vec((-12i8..12).prop_map(|z| f32::from(z) * 0.5), 1..90),
        temperature in 0.2f64..3.0,
        top_k in 0usize..30,
        // Off the grid on which sums of equal probabilities would meet the limit to the last bit.
        top_p in (0.013f64..1.2).prop_map(|p| if p > 1.0 { 1.0 } else { p }),
    ) {
        let draws = 4000;
        let found = measured(&sampler(temperature, top_k, top_p), &logits, draws);
        let wanted = filtered(&logits, temperature, top_k, top_p);
        for (token, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            prop_assert!((found - wanted).abs() < 1.5 / draws as f64,
                "token {}: {} instead of {}", token, found, wanted);
        }
    }

    #[test]
    fn temperature_zero_is_the_first_largest(
        logits in prop::collection::vec((-3i8..3).prop_map(f32::from), 1..40),
        uniform in 0.0f64..1.0,
        top_k in 0usize..4,
    ) {
        let id = sampler(0.0, top_k, 0.5).pick(&logits, uniform, &mut SampleScratch::default());
        let wanted = (0..logits.len()).find(|t| rank(&logits, *t) == 0);
        prop_assert_eq!(id.map(|id| id as usize), wanted);
    }
}

#[test]
fn counts_fit_the_probabilities() {
    let logits: Vec<f32> = (0..12).map(|i| (i as f32 * 1.7).sin() * 2.0).collect();
    let (temperature, top_k, top_p) = (1.5, 9, 0.95);
    let sampler = sampler(temperature, top_k, top_p);
    let wanted = filtered(&logits, temperature, top_k, top_p);
    let n = 40_000usize;
    let mut counts = vec![0usize; logits.len()];
    let mut scratch = SampleScratch::default();
    for i in 0..n {
        let uniform = AnswerStream::new(5, i / 100, i % 10).uniform(i / 10 % 10);
        let id = sampler
            .pick(&logits, uniform, &mut scratch)
            .expect("finite logits");
        counts[id as usize] += 1;
    }
    let (mut chi_square, mut cells) = (0.0, 0);
    for (count, p) in counts.iter().zip(&wanted) {
        if *p == 0.0 {
            assert_eq!(*count, 0, "a filtered token was drawn");
        } else {
            let expected = p * n as f64;
            chi_square += (*count as f64 - expected).powi(2) / expected;
            cells += 1;
        }
    }
    // The 99.9 % quantile of chi-square with 5 to 8 degrees of freedom is 20.5 to 26.1; measured 2.5
    // over 8 cells.
    assert!((6..=9).contains(&cells), "{cells}");
    assert!(chi_square < 20.5, "{chi_square}");
}

#[test]
fn streams_differ_in_every_coordinate() {
    let draws = [
        AnswerStream::new(1, 0, 0).uniform(0),
        AnswerStream::new(1, 0, 0).uniform(1),
        AnswerStream::new(1, 0, 1).uniform(0),
        AnswerStream::new(1, 1, 0).uniform(0),
        AnswerStream::new(2, 0, 0).uniform(0),
    ];
    for (i, a) in draws.iter().enumerate() {
        assert!(draws[..i].iter().all(|b| a != b));
    }
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    let mut scratch = SampleScratch::default();
    for sampler in [sampler(0.0, 0, 1.0), sampler(1.0, 3, 0.9)] {
        for bad in [f32::NAN, f32::INFINITY] {
            for place in 0..40 {
                let mut logits = vec![0.5; 40];
                logits[place] = bad;
                assert_eq!(sampler.pick(&logits, 0.3, &mut scratch), None);
            }
        }
        assert_eq!(sampler.pick(&[], 0.3, &mut scratch), None);
        assert_eq!(
            sampler.pick(&[f32::NEG_INFINITY; 3], 0.3, &mut scratch),
            None
        );
        let masked = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY];
        assert_eq!(sampler.pick(&masked, 0.999_999, &mut scratch), Some(1));
        assert_eq!(sampler.pick(&masked, 0.0, &mut scratch), Some(1));
    }
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    for (temperature, top_p) in [
        (-0.1, 1.0),
        (f64::NAN, 1.0),
        (1.0, 0.0),
        (1.0, 1.1),
        (1.0, f64::NAN),
    ] {
        let plan = GeneratePlan {
            temperature,
            top_p,
            ..GeneratePlan::default()
        };
        let error = Sampler::new(&plan).expect_err("refused").to_string();
        assert!(error.contains("generate."), "{error}");
    }
}
