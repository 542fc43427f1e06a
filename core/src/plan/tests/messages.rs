//! What planning says about bad plans, word for word.

use super::*;

#[test]
fn a_misspelt_key_is_named_with_its_line_and_the_nearest() {
    let plans = one(&format!(
        "{GOOD}batch_token = 4\n[train.adamw]\nbeta3 = 1\n[trian]\n"
    ));
    assert_eq!(
        plans.bad(&[]),
        [
            "plan.toml:13: train.batch_token: unknown key; did you mean train.batch_tokens?",
            "plan.toml:15: train.adamw.beta3: unknown key; did you mean train.adamw.beta1?",
            "plan.toml:16: trian: unknown key; did you mean train?",
        ]
    );
    // Also beside the options of a component.
    let overrides = [
        "selection.form=\"run\"",
        "selection.stratgy=t3s",
        "selection.thresold=1",
    ];
    let nearest = [
        "selection.from",
        "selection.strategy",
        "selection.threshold",
    ];
    let messages = one(GOOD).bad(&overrides);
    assert_eq!(messages.len(), nearest.len(), "{messages:?}");
    for (message, nearest) in messages.iter().zip(nearest) {
        let told = format!("unknown key; did you mean {nearest}?");
        assert!(message.ends_with(&told), "{message}");
    }
    let plans = one(&format!("{GOOD}samples = 4\nzzz = 1\n"));
    let messages = plans.bad(&[]);
    assert_eq!(
        messages[0],
        "plan.toml:13: train.samples: unknown key; did you mean bottleneck.samples?"
    );
    assert!(
        messages[1]
            .starts_with("plan.toml:14: train.zzz: unknown key; known: steps, batch_examples, ")
    );
}

#[test]
fn mistakes_of_every_kind_are_found_in_one_pass() {
    let plans = one(r#"device = "gpu"
[student]
[data]
train = "traces.jsonl"
max_tokens = "many"
too_long = "trunkate"
[selection]
strategy = "t3s"
treshold = 0.5
[probe]
checkpoint_every = 0
[train]
steps = 0
learning_rate = -1.0
recompute = "every 0"
adamw = { beta2 = 1.0 }
[bottleneck.generate]
top_p = 1.5
"#);
    assert_eq!(
        plans.bad(&[]),
        [
            "plan.toml:1: device: \"gpu\" is not a device; write auto, cpu or cuda:N",
            "plan.toml:2: student.path: missing; expected a path (A Hugging Face folder: \
             `config.json`, `tokenizer.json`, safetensors)",
            "plan.toml:5: data.max_tokens: found the string \"many\"; expected a whole number, 0 \
             or more",
            "plan.toml:6: data.too_long: found \"trunkate\"; did you mean truncate?",
            "plan.toml:9: selection.treshold: unknown key; did you mean selection.threshold?",
            "plan.toml:11: probe.checkpoint_every: found 0; must be at least 1",
            "plan.toml:13: train.steps: found 0; must be at least 1",
            "plan.toml:14: train.learning_rate: found -1; must be finite and above 0",
            "plan.toml:15: train.recompute: \"every 0\" is no policy; write none, block or \
             \"every N\"",
            "plan.toml:16: train.adamw.beta2: found 1; must be 0 or more and below 1",
            "plan.toml:18: bottleneck.generate.top_p: found 1.5; must be above 0 and at most 1",
        ]
    );
}

#[test]
fn an_empty_plan_names_every_key_it_needs() {
    let messages = one("").bad(&[]);
    let keys: Vec<&str> = messages
        .iter()
        .map(|m| m.split(": ").nth(1).unwrap())
        .collect();
    assert_eq!(
        keys,
        [
            "student.path",
            "data.train",
            "selection.strategy",
            "train.steps",
            "train.learning_rate"
        ]
    );
}

#[test]
fn all_errors_are_shown_as_one_list() {
    let plans = one(&GOOD.replace("steps = 50", "stps = 50"));
    let errors = plans.load(&[]).unwrap_err();
    assert_eq!(
        plans.short(errors),
        "2 problems in the plan\n  plan.toml:10: train.steps: missing; expected a whole number, 0 \
         or more (Optimiser steps)\n  plan.toml:11: train.stps: unknown key; did you mean \
         train.steps?"
    );
}

#[test]
fn what_is_not_toml_is_named_with_its_line() {
    let messages = one("name = \"a\nseed = 1\nseed = 2\n").bad(&[]);
    assert!(
        messages[0].starts_with("plan.toml:1: not TOML: "),
        "{messages:?}"
    );
    let messages = one("seed = 99999999999999999999\n").bad(&[]);
    assert_eq!(
        messages,
        ["plan.toml:1: not TOML: 99999999999999999999 does not fit into 64 bits with a sign"]
    );
    let folder = tempfile::tempdir().unwrap();
    let error = load(&folder.path().join("none.toml"), &[], &registry()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("none.toml cannot be read: No such file")
    );
}

#[test]
fn a_cycle_and_a_missing_parent_are_errors_with_the_line() {
    let plans = Plans::new(&[
        (
            "plan.toml",
            "extends = [\n  \"a.toml\",\n  \"none.toml\"]\n",
        ),
        ("a.toml", "\nextends = [\"plan.toml\"]\n"),
    ]);
    assert_eq!(
        plans.bad(&[]),
        [
            "plan.toml:3: extends: none.toml cannot be read: No such file or directory (os error \
             2)",
            "a.toml:2: extends: the plan extends itself: plan.toml -> a.toml -> plan.toml",
        ]
    );
    assert_eq!(
        one("extends = \"a.toml\"").bad(&[]),
        [
            "plan.toml:1: extends: found the string \"a.toml\"; expected an array of paths, relative \
          to this file"
        ]
    );
}

#[test]
fn bad_overrides_are_named_as_typed() {
    assert_eq!(
        one(GOOD).bad(&[
            "train.steps",
            "train..steps=1",
            "a=[1",
            "extends=[]",
            "train.steps.x.0=1"
        ]),
        [
            "--set train.steps: write KEY=VALUE, e.g. train.steps=50",
            "--set train..steps=1: \"train..steps\" is not a dotted key",
            "--set a=[1: \"[1\" is not a TOML value: unclosed array, expected `]`",
            "--set extends=[]: extends can only stand in a file",
        ]
    );
    assert_eq!(
        one(GOOD).bad(&[
            "train.stpes=1",
            "train.warmup=often",
            "train.lora.targets=[1]"
        ]),
        [
            "--set train.lora.targets=[1]: train.lora.targets.0: found the number 1; expected a \
             string",
            "--set train.stpes=1: train.stpes: unknown key; did you mean train.steps?",
            "--set train.warmup=often: train.warmup: found the string \"often\"; expected a number",
        ]
    );
    let array = one(&format!("{GOOD}lora.targets = [\"q_proj\"]\n"));
    assert_eq!(
        array.bad(&["train.lora.targets.5=k_proj"]),
        ["--set train.lora.targets.5=k_proj: \"5\" is no index of an array of 1 elements"]
    );
}
