//! Each rule against its definition, spelt out the slow way.

mod combinators;
mod losses;
mod shares;
mod t3s;
mod weights;

use std::collections::BTreeSet;

use proptest::prelude::*;
use t3s_core::{
    ComponentError, SelectContext, TokenTable, When,
    registry::{Registry, RegistryError},
    toml,
};

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
    select_in(name, options, table, &SelectContext::recorded(seed))
}

fn select_in(
    name: &str,
    options: &str,
    table: &TokenTable,
    cx: &SelectContext<'_>,
) -> Result<Vec<f32>, String> {
    let options: toml::Table = options.parse().expect("TOML");
    let registry = Registry::linked().expect("no clash");
    let strategy = registry
        .strategy(name, &options)
        .map_err(|e| e.to_string())?;
    let mut out = vec![f32::NAN; table.view().n_tokens()];
    strategy
        .select(&table.view(), cx, &mut out)
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

/// An eligible token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    place: (u64, u32),
    score: f32,
    weight: f32,
}

/// The eligible tokens of every scope, in the order of their places.
fn scopes(table: &TokenTable, column: &str, weights: &[f32], global: bool) -> Vec<Vec<Row>> {
    let view = table.view();
    let scores = view.column(column).unwrap();
    let mut scopes: Vec<Vec<Row>> = Vec::new();
    for (example, range) in view.examples() {
        let eligible = range.filter(|row| view.eligible()[*row]);
        scopes.push(
            eligible
                .map(|row| Row {
                    place: (example, view.positions()[row]),
                    score: scores[row],
                    weight: weights[row],
                })
                .collect(),
        );
    }
    if global {
        scopes = vec![scopes.concat()];
    }
    for scope in &mut scopes {
        scope.sort_by_key(|row| row.place);
    }
    scopes
}

/// The places of the first `percent` of `scope` in `order`, equals in the order of places.
fn first(
    scope: &[Row],
    percent: usize,
    order: impl Fn(&Row, &Row) -> std::cmp::Ordering,
) -> BTreeSet<(u64, u32)> {
    let mut sorted = scope.to_vec();
    sorted.sort_by(|a, b| order(a, b).then(a.place.cmp(&b.place)));
    let count = share_of(percent, sorted.len());
    sorted[..count].iter().map(|row| row.place).collect()
}

fn left_out(scope: &[Row]) -> BTreeSet<(u64, u32)> {
    let out = scope.iter().filter(|row| row.weight == 0.0);
    out.map(|row| row.place).collect()
}

fn kept(scope: &[Row]) -> BTreeSet<(u64, u32)> {
    let kept = scope.iter().filter(|row| row.weight == 1.0);
    kept.map(|row| row.place).collect()
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
