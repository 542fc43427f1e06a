//! The fused head against f64, its corner cases, and the statistics of the sketches.

use proptest::prelude::*;
use t3s_engine::{
    candle_core::{Result, Tensor},
    kernels::{
        Into,
        cross_entropy::{self, HeadGradients},
    },
    layers::head::{HeadOutput, HeadRow, SketchSpec},
};

use crate::{
    model::{random, tensor, values},
    oracle::{self, assert_close, wide},
};

/// `cross_entropy::run`, waited for.
fn run(
    hidden: &Tensor,
    weight: &Tensor,
    rows: &[HeadRow],
    sketch: Option<SketchSpec>,
    gradients: HeadGradients<'_>,
) -> Result<(HeadOutput, Option<Tensor>)> {
    let (output, d_hidden) = cross_entropy::run(hidden, weight, rows, sketch, gradients)?;
    Ok((output.read()?, d_hidden))
}

fn statistics(logits: &[f32], target: u32) -> HeadOutput {
    // An identity head: the logits are the hidden state.
    let n = logits.len();
    let identity = (0..n * n).map(|i| f32::from(u8::from(i / n == i % n)));
    let weight = tensor(identity.collect(), &[n, n]);
    let hidden = tensor(logits.to_vec(), &[1, n]);
    let rows = [HeadRow {
        row: 0,
        target,
        coefficient: 0.0,
    }];
    run(&hidden, &weight, &rows, None, HeadGradients::None)
        .unwrap()
        .0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn statistics_and_gradients_match_f64(
        n in 1usize..40,
        width in 1usize..12,
        vocab in 1usize..90,
        every in 1usize..3,
        scale in 0.1f32..6.0,
        seed: u64,
    ) {
        let hidden: Vec<f32> = random(seed, 0, n * width).iter().map(|h| scale * h).collect();
        let weight = random(seed, 1, vocab * width);
        let rows: Vec<HeadRow> = (0..n)
            .step_by(every)
            .map(|row| HeadRow {
                row: row as u32,
                target: (row * 31 % vocab) as u32,
                coefficient: (row % 3) as f32 * 0.25,
            })
            .collect();
        let (h, w) = (tensor(hidden.clone(), &[n, width]), tensor(weight.clone(), &[vocab, width]));
        let slot = tensor(vec![0.0; vocab * width], &[vocab, width]);
        let gradients = HeadGradients::Hidden { weight_slot: Some((&slot, Into::Add)) };
        let (output, d_hidden) = run(&h, &w, &rows, None, gradients).unwrap();
        let (alone, none) = run(&h, &w, &rows, None, HeadGradients::None).unwrap();
        prop_assert_eq!(&output, &alone);
        // What was in the slot is of no account when it is overwritten.
        let other = tensor(vec![f32::NAN; vocab * width], &[vocab, width]);
        let gradients = HeadGradients::Hidden { weight_slot: Some((&other, Into::Overwrite)) };
        run(&h, &w, &rows, None, gradients).unwrap();
        prop_assert_eq!(values(&other), values(&slot));
        prop_assert!(none.is_none());

        let inputs = [wide(&hidden), wide(&weight)];
        let log_p = |inputs: &[Vec<f64>]| -> Vec<Vec<f64>> {
            let logits = oracle::linear(&inputs[0], &inputs[1], width);
            logits.chunks(vocab).map(oracle::log_softmax).collect()
        };
        let all = log_p(&inputs);
        let logits = oracle::linear(&inputs[0], &inputs[1], width);
        for (i, row) in rows.iter().enumerate() {
            let log_p = &all[row.row as usize];
            let target = row.target as usize;
            // Logits reach 60 here, and f32 holds those to 4e-6.
            prop_assert!((f64::from(output.logp[i]) - log_p[target]).abs() < 2e-5);
            let entropy: f64 = -log_p.iter().map(|l| l.exp() * l).sum::<f64>();
            prop_assert!((f64::from(output.entropy[i]) - entropy).abs() < 2e-5);
            let z = &logits[row.row as usize * vocab..][..vocab];
            let near = z.iter().filter(|z| (*z - z_target(logits.as_slice(), row, vocab)).abs() < 1e-4);
            let larger = z.iter().filter(|z| **z > z_target(logits.as_slice(), row, vocab)).count();
            prop_assert!((output.rank[i] as usize).abs_diff(larger) < near.count().max(1));
            // The gradient of the last layer, written out.
            let h = &inputs[0][row.row as usize * width..][..width];
            let outer = log_p.iter().enumerate().flat_map(|(v, l)| {
                let error = l.exp() - f64::from(u8::from(v == target));
                h.iter().map(move |h| (error * h).powi(2))
            });
            let norm = outer.sum::<f64>().sqrt();
            prop_assert!((f64::from(output.grad_norm[i]) - norm).abs() <= 2e-5 * norm + 1e-12);
        }
        let loss = |inputs: &[Vec<f64>]| -> f64 {
            let all = log_p(inputs);
            rows.iter()
                .map(|r| -f64::from(r.coefficient) * all[r.row as usize][r.target as usize])
                .sum()
        };
        prop_assert!((output.loss_sum - loss(&inputs)).abs() < 1e-5 * loss(&inputs).abs() + 1e-6);
        let wanted = oracle::gradient(&inputs, 0, &loss);
        // A vocabulary of one token has no gradient; what is left then is rounding.
        if vocab > 1 && rows.iter().any(|r| r.coefficient > 0.0) {
            assert_close("d_hidden", &values(&d_hidden.unwrap()), &wanted, 2e-5);
            let wanted = oracle::gradient(&inputs, 1, &loss);
            assert_close("d_weight", &values(&slot), &wanted, 2e-5);
        }
    }
}

