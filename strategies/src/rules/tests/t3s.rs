//! T3S, its inverse and its shuffled control.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn yet_to_learn_is_what_fell_below_tau(tokens in tokens(), tau in 0i8..3) {
        let table = table("delta-logp", &tokens);
        let kept = select("yet-to-learn", &format!("tau = {tau}.0"), &table, 0).unwrap();
        for (_, eligible, score, kept) in rows(&table, "delta-logp", &kept) {
            let fell = eligible && score < -f32::from(tau);
            prop_assert_eq!(kept, f32::from(u8::from(fell)));
        }
    }

    #[test]
    fn t3s_and_its_inverse_split_at_the_threshold(tokens in tokens(), threshold in -2i8..3) {
        let table = table("delta-logp", &tokens);
        let options = format!("threshold = {threshold}.0");
        let kept = select("t3s", &options, &table, 0).unwrap();
        let anchors = select("inverse-t3s", &options, &table, 0).unwrap();
        let by_row = rows(&table, "delta-logp", &kept).into_iter().zip(&anchors);
        for ((_, eligible, score, kept), anchor) in by_row {
            let is_anchor = eligible && score > f32::from(threshold);
            prop_assert_eq!(kept, f32::from(u8::from(eligible && !is_anchor)));
            prop_assert_eq!(*anchor, f32::from(u8::from(is_anchor)));
        }
    }

    #[test]
    fn a_share_of_anchors_is_exact_and_on_top(
        tokens in tokens(),
        percent in 1usize..=100,
        global: bool,
        both: bool,
    ) {
        let table = table("delta-logp", &tokens);
        let options = format!(
            "share = {:?}\nscope = '{}'\nsides = '{}'",
            percent as f64 / 100.0,
            if global { "global" } else { "example" },
            if both { "both" } else { "above" },
        );
        let kept = select("t3s", &options, &table, 0).unwrap();
        let anchors = select("inverse-t3s", &options, &table, 0).unwrap();
        for ((row, kept), anchor) in table.view().eligible().iter().zip(&kept).zip(&anchors) {
            prop_assert_eq!(kept + anchor, f32::from(u8::from(*row)));
        }
        let strength = |score: f32| if both { score.abs() } else { score };
        let order = |a: &Row, b: &Row| strength(b.score).total_cmp(&(strength(a.score) + 0.0));
        for scope in scopes(&table, "delta-logp", &kept, global) {
            let expected = first(&scope, percent, order);
            prop_assert_eq!(expected, left_out(&scope));
        }
    }

    #[test]
    fn two_sides_are_the_absolute_value(tokens in tokens(), threshold in 0i8..3) {
        let table = table("delta-logp", &tokens);
        let options = format!("threshold = {threshold}.0\nsides = 'both'");
        let kept = select("t3s", &options, &table, 0).unwrap();
        for (_, eligible, score, kept) in rows(&table, "delta-logp", &kept) {
            let stays = eligible && (-f32::from(threshold)..=f32::from(threshold)).contains(&score);
            prop_assert_eq!(kept, f32::from(u8::from(stays)));
        }
    }

    #[test]
    fn shuffled_deals_each_example_its_own_weights(tokens in tokens(), seed: u64, soft: bool) {
        let table = table("delta-logp", &tokens);
        let inner = if soft {
            // e^min(score, 0): more than two weights.
            "{ strategy = 'dft', confidence = 'delta-logp' }"
        } else {
            "{ strategy = 't3s' }"
        };
        let (name, options) = if soft {
            ("dft", "confidence = 'delta-logp'")
        } else {
            ("t3s", "")
        };
        let before = select(name, options, &table, 0).unwrap();
        let after = select("shuffled", &format!("of = {inner}"), &table, seed).unwrap();
        for (_, rows) in table.view().examples() {
            let sorted = |weights: &[f32]| {
                let eligible = rows.clone().filter(|row| table.view().eligible()[*row]);
                let mut weights: Vec<f32> = eligible.map(|row| weights[row]).collect();
                weights.sort_by(f32::total_cmp);
                weights
            };
            prop_assert_eq!(sorted(&before), sorted(&after));
        }
    }
}

#[test]
fn every_token_is_as_likely_as_any_other_to_be_kept_when_shuffled() {
    // Anchors first, three of twelve in each example.
    let tokens: Vec<Token> = (0..24)
        .map(|i| (i / 12, true, if i % 12 < 3 { 1.0 } else { -1.0 }))
        .collect();
    let table = table("delta-logp", &tokens);
    let mut removed = vec![0; 24];
    for seed in 0..400 {
        let weights = select("shuffled", "", &table, seed).unwrap();
        assert_eq!(weights.iter().filter(|w| **w == 0.0).count(), 6);
        for (count, weight) in removed.iter_mut().zip(weights) {
            *count += u32::from(weight == 0.0);
        }
    }
    // 100 on average; six standard deviations of a binomial are 52.
    assert!(
        removed.iter().all(|n| (48..=152).contains(n)),
        "{removed:?}"
    );
    // Soft weights are dealt out by the same draws.
    let soft: Vec<Token> = (0u8..12).map(|i| (0, true, -f32::from(i))).collect();
    let table = self::table("delta-logp", &soft);
    let options = "of = { strategy = 'dft', confidence = 'delta-logp' }";
    let mut sum = [0.0f64; 12];
    for seed in 0..400 {
        let weights = select("shuffled", options, &table, seed).unwrap();
        for (sum, weight) in sum.iter_mut().zip(weights) {
            *sum += f64::from(weight);
        }
    }
    // Mean sum_i e^-i / 12 = 0.1318, standard deviation 0.275, six standard errors 0.083.
    for sum in sum {
        assert!((sum / 400.0 - 0.1318).abs() < 0.083, "{sum}");
    }
}
