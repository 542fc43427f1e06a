//! Rules that read the step under way: DFT, focal weights, ProFit.

use proptest::prelude::*;

use super::*;

/// `(eligible, logp, weight)` with `logp` as the step under way has it, at most 0.
fn online(name: &str, options: &str, tokens: &[Token]) -> Vec<(bool, f64, f32)> {
    let table = table("x", tokens);
    let current: Vec<f32> = table
        .view()
        .column("x")
        .unwrap()
        .iter()
        .map(|x| -x.abs())
        .collect();
    let cx = SelectContext::online(0, 5, &current);
    let weights = select_in(name, options, &table, &cx).unwrap();
    let rows = table.view().eligible().iter().zip(&current).zip(weights);
    rows.map(|((e, logp), weight)| (*e, f64::from(*logp), weight))
        .collect()
}

fn near(weight: f32, expected: f64) -> bool {
    (f64::from(weight) - expected).abs() < 1e-6
}

proptest! {
    #[test]
    fn dft_weighs_by_probability(tokens in tokens()) {
        for (eligible, logp, weight) in online("dft", "", &tokens) {
            let expected = if eligible { logp.exp() } else { 0.0 };
            prop_assert!(near(weight, expected), "{weight}, {expected}");
        }
    }

    #[test]
    fn focal_weighs_by_improbability(tokens in tokens(), gamma in 0u8..5) {
        let gamma = f64::from(gamma) / 2.0;
        for (eligible, logp, weight) in online("focal", &format!("gamma = {gamma:?}"), &tokens) {
            let expected = if eligible { (1.0 - logp.exp()).powf(gamma) } else { 0.0 };
            prop_assert!(near(weight, expected), "{weight}, {expected}");
        }
    }

    #[test]
    fn profit_keeps_probable_tokens(tokens in tokens(), percent in 1u8..=100) {
        let bound = f64::from(percent) / 100.0;
        for (eligible, logp, weight) in online("profit", &format!("threshold = {bound:?}"), &tokens) {
            // Nearer than f32 tells apart.
            if (logp - bound.ln()).abs() > 1e-6 {
                let stays = eligible && logp.exp() >= bound;
                prop_assert_eq!(weight, f32::from(u8::from(stays)));
            }
        }
    }
}

#[test]
fn weights_by_hand() {
    let ln = |p: f32| (0, true, -p.ln());
    let tokens = [ln(1.0), ln(0.5), ln(0.25), ln(0.05)];
    let weights = |name, options| -> Vec<f32> {
        let rows = online(name, options, &tokens);
        rows.iter().map(|(.., weight)| *weight).collect()
    };
    let close = |found: Vec<f32>, expected: [f64; 4]| {
        for (found, expected) in found.iter().zip(expected) {
            assert!(near(*found, expected), "{found}, {expected}");
        }
    };
    close(weights("dft", ""), [1.0, 0.5, 0.25, 0.05]);
    close(weights("focal", ""), [0.0, 0.25, 0.5625, 0.9025]);
    close(weights("focal", "gamma = 0.0"), [1.0; 4]);
    close(weights("profit", ""), [1.0, 1.0, 1.0, 0.0]);
    close(weights("profit", "threshold = 0.4"), [1.0, 1.0, 0.0, 0.0]);
}

#[test]
fn a_step_that_is_not_there_or_does_not_fit_is_an_error() {
    let table = table("x", &[(0, true, 1.0), (1, true, 1.0)]);
    for name in ["dft", "focal", "profit"] {
        let message = select(name, "", &table, 0).unwrap_err();
        assert!(message.contains("step under way"), "{message}");
        let cx = SelectContext::online(0, 1, &[-1.0]);
        let message = select_in(name, "", &table, &cx).unwrap_err();
        assert!(
            message.contains("1 log-probabilities") && message.contains("2 tokens"),
            "{message}"
        );
        let cx = SelectContext::online(0, 1, &[-1.0, f32::NAN]);
        let message = select_in(name, "", &table, &cx).unwrap_err();
        assert!(message.contains("example 101, position 3"), "{message}");
    }
    let message = select("focal", "gamma = -1.0", &table, 0).unwrap_err();
    assert!(message.contains("is no exponent"), "{message}");
}