fn z_target(logits: &[f64], row: &HeadRow, vocab: usize) -> f64 {
    logits[row.row as usize * vocab + row.target as usize]
}

#[test]
fn rank_counts_strictly_larger_logits_only() {
    let logits = [2.0, 5.0, 2.0, 7.0, 2.0, -1.0];
    for (target, rank) in [(0, 2), (2, 2), (4, 2), (1, 1), (3, 0), (5, 5)] {
        assert_eq!(statistics(&logits, target).rank, [rank], "target {target}");
    }
    assert_eq!(statistics(&[0.0; 5], 3).rank, [0]);
}

#[test]
fn extreme_logits_stay_finite_and_exact() {
    // Overflows a careless exp.
    let output = statistics(&[1000.0, -1000.0, 999.0], 2);
    assert!((output.logp[0] - -1.313_261_7).abs() < 1e-6, "{output:?}");
    // The target's probability is 1 to f32; its complement is not 0.
    let output = statistics(&[30.0, 0.0, 0.0], 0);
    let wanted = -2.0 * (-30.0f64).exp();
    let error = (f64::from(output.logp[0]) - wanted).abs() / -wanted;
    assert!(error < 1e-5, "{output:?}, wanted {wanted:e}");
    let others = (-30.0f64).exp();
    let norm = (4.0 * others * others + 2.0 * others * others).sqrt() * 30.0;
    let error = (f64::from(output.grad_norm[0]) - norm).abs() / norm;
    assert!(error < 1e-5, "{output:?}, wanted {norm:e}");
    // The opposite corner: the target is hopeless.
    let output = statistics(&[0.0, 200.0], 0);
    assert!((output.logp[0] + 200.0).abs() < 1e-4);
    // A NaN is not hidden.
    assert!(statistics(&[0.0, f32::NAN, 1.0], 0).logp[0].is_nan());
}

#[test]
fn bad_rows_are_errors() {
    let (h, w) = (tensor(vec![0.0; 4], &[2, 2]), tensor(vec![0.0; 6], &[3, 2]));
    let row = |row, target| HeadRow {
        row,
        target,
        coefficient: 1.0,
    };
    for (rows, message) in [
        (vec![row(0, 3)], "target 3 of a vocabulary of 3"),
        (vec![row(0, u32::MAX)], "target 4294967295"),
        (vec![row(2, 0)], "row 2 of 2"),
        (vec![row(1, 0), row(1, 0)], "does not come before"),
    ] {
        let error = run(&h, &w, &rows, None, HeadGradients::None).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

/// `E<s_t, s_u> = <g_t, g_u>`: the mean over seeds stays within five standard errors of the exact
/// inner product, for the norm and for two different tokens, and the two together are not all zero.
#[test]
fn sketches_are_unbiased() {
    let (n, width, vocab, k, seeds) = (3, 6, 40, 16, 400);
    let hidden: Vec<f32> = random(21, 0, n * width).iter().map(|h| 2.0 * h).collect();
    let weight = random(21, 1, vocab * width);
    let targets = [4usize, 4, 11];
    let rows: Vec<HeadRow> = (0..n)
        .map(|row| HeadRow {
            row: row as u32,
            target: targets[row] as u32,
            coefficient: 0.0,
        })
        .collect();
    let (h, w) = (
        tensor(hidden.clone(), &[n, width]),
        tensor(weight.clone(), &[vocab, width]),
    );
    let sketches: Vec<Vec<f32>> = (0..seeds)
        .map(|seed| {
            let spec = Some(SketchSpec { width: k, seed });
            let output = run(&h, &w, &rows, spec, HeadGradients::None).unwrap().0;
            let sketch = output.sketch.expect("asked for");
            assert_eq!((sketch.width, sketch.values.len()), (k, n * k));
            sketch.values
        })
        .collect();

    let logits = oracle::linear(&wide(&hidden), &wide(&weight), width);
    let gradient = |t: usize| -> Vec<f64> {
        let log_p = oracle::log_softmax(&logits[t * vocab..][..vocab]);
        let h = wide(&hidden[t * width..][..width]);
        log_p
            .iter()
            .enumerate()
            .flat_map(|(v, l)| {
                let error = l.exp() - f64::from(u8::from(v == targets[t]));
                h.clone().into_iter().map(move |h| error * h)
            })
            .collect()
    };
    for (t, u) in [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)] {
        let wanted = oracle::dot(&gradient(t), &gradient(u));
        let draws: Vec<f64> = sketches
            .iter()
            .map(|s| oracle::dot(&wide(&s[t * k..][..k]), &wide(&s[u * k..][..k])))
            .collect();
        let mean = draws.iter().sum::<f64>() / seeds as f64;
        let variance = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / seeds as f64;
        let bound = 5.0 * (variance / seeds as f64).sqrt();
        assert!(
            (mean - wanted).abs() <= bound,
            "<{t}, {u}>: {mean}, wanted {wanted}"
        );
        // The bound means something: it is far smaller than the norms it is about.
        let norms =
            oracle::dot(&gradient(t), &gradient(t)) * oracle::dot(&gradient(u), &gradient(u));
        assert!(bound < 0.25 * norms.sqrt());
    }
    assert_ne!(sketches[0], sketches[1]);
}
