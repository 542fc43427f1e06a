//! Each rule against its definition, spelt out the slow way.

use proptest::prelude::*;
use t3s_core::{SelectContext, TokenTable, registry::Registry, toml};

/// One token of a random table: example, eligible, score.
type Token = (u8, bool, f32);

/// A table whose examples are numbered 100, 101, ...; the column is under `name`.
fn table(name: &str, tokens: &[Token]) -> TokenTable {
    let mut sorted = tokens.to_vec();
    sorted.sort_by_key(|token| token.0);
    let mut ids = Vec::new();
    let mut offsets = Vec::new();
    let mut positions = Vec::new();
    for (row, (example, _, _)) in sorted.iter().enumerate() {
        let id = 100 + u64::from(*example);
        if ids.last() != Some(&id) {
            ids.push(id);
            offsets.push(row as u32);
        }
        positions.push(row as u32 - offsets.last().expect("pushed") + 3);
    }
    offsets.push(sorted.len() as u32);
    let eligible = sorted.iter().map(|token| token.1).collect();
    let n = sorted.len();
    let mut table = TokenTable::new(ids, offsets, vec![1; n], positions, eligible).unwrap();
    // What the score of an ineligible token is must not matter.
    let score = |token: &Token| if token.1 { token.2 } else { f32::NAN };
    table
        .insert(name, sorted.iter().map(score).collect())
        .unwrap();
    table
}

fn select(name: &str, options: &str, table: &TokenTable, seed: u64) -> Result<Vec<f32>, String> {
    let options: toml::Table = options.parse().expect("TOML");
    let registry = Registry::linked().expect("no clash");
    let strategy = registry
        .strategy(name, &options)
        .map_err(|e| e.to_string())?;
    let mut out = vec![f32::NAN; table.view().n_tokens()];
    strategy
        .select(&table.view(), &SelectContext::recorded(seed), &mut out)
        .map_err(|e| e.to_string())?;
    Ok(out)
}

/// `(example, eligible, score, weight)` of every row.
fn rows(table: &TokenTable, column: &str, weights: &[f32]) -> Vec<(u64, bool, f32, f32)> {
    let view = table.view();
    let scores = view.column(column).unwrap();
    let mut rows = Vec::new();
    for (example, range) in view.examples() {
        for row in range {
            rows.push((example, view.eligible()[row], scores[row], weights[row]));
        }
    }
    rows
}

/// `ceil(percent / 100 * n)` in whole numbers.
fn share_of(percent: usize, n: usize) -> usize {
    (percent * n).div_ceil(100)
}

fn tokens() -> impl Strategy<Value = Vec<Token>> {
    // Few different scores, so that ties are common.
    let score = prop_oneof![(-3i8..=3).prop_map(f32::from), -1.0f32..1.0];
    prop::collection::vec((0u8..4, prop::bool::weighted(0.8), score), 0..40)
}

proptest! {
    #[test]
    fn all_keeps_what_may_be_trained_on(tokens in tokens()) {
        let table = table("x", &tokens);
        let weights = select("all", "", &table, 0).unwrap();
        for (_, eligible, _, weight) in rows(&table, "x", &weights) {
            prop_assert_eq!(weight, f32::from(u8::from(eligible)));
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

#[test]
fn a_score_that_is_no_number_is_named() {
    let mut table = table("delta-logp", &[(0, true, 1.0), (1, true, 2.0)]);
    table.insert("delta-logp", vec![1.0, f32::NAN]).unwrap();
    table.insert("logp@base", vec![1.0, f32::NAN]).unwrap();
    for name in ["t3s", "inverse-t3s", "static-confidence"] {
        let message = select(name, "", &table, 0).unwrap_err();
        assert!(
            message.contains("example 101, position 3"),
            "{name}: {message}"
        );
    }
}

#[test]
fn options_are_read_strictly() {
    let table = table("logp@base", &[(0, true, 1.0)]);
    let refused = |name, options| select(name, options, &table, 0).unwrap_err();
    let message = refused("static-confidence", "share = 80.0");
    assert!(
        message.contains("80 is not a share; write 0.8 for 80 %"),
        "{message}"
    );
    assert!(refused("static-confidence", "mask = 'middle'").contains("middle"));
    assert!(refused("random", "scope = 'batch'").contains("batch"));
    assert!(refused("all", "threshold = 1.0").contains("threshold"));
    assert!(refused("t3s", "treshold = 1.0").contains("treshold"));
    let message = select("t3s", "signal = 'entropy@base'", &table, 0).unwrap_err();
    assert!(message.contains("logp@base"), "{message}");
}
