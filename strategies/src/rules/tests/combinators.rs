//! Strategies made of strategies.

use proptest::prelude::*;

use super::*;

/// The options of what is combined: two hard rules and a soft one, on one column.
const PARTS: [(&str, &str); 3] = [
    ("t3s", "signal = 'x', threshold = 0.5"),
    (
        "static-confidence",
        "signal = 'x', share = 0.3, mask = 'low'",
    ),
    ("dft", "confidence = 'low'"),
];

fn two_columns(tokens: &[Token]) -> TokenTable {
    let mut table = table("x", tokens);
    let low: Vec<f32> = table
        .view()
        .column("x")
        .unwrap()
        .iter()
        .map(|x| -x.abs())
        .collect();
    table.insert("low", low).unwrap();
    table
}

proptest! {
    #[test]
    fn combinators_combine_token_by_token(tokens in tokens(), parts in 0usize..8) {
        let table = two_columns(&tokens);
        let parts: Vec<_> = (0..3).filter(|i| parts >> i & 1 == 1).map(|i| PARTS[i]).collect();
        let alone: Vec<Vec<f32>> = parts
            .iter()
            .map(|(name, options)| {
                select(name, &options.replace(", ", "\n"), &table, 0).unwrap()
            })
            .collect();
        let of: Vec<String> = parts
            .iter()
            .map(|(name, options)| format!("{{ strategy = '{name}', {options} }}"))
            .collect();
        let of = format!("of = [{}]", of.join(", "));
        let union = select("union", &of, &table, 0).unwrap();
        let intersect = select("intersect", &of, &table, 0).unwrap();
        let product = select("product", &of, &table, 0).unwrap();
        for (row, eligible) in table.view().eligible().iter().enumerate() {
            let weights = || alone.iter().map(|w| w[row]);
            let of_none = f32::from(u8::from(*eligible));
            prop_assert_eq!(union[row], weights().fold(0.0, f32::max));
            prop_assert_eq!(intersect[row], weights().fold(of_none, f32::min));
            prop_assert_eq!(product[row], weights().fold(of_none, |a, b| a * b));
        }
    }

    #[test]
    fn inverting_twice_is_doing_nothing(tokens in tokens()) {
        let table = two_columns(&tokens);
        for (name, options) in PARTS {
            let part = format!("{{ strategy = '{name}', {options} }}");
            let plain = select(name, &options.replace(", ", "\n"), &table, 0).unwrap();
            let once = select("invert", &format!("of = {part}"), &table, 0).unwrap();
            let twice = format!("of = {{ strategy = 'invert', of = {part} }}");
            let twice = select("invert", &twice, &table, 0).unwrap();
            for (row, eligible) in table.view().eligible().iter().enumerate() {
                prop_assert_eq!(once[row], f32::from(u8::from(*eligible)) - plain[row]);
                // 1 - (1 - w) rounds.
                prop_assert!((twice[row] - plain[row]).abs() < 1e-7);
            }
        }
    }

    #[test]
    fn invert_of_t3s_is_the_inverse(tokens in tokens()) {
        let table = table("delta-logp", &tokens);
        let inverse = select("inverse-t3s", "", &table, 0).unwrap();
        prop_assert_eq!(select("invert", "", &table, 0).unwrap(), inverse);
    }

    #[test]
    fn schedules_change_after_their_steps(tokens in tokens(), steps in 0u64..4) {
        let table = table("delta-logp", &tokens);
        let current = vec![-1.0; tokens.len()];
        let options = format!("steps = {steps}\nfirst = {{ strategy = 'inverse-t3s' }}");
        for step in 1..=4 {
            let cx = SelectContext::online(0, step, &current);
            let weights = select_in("schedule", &options, &table, &cx).unwrap();
            let now = if step <= steps { "inverse-t3s" } else { "t3s" };
            prop_assert_eq!(weights, select(now, "", &table, 0).unwrap());
        }
    }
}

#[test]
fn what_only_a_later_step_reads_is_missed_at_the_first() {
    let table = table("x", &[(0, true, 1.0)]);
    let cx = SelectContext::online(0, 1, &[-1.0]);
    let message = select_in("schedule", "", &table, &cx).unwrap_err();
    assert!(message.contains("delta-logp"), "{message}");
}

#[test]
fn combinators_are_asked_when_one_of_their_parts_is() {
    let registry = Registry::linked().expect("no clash");
    let made = |name, options: &str| {
        let options = options.parse().expect("TOML");
        registry.strategy(name, &options).expect("good options")
    };
    let recorded = "of = [{ strategy = 't3s' }, { strategy = 'entropy' }]";
    let online = "of = [{ strategy = 't3s' }, { strategy = 'rho-1', student = 'current' }]";
    assert_eq!(made("union", recorded).when(), When::Recorded);
    assert_eq!(made("union", online).when(), When::Online);
    let needs = |options| -> Vec<String> {
        let needs = made("union", options).needs();
        needs.iter().map(ToString::to_string).collect()
    };
    assert_eq!(needs(recorded), ["delta-logp", "entropy@base"]);
    assert_eq!(needs(online), ["delta-logp", "logp@reference"]);
    // Each once.
    let twice = "of = [{ strategy = 't3s' }, { strategy = 'inverse-t3s' }]";
    assert_eq!(needs(twice), ["delta-logp"]);
    let declared = made("intersect", twice).declare();
    assert!(declared.rising.is_empty() && declared.falling.is_empty());
    assert_eq!(made("union", "").declare().falling, ["delta-logp"]);
    assert_eq!(made("invert", "").declare().rising, ["delta-logp"]);
}

#[test]
fn what_is_wrong_inside_is_named() {
    let table = table("x", &[(0, true, 1.0)]);
    let refused = |name, options| select(name, options, &table, 0).unwrap_err();
    let message = refused("union", "of = [{ strategy = 't3z' }]");
    assert!(message.contains("did you mean \"t3s\""), "{message}");
    let message = refused("union", "of = [{ strategy = 't3s', treshold = 1.0 }]");
    assert!(message.contains("t3s: treshold"), "{message}");
    let message = refused("invert", "of = { threshold = 1.0 }");
    assert!(
        message.contains("no \"strategy\" in the table"),
        "{message}"
    );
    let message = refused("invert", "of = { strategy = 3 }");
    assert!(message.contains("integer"), "{message}");
    let registry = Registry::linked().expect("no clash");
    let options = "of = [{ strategy = 't3s' }, { strategy = 't3z' }]".parse();
    let error = registry.strategy("union", &options.expect("TOML"));
    let key = match error.err().expect("refused") {
        RegistryError::Component(ComponentError::Options { key, .. }) => key,
        other => panic!("{other}"),
    };
    assert_eq!(key, "of[1]");
}
