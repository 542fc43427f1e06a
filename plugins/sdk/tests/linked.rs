//! Two plugins in one program, linked: nothing but `plugins!` names them.

#![allow(unsafe_code, reason = "asks as a host does")]

use t3s_plugin::{Kind, Registry, SelectContext, TokenTable, toml};

t3s_plugin::plugins! { t3s_example_forking_tokens, t3s_example_trajectory_slope }

#[test]
fn linked_plugins_are_known_and_answer() {
    let registry = Registry::linked().expect("no clash");
    let names = |kind| registry.of_kind(kind).map(|entry| entry.name).collect();
    let (strategies, signals): (Vec<_>, Vec<_>) = (names(Kind::Strategy), names(Kind::Signal));
    assert_eq!(strategies, ["forking-tokens"]);
    assert_eq!(signals, ["fitted-slope"]);

    let mut table = TokenTable::new(
        vec![4],
        vec![0, 3],
        vec![1, 2, 3],
        vec![0, 1, 2],
        vec![false, true, true],
    )
    .expect("one column per token");
    table
        .insert("entropy@base", vec![9.0, 0.5, 2.0])
        .expect("one number per token");
    for (step, column) in [[9.0, -3.0, -1.0], [9.0, -2.0, -1.5]].iter().enumerate() {
        table
            .insert(format!("logp@step:{step}"), column.to_vec())
            .expect("one number per token");
    }
    let mut out = [7.0; 3];
    let options = toml::Table::new();
    let strategy = registry.strategy("forking-tokens", &options);
    let strategy = strategy.unwrap_or_else(|error| panic!("{error}"));
    let cx = SelectContext::recorded(0);
    assert_eq!(strategy.select(&table.view(), &cx, &mut out), Ok(()));
    assert_eq!(out, [0.0, 0.0, 1.0]);
    let signal = registry.signal("fitted-slope", &options);
    let signal = signal.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(signal.compute(&table.view(), &mut out), Ok(()));
    assert!(
        (out[1] - 1.0).abs() < 1e-6 && (out[2] + 0.5).abs() < 1e-6,
        "{out:?}"
    );
}

#[test]
fn one_symbol_lists_the_components_of_both() {
    let components = t3s_plugin::t3s_plugin.components.expect("a function");
    let (mut list, mut count) = (std::ptr::null(), 0);
    let mut error = t3s_core::plugin::abi::T3sText::NONE;
    // SAFETY: three places that live for the call.
    let status = unsafe { components(&mut list, &mut count, &mut error) };
    assert_eq!((status, count), (0, 2));
    // SAFETY: the function has just said that there are so many, which stay, and so do their names.
    let mut names: Vec<&[u8]> = unsafe {
        std::slice::from_raw_parts(list, count)
            .iter()
            .filter_map(|component| (**component).name.bytes())
            .collect()
    };
    names.sort();
    assert_eq!(names, [&b"fitted-slope"[..], b"forking-tokens"]);
}
