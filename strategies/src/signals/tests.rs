//! Each signal against its definition.

use proptest::prelude::*;
use t3s_core::{TokenTable, TokenView, registry::Registry, table::Sketch, toml};

/// The signal `name` with `options` over one text of three tokens.
fn scores(name: &str, options: &str) -> Result<Vec<f32>, String> {
    let mut table = TokenTable::new(
        vec![0],
        vec![0, 3],
        vec![1, 2, 3],
        vec![4, 5, 6],
        vec![true; 3],
    )
    .unwrap();
    for (column, values) in [
        ("logp@base", [-3.0, -1.0, -2.0]),
        ("logp@bottleneck", [-1.0, -1.0, -4.0]),
        ("logp@step:0", [-3.0, -1.0, -2.0]),
        ("logp@step:5", [-0.5, -0.25, -1.0]),
        ("logp@step:20", [-1.0, -0.125, -1.0]),
        ("grad_norm@base", [0.5, 3.0, 0.0]),
        ("entropy@base", [0.5, 0.25, 2.0]),
        ("rank@base", [7.0, 0.0, 1.0]),
    ] {
        table.insert(column, values.to_vec()).unwrap();
    }
    compute(name, options, &table.view())
}

/// The signal `name` with `options` over `view`.
fn compute(name: &str, options: &str, view: &TokenView<'_>) -> Result<Vec<f32>, String> {
    let options: toml::Table = options.parse().expect("TOML");
    let signal = Registry::linked()
        .unwrap()
        .signal(name, &options)
        .map_err(|e| e.to_string())?;
    let mut out = vec![f32::NAN; view.n_tokens()];
    signal.compute(view, &mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

#[test]
fn signals_are_what_they_say() {
    let of = |name, options| scores(name, options).unwrap();
    assert_eq!(of("logp", ""), [-3.0, -1.0, -2.0]);
    assert_eq!(of("logp", "at = 'bottleneck'"), [-1.0, -1.0, -4.0]);
    assert_eq!(of("delta-logp", ""), [2.0, 0.0, -2.0]);
    assert_eq!(of("delta-logp", "to = 'step:5'"), [2.5, 0.75, 1.0]);
    assert_eq!(
        of("delta-logp", "from = 'bottleneck'\nto = 'base'"),
        [-2.0, 0.0, 2.0]
    );
    assert_eq!(of("entropy", ""), [0.5, 0.25, 2.0]);
    assert_eq!(of("rank", ""), [7.0, 0.0, 1.0]);
    assert_eq!(of("grad-norm", ""), [0.5, 3.0, 0.0]);
    // Up 2.5, down 0.5; up, up; up, level.
    assert_eq!(of("trajectory-rise", ""), [0.0, 1.0, 0.5]);
    assert_eq!(of("trajectory-rise", "from = 5"), [-1.0, 1.0, 0.0]);
    assert_eq!(of("trajectory-rise", "to = 5"), [1.0, 1.0, 1.0]);
    // Of two checkpoints the slope is the change over the steps.
    assert_eq!(of("trajectory-slope", "to = 5"), [0.5, 0.15, 0.2]);
}

#[test]
fn options_are_read_strictly() {
    let refused = |name, options| scores(name, options).unwrap_err();
    assert!(refused("logp", "at = 'basis'").contains("basis"));
    assert!(refused("logp", "at = 'step:*'").contains("write one"));
    assert!(refused("logp", "to = 'base'").contains("to"));
    assert!(refused("delta-logp", "at = 'base'").contains("at"));
}

#[test]
fn a_trajectory_has_two_checkpoints() {
    for options in ["from = 20", "to = 4", "from = 6\nto = 19"] {
        let message = scores("trajectory-slope", options).unwrap_err();
        assert!(message.contains("at least two checkpoints"), "{message}");
        assert!(message.contains("[0, 5, 20]"), "{message}");
    }
}

/// (example, eligible, change of logp, sketch of three numbers)
type Sketched = (u8, bool, i8, [f32; 3]);

fn sketched(tokens: &[Sketched]) -> TokenTable {
    let mut sorted = tokens.to_vec();
    sorted.sort_by_key(|token| token.0);
    let ids: Vec<u64> = (0..4).collect();
    let end = |id: &u64| sorted.iter().filter(|t| u64::from(t.0) < *id).count() as u32;
    let mut offsets: Vec<u32> = ids.iter().map(end).collect();
    offsets.push(sorted.len() as u32);
    let n = sorted.len();
    let mut table = TokenTable::new(
        ids,
        offsets,
        vec![1; n],
        (0..n as u32).collect(),
        sorted.iter().map(|token| token.1).collect(),
    )
    .unwrap();
    let mark = |token: &Sketched, x: f32| if token.1 { x } else { f32::NAN };
    let sketch = Sketch {
        width: 3,
        values: sorted
            .iter()
            .flat_map(|t| t.3.map(|x| mark(t, x)))
            .collect(),
    };
    table.insert_sketch("sketch@base", sketch).unwrap();
    table.insert("logp@base", vec![-1.0; n]).unwrap();
    let later = sorted.iter().map(|t| mark(t, f32::from(t.2) - 1.0));
    table.insert("logp@bottleneck", later.collect()).unwrap();
    table
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

proptest! {
    #[test]
    fn alignments_are_cosines_with_a_mean(
        tokens in prop::collection::vec(
            (0u8..4, prop::bool::weighted(0.8), -2i8..=2, prop::array::uniform3(-2.0f32..2.0)),
            0..30,
        ),
    ) {
        let table = sketched(&tokens);
        let view = table.view();
        let sketches = view.sketch("sketch@base").unwrap();
        let rows: Vec<Vec<f64>> = sketches
            .values
            .chunks(3)
            .map(|row| row.iter().map(|x| f64::from(*x)).collect())
            .collect();
        let later = view.column("logp@bottleneck").unwrap();
        let eligible = view.eligible();
        for (name, anchors) in [("mean-alignment", false), ("anchor-alignment", true)] {
            let counts: Vec<usize> = (0..rows.len())
                .filter(|row| eligible[*row] && (!anchors || later[*row] + 1.0 > 0.0))
                .collect();
            let mean: Vec<f64> = (0..3)
                .map(|i| {
                    let sum: f64 = counts.iter().map(|row| rows[*row][i]).sum();
                    sum / counts.len().max(1) as f64
                })
                .collect();
            let cosine = compute(name, "", &view).unwrap();
            let inner = compute(name, "measure = 'inner-product'", &view).unwrap();
            for row in 0..rows.len() {
                if !eligible[row] {
                    continue;
                }
                let product = dot(&rows[row], &mean);
                prop_assert!((f64::from(inner[row]) - product).abs() < 1e-5);
                let lengths = (dot(&mean, &mean) * dot(&rows[row], &rows[row])).sqrt();
                if lengths > 1e-6 {
                    prop_assert!((f64::from(cosine[row]) - product / lengths).abs() < 1e-5);
                } else if counts.is_empty() {
                    prop_assert_eq!(cosine[row], 0.0);
                }
            }
        }
        let norms = compute("sketch-norm", "", &view).unwrap();
        for row in (0..rows.len()).filter(|row| eligible[*row]) {
            prop_assert!((f64::from(norms[row]) - dot(&rows[row], &rows[row]).sqrt()).abs() < 1e-5);
        }
    }

    #[test]
    fn slopes_are_of_the_line_of_least_squares(
        steps in prop::collection::btree_set(0u64..200, 2..6),
        logp in prop::collection::vec(-5.0f32..0.0, 6),
    ) {
        let mut table = sketched(&[(0, true, 0, [0.0; 3])]);
        let points: Vec<(f64, f64)> = steps
            .iter()
            .zip(&logp)
            .map(|(step, logp)| (*step as f64, f64::from(*logp)))
            .collect();
        for (step, logp) in steps.iter().zip(&logp) {
            table.insert(format!("logp@step:{step}"), vec![*logp]).unwrap();
        }
        let slope = f64::from(compute("trajectory-slope", "", &table.view()).unwrap()[0]);
        let squares = |slope: f64| {
            let n = points.len() as f64;
            let rest = points.iter().map(|(s, c)| c - slope * s);
            let level = rest.clone().sum::<f64>() / n;
            rest.map(|r| (r - level).powi(2)).sum::<f64>()
        };
        let best = squares(slope);
        for other in [slope - 1e-3, slope + 1e-3] {
            prop_assert!(best <= squares(other) + 1e-9, "{best}, {}", squares(other));
        }
    }
}
