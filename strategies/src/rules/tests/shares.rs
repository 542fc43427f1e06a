//! Rules that keep or drop a share of an order: static confidence, random, gradients, entropy.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn static_confidence_removes_one_end_exactly(
        tokens in tokens(),
        percent in 1usize..=100,
        high: bool,
        global: bool,
    ) {
        let table = table("logp@base", &tokens);
        let (mask, scope) = (
            if high { "high" } else { "low" },
            if global { "global" } else { "example" },
        );
        let share = percent as f64 / 100.0;
        let options = format!("mask = '{mask}'\nshare = {share:?}\nscope = '{scope}'");
        let weights = select("static-confidence", &options, &table, 0).unwrap();
        let rows = rows(&table, "logp@base", &weights);
        for example in 100..104u64 {
            let scope: Vec<_> = rows
                .iter()
                .filter(|row| row.1 && (global || row.0 == example))
                .collect();
            let removed: Vec<f32> = scope.iter().filter(|r| r.3 == 0.0).map(|r| r.2).collect();
            let kept: Vec<f32> = scope.iter().filter(|r| r.3 == 1.0).map(|r| r.2).collect();
            prop_assert_eq!(removed.len(), share_of(percent, scope.len()));
            prop_assert_eq!(removed.len() + kept.len(), scope.len());
            for (r, k) in removed.iter().flat_map(|r| kept.iter().map(move |k| (r, k))) {
                prop_assert!(if high { r >= k } else { r <= k }, "removed {}, kept {}", r, k);
            }
        }
    }

    #[test]
    fn random_removes_a_share_exactly(
        tokens in tokens(),
        percent in 1usize..=100,
        global: bool,
        seed: u64,
    ) {
        let table = table("x", &tokens);
        let scope = if global { "global" } else { "example" };
        let options = format!("share = {:?}\nscope = '{scope}'", percent as f64 / 100.0);
        let weights = select("random", &options, &table, seed).unwrap();
        let rows = rows(&table, "x", &weights);
        for example in 100..104u64 {
            let scope: Vec<_> = rows
                .iter()
                .filter(|row| row.1 && (global || row.0 == example))
                .collect();
            let removed = scope.iter().filter(|row| row.3 == 0.0).count();
            prop_assert_eq!(removed, share_of(percent, scope.len()));
        }
    }

    #[test]
    fn gradient_rules_are_static_confidence_of_another_signal(
        tokens in tokens(),
        percent in 1usize..=100,
        high: bool,
        global: bool,
    ) {
        for (name, column) in [
            ("gradient-norm", "grad-norm@base"),
            ("gradient-sketch", "mean-alignment"),
            ("static-confidence", "logp@base"),
        ] {
            let table = table(column, &tokens);
            let options = format!(
                "mask = '{}'\nshare = {:?}\nscope = '{}'",
                if high { "high" } else { "low" },
                percent as f64 / 100.0,
                if global { "global" } else { "example" },
            );
            let weights = select(name, &options, &table, 0).unwrap();
            let order = |a: &Row, b: &Row| {
                let (a, b) = if high { (b, a) } else { (a, b) };
                (a.score + 0.0).total_cmp(&(b.score + 0.0))
            };
            for scope in scopes(&table, column, &weights, global) {
                prop_assert_eq!(first(&scope, percent, order), left_out(&scope));
            }
        }
    }

    #[test]
    fn forking_tokens_are_the_most_uncertain(
        tokens in tokens(),
        percent in 1usize..=100,
        global: bool,
    ) {
        let table = table("entropy@base", &tokens);
        let scope = if global { "global" } else { "example" };
        let options = format!("keep = {:?}\nscope = '{scope}'", percent as f64 / 100.0);
        let weights = select("entropy", &options, &table, 0).unwrap();
        let order = |a: &Row, b: &Row| (b.score + 0.0).total_cmp(&(a.score + 0.0));
        for scope in scopes(&table, "entropy@base", &weights, global) {
            prop_assert_eq!(first(&scope, percent, order), kept(&scope));
        }
    }

    #[test]
    fn static_confidence_by_threshold(tokens in tokens(), bound in -3i8..=3, high: bool) {
        let table = table("logp@base", &tokens);
        let mask = if high { "high" } else { "low" };
        let options = format!("mask = '{mask}'\nthreshold = {bound}.0");
        let weights = select("static-confidence", &options, &table, 0).unwrap();
        let bound = f32::from(bound);
        for (_, eligible, score, weight) in rows(&table, "logp@base", &weights) {
            let leaves = if high { score > bound } else { score < bound };
            prop_assert_eq!(weight, f32::from(u8::from(eligible && !leaves)));
        }
    }
}

#[test]
fn ties_are_broken_by_place_whatever_the_order_of_rows() {
    let tokens = [
        (0, true, 1.0),
        (0, true, 1.0),
        (1, true, 1.0),
        (1, true, 1.0),
    ];
    let table = table("logp@base", &tokens);
    let options = "share = 0.5\nmask = 'high'";
    let weights = select("static-confidence", options, &table, 0).unwrap();
    assert_eq!(weights, [0.0, 0.0, 1.0, 1.0]);
    let options = "share = 0.5\nmask = 'low'";
    let weights = select("static-confidence", options, &table, 0).unwrap();
    assert_eq!(weights, [0.0, 0.0, 1.0, 1.0]);
}

#[test]
fn minus_zero_is_zero() {
    let tokens = [(0, true, 0.0), (0, true, -0.0)];
    let table = table("logp@base", &tokens);
    for mask in ["high", "low"] {
        let options = format!("share = 0.5\nmask = '{mask}'");
        let weights = select("static-confidence", &options, &table, 0).unwrap();
        assert_eq!(weights, [0.0, 1.0], "{mask}");
    }
}

#[test]
fn random_draws_differ_by_seed_and_cover_every_token() {
    let tokens: Vec<Token> = (0..40).map(|i| (i / 10, true, 0.0)).collect();
    let table = table("x", &tokens);
    let mut removed = vec![0; 40];
    for seed in 0..300 {
        let weights = select("random", "share = 0.25", &table, seed).unwrap();
        for (count, weight) in removed.iter_mut().zip(weights) {
            *count += u32::from(weight == 0.0);
        }
    }
    // 75 on average; six standard deviations of a binomial are 45.
    assert!(
        removed.iter().all(|n| (30..=120).contains(n)),
        "{removed:?}"
    );
}
