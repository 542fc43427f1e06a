//! Strategies, signals and adapters that a plan names.

use super::*;

#[test]
fn refused_plugins_have_lines() {
    let plans = one(&format!(
        "{GOOD}[plugins]\nload = [\"no.so\", \"plan.toml\"]\n"
    ));
    assert_eq!(
        plans.bad(&[]),
        [
            "plan.toml:14: plugins.load.0: plugin no.so: No such file or directory (os error 2)",
            "plan.toml:14: plugins.load.1: plugin plan.toml: not a shared library (it has no ELF \
             header)",
        ]
    );
    let pins = one(&format!(
        "{GOOD}[plugins]\nsha256 = {{ \"x.so\" = \"00\" }}\n"
    ));
    assert_eq!(
        pins.bad(&[]),
        [
            "plan.toml:14: plugins.sha256: found \"x.so\"; must be the file name of a library in \
             plugins.load (there are none)"
        ]
    );
}

#[test]
fn components_are_made_and_their_problems_have_lines() {
    let selection = |text: &str| one(&GOOD.replace("strategy = \"t3s\"", text)).bad(&[]);
    assert_eq!(
        selection("strategy = \"t3\""),
        [
            "plan.toml:8: selection.strategy: unknown strategy \"t3\", did you mean \"t3s\"?; known: \
          inverse-t3s, keep-share, t3s"
        ]
    );
    assert_eq!(
        selection("strategy = \"keep-share\"\nshare = 80.0"),
        ["plan.toml:9: selection.share: 80 is not a share; write 0.8 for 80 %"]
    );
    assert_eq!(
        selection("strategy = \"keep-share\""),
        ["plan.toml:7: selection.share: missing; expected a number"]
    );
    assert_eq!(
        selection("strategy = \"t3s\"\nsignal = \"delta-lgp\""),
        [
            "plan.toml:9: selection.signal: strategy \"t3s\" reads the signal \"delta-lgp\", which \
          is neither a [signals.ID] table (there are none) nor the name of a signal (delta-logp, \
          logp); did you mean \"delta-logp\"?"
        ]
    );
    assert_eq!(
        selection("strategy = \"t3s\"\nsignal = \"logp@reference\""),
        [
            "plan.toml:9: selection.signal: the signal \"logp@reference\" reads logp@reference; name \
          a model of the same tokenizer in reference.path, or its token store in reference.store"
        ]
    );
    assert_eq!(
        selection("strategy = \"t3s\"\nsignal = \"logp@step:7\""),
        [
            "plan.toml:9: selection.signal: the signal \"logp@step:7\" reads logp@step:7; the probe \
          has checkpoints every 5 steps and at its last, 50"
        ]
    );
    assert_eq!(
        selection(
            "strategy = \"t3s\"\n[signals.a]\nkind = \"logp\"\natt = \"base\"\n[signals.b]\n[student.decode]"
        ),
        [
            "plan.toml:11: signals.a.att: unknown key; did you mean signals.a.at?",
            "plan.toml:12: signals.b.kind: missing; expected a string (Name of the signal; see \
             `t3s list`)",
        ]
    );
    assert_eq!(
        one(&GOOD.replace("[data]", "adapter = \"qwen\"\n[data]")).bad(&[]),
        ["plan.toml:4: student.adapter: unknown model adapter \"qwen\"; known: "]
    );
}

#[test]
fn the_three_spellings_of_a_signal_are_resolved() {
    let signal = |name: &str| {
        let plans = one(&format!("{GOOD}[signals.logp]\nkind = \"delta-logp\"\n"));
        let loaded = plans.good(&[&format!("selection.signal={name}")]);
        let columns: Vec<String> = loaded
            .components
            .observables
            .iter()
            .map(ToString::to_string)
            .collect();
        columns
    };
    assert_eq!(
        signal("logp"),
        ["logp@base", "logp@bottleneck"],
        "the plan's own comes first"
    );
    assert_eq!(signal("logp@step:*"), ["logp@step:*"]);
    assert_eq!(signal("delta-logp"), ["logp@base", "logp@bottleneck"]);
}

#[test]
fn choosing_another_strategy_drops_only_the_options_it_lacks() {
    let plans = one(&GOOD.replace("\"t3s\"", "\"t3s\"\nthreshold = 0.5"));
    let loaded = plans.good(&["selection.strategy=inverse-t3s"]);
    assert_eq!(
        loaded.plan.selection.options["threshold"].as_float(),
        Some(0.5)
    );
    assert!(loaded.warnings.is_empty());

    let loaded = plans.good(&["selection.strategy=keep-share", "selection.share=0.5"]);
    assert_eq!(loaded.plan.selection.options.len(), 1);
    assert_eq!(
        plans.short(&loaded.warnings[0]),
        "plan.toml:9: selection.threshold: dropped: it belongs to \"t3s\", and \"keep-share\", \
         chosen at --set selection.strategy=keep-share, has no such option"
    );
    let same_layer = plans.bad(&[
        "selection.strategy=keep-share",
        "selection.share=1",
        "selection.threshold=0",
    ]);
    assert_eq!(same_layer.len(), 1, "{same_layer:?}");
}

#[test]
fn unused_signals_are_a_warning() {
    let plans = one(&format!("{GOOD}[signals.mine]\nkind = \"logp\"\n"));
    assert_eq!(
        plans.short(&plans.good(&[]).warnings[0]),
        "plan.toml:13: signals.mine: not read by the strategy \"t3s\""
    );
}
