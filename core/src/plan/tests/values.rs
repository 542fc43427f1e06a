//! What good plans mean, and how they are explained and saved.

use super::*;

#[test]
fn a_short_plan_has_every_default() {
    let plans = one(GOOD);
    let loaded = plans.good(&[]);
    let plan = &loaded.plan;
    assert_eq!(plan.name, "plan");
    assert_eq!(plan.out, PathBuf::from("runs/plan"));
    assert_eq!((plan.seed, &plan.device), (0, &DeviceChoice::Auto));
    assert_eq!(plan.student.path, plans.0.path().join("student"));
    assert_eq!(plan.data.chat_template, PathBuf::new());
    assert_eq!(plan.probe.training, plan.train, "inherited key by key");
    assert_eq!(plan.probe.checkpoint_every, 5);
    let columns: Vec<String> = loaded
        .components
        .observables
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(columns, ["logp@base", "logp@bottleneck"]);
    assert_eq!(loaded.components.signals[0].0.as_str(), "delta-logp");
    assert!(loaded.warnings.is_empty());
}

#[test]
fn plans_extend_plans_relative_to_themselves() {
    let plans = Plans::new(&[
        (
            "plan.toml",
            "extends = [\"base/a.toml\", \"base/b.toml\"]\n[train]\nsteps = 7\n",
        ),
        (
            "base/a.toml",
            &format!("{GOOD}clip_norm = 3.0\nwarmup = 0.5\n"),
        ),
        (
            "base/b.toml",
            "[train]\nsteps = 6\nwarmup = 0.25\n[data]\nlimit = 9\n",
        ),
    ]);
    let loaded = plans.good(&["train.clip_norm=4"]);
    let plan = &loaded.plan;
    assert_eq!(plan.train.steps, 7);
    assert_eq!(plan.train.warmup, 0.25);
    assert_eq!(plan.train.clip_norm, 4.0);
    assert_eq!(plan.data.limit, 9);
    assert_eq!(plan.student.path, plans.0.path().join("base/student"));

    let explained = |key: &str| plans.short(&loaded.explain(key).unwrap()[0]);
    assert_eq!(
        explained("train.steps"),
        "train.steps = 7\n  from plan.toml:3\n  over base/b.toml:2: 6\n  over base/a.toml:11: 50"
    );
    assert_eq!(
        explained("train.clip_norm"),
        "train.clip_norm = 4.0\n  from --set train.clip_norm=4: 4\n  over base/a.toml:13: 3.0"
    );
    assert_eq!(
        explained("probe.warmup"),
        "probe.warmup = 0.25\n  from base/b.toml:3 train.warmup\n  over base/a.toml:14 \
         train.warmup: 0.5"
    );
    assert_eq!(
        explained("train.packing"),
        "train.packing = true\n  from default"
    );
    assert_eq!(loaded.explain("train.adamw").unwrap().len(), 5);
    assert_eq!(
        loaded.explain("train.stepz").unwrap_err().to_string(),
        "train.stepz: unknown key; did you mean train.steps?"
    );
}

#[test]
fn two_plans_may_extend_one() {
    let plans = Plans::new(&[
        ("plan.toml", "extends = [\"a.toml\", \"b.toml\"]"),
        ("a.toml", "extends = [\"base.toml\"]"),
        ("b.toml", "extends = [\"base.toml\"]\n[train]\nsteps = 3"),
        ("base.toml", GOOD),
    ]);
    assert_eq!(plans.good(&[]).plan.train.steps, 3);
}

#[test]
fn overrides_reach_tables_arrays_and_bare_strings() {
    let plans = one(&format!(
        "{GOOD}[train.lora]\ntargets = [\"q_proj\", \"v_proj\"]\n"
    ));
    let plan = plans
        .good(&[
            "seed = 3",
            "name=a b",
            "device=cuda:1",
            "train.lora.targets.0=k_proj",
            "train.lora.targets.2=\"o_proj\"",
            "probe.steps=20",
            "train.adamw={ beta1 = 0.5 }",
            "data.train=other.jsonl",
            "signals.mine.kind=logp",
            "signals.mine.at=final",
            "selection.signal=mine",
            "plugins.load=[]",
        ])
        .plan;
    assert_eq!((plan.seed, plan.name.as_str()), (3, "a b"));
    assert_eq!(plan.device, DeviceChoice::Cuda(1));
    assert_eq!(
        plan.train.lora.unwrap().targets,
        ["k_proj", "v_proj", "o_proj"]
    );
    assert_eq!((plan.probe.training.steps, plan.train.steps), (20, 50));
    assert_eq!(plan.train.adamw.beta1, 0.5);
    assert_eq!(
        plan.data.train,
        PathBuf::from("other.jsonl"),
        "from the working directory"
    );
    assert_eq!(plan.signals["mine"].options["at"].as_str(), Some("final"));
    assert_eq!(plan.selection.options["signal"].as_str(), Some("mine"));
}

#[test]
fn the_probe_inherits_and_switches_off() {
    let plans = one(&format!(
        "{GOOD}[train.lora]\nrank = 4\n[probe]\nlora = false\nadamw.beta1 = 0.5\n[train.adamw]\nbeta2 = 0.9\n"
    ));
    let plan = plans.good(&[]).plan;
    assert_eq!(plan.train.lora.as_ref().unwrap().rank, 4);
    assert_eq!(plan.probe.training.lora, None);
    assert_eq!(
        (
            plan.probe.training.adamw.beta1,
            plan.probe.training.adamw.beta2
        ),
        (0.5, 0.9)
    );
    assert_eq!(plan.train.adamw.beta1, 0.9);

    let bad = one(&format!("{GOOD}[probe]\nlearning_rate = 0\n")).bad(&["train.warmup=2"]);
    assert_eq!(
        bad,
        [
            "plan.toml:14: probe.learning_rate: found 0; must be finite and above 0",
            "--set train.warmup=2: train.warmup: found 2; must be a share of the steps, 0 to 1",
        ]
    );
}

#[test]
fn a_saved_plan_loads_as_the_same_plan() {
    let plans = one(&format!(
        "seed = 5\n{GOOD}[train.lora]\nrank = 4\n[probe]\nlora = false\nsteps = 10\n[signals.mine]\nkind = \"logp\"\nat = \"final\"\n"
    ));
    let plan = plans
        .good(&["selection.signal=mine", "bottleneck.step=5"])
        .plan;
    let elsewhere = Plans::new(&[("plan.toml", &plan.to_toml())]);
    let again = elsewhere.good(&[]).plan;
    let mut expected = plan.clone();
    expected.out = std::path::absolute(&plan.out).unwrap();
    assert_eq!(again, expected);
    assert_eq!(again.to_toml(), plan.to_toml());
    assert_eq!(
        again.fingerprint(),
        plan.fingerprint(),
        "`out` does not count"
    );
    let mut other = plan.clone();
    other.train.clip_norm += 1.0;
    assert_ne!(other.fingerprint(), plan.fingerprint());
}

#[test]
fn home_is_expanded() {
    let plan = one(GOOD).good(&["student.path=~/m"]).plan;
    if let Some(home) = std::env::home_dir() {
        assert_eq!(plan.student.path, home.join("m"));
    }
}

#[test]
fn the_reference_has_every_key() {
    let text = reference_markdown();
    for line in [
        "### `[train.adamw]`",
        "### `[signals.ID]`",
        "| `beta1` | a number | `0.9` | Decay of the first moment. |",
        "| `steps` | a whole number, 0 or more | required | Optimiser steps. |",
        "| `path` | a path | required |",
        "| `checkpoint_every` | a whole number, 0 or more | `5` |",
        "<br>`sum_weights`: The sum of the weights.",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
