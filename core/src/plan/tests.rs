//! What planning says about good and bad plans, word for word.

use std::{fs, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use tempfile::TempDir;

use super::*;
use crate::{
    CheckpointRef, ComponentError, ConfidenceSignal, Declaration, ObservableRef, SelectContext,
    SelectionStrategy, SignalRef, TokenView, When,
    registry::{Factory, Registration, read_options, schema_of},
    strategy::Scope,
};

/// Keeps tokens whose signal is above a threshold.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Above {
    threshold: f32,
    signal: String,
}

impl Default for Above {
    fn default() -> Self {
        Self {
            threshold: 0.0,
            signal: "delta-logp".to_owned(),
        }
    }
}

/// Keeps a share.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its being refused matters")]
struct KeepShare {
    share: Share,
}

#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "f64")]
struct Share(#[expect(dead_code, reason = "only its being refused matters")] f64);

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        if (0.0..=1.0).contains(&share) {
            Ok(Self(share))
        } else {
            Err(format!("{share} is not a share; write 0.8 for 80 %"))
        }
    }
}

macro_rules! strategy {
    ($type:ty, |$this:ident| $needs:expr) => {
        impl SelectionStrategy for $type {
            fn needs(&self) -> Vec<SignalRef> {
                let $this = self;
                $needs
            }
            fn when(&self) -> When {
                When::Recorded
            }
            fn declare(&self) -> Declaration {
                Declaration::new(Scope::PerExample)
            }
            fn select(
                &self,
                _: &TokenView<'_>,
                _: &SelectContext<'_>,
                out: &mut [f32],
            ) -> Result<(), ComponentError> {
                out.fill(0.0);
                Ok(())
            }
        }
    };
}

strategy!(Above, |this| vec![SignalRef::new(&this.signal)]);
strategy!(KeepShare, |_this| vec![]);

/// One column.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Logp {
    #[serde(default = "base")]
    at: String,
}

fn base() -> String {
    "base".to_owned()
}

impl ConfidenceSignal for Logp {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![ObservableRef::logp(self.at.parse().expect("a checkpoint"))]
    }
    fn compute(&self, _: &TokenView<'_>, _: &mut [f32]) -> Result<(), ComponentError> {
        Ok(())
    }
}

/// Two columns.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Delta {}

impl ConfidenceSignal for Delta {
    fn needs(&self) -> Vec<ObservableRef> {
        [CheckpointRef::Base, CheckpointRef::Bottleneck]
            .map(ObservableRef::logp)
            .into()
    }
    fn compute(&self, _: &TokenView<'_>, _: &mut [f32]) -> Result<(), ComponentError> {
        Ok(())
    }
}

fn registry() -> Registry {
    macro_rules! entry {
        ($kind:ident, $name:literal, $type:ty) => {
            Registration {
                name: $name,
                summary: "",
                origin: "test",
                schema: schema_of::<$type>,
                factory: Factory::$kind(|o| Ok(Box::new(read_options::<$type>(o)?))),
            }
        };
    }
    Registry::from_entries([
        entry!(Strategy, "t3s", Above),
        entry!(Strategy, "inverse-t3s", Above),
        entry!(Strategy, "keep-share", KeepShare),
        entry!(Signal, "logp", Logp),
        entry!(Signal, "delta-logp", Delta),
    ])
    .expect("no clash")
}

const GOOD: &str = r#"[student]
path = "student"

[data]
train = "traces.jsonl"

[selection]
strategy = "t3s"

[train]
steps = 50
learning_rate = 1e-5
"#;

/// A folder with plans.
struct Plans(TempDir);

impl Plans {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        Self(folder)
    }

    fn load(&self, overrides: &[&str]) -> Result<Loaded, PlanErrors> {
        let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_owned()).collect();
        load(&self.0.path().join("plan.toml"), &overrides, &registry())
    }

    fn good(&self, overrides: &[&str]) -> Loaded {
        self.load(overrides).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The messages, with the folder's own path taken out.
    fn bad(&self, overrides: &[&str]) -> Vec<String> {
        let errors = self.load(overrides).expect_err("a bad plan");
        errors.0.iter().map(|e| self.short(e)).collect()
    }

    fn short(&self, text: impl ToString) -> String {
        let folder = format!("{}/", self.0.path().display());
        text.to_string().replace(&folder, "")
    }
}

fn one(text: &str) -> Plans {
    Plans::new(&[("plan.toml", text)])
}

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
    assert_eq!(loaded.explain("train.adamw").unwrap().len(), 4);
    assert_eq!(
        loaded.explain("train.stepz").unwrap_err().to_string(),
        "train.stepz: unknown key; did you mean train.steps?"
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

#[test]
fn plugins_have_no_loader_yet() {
    assert_eq!(
        one(GOOD).bad(&["plugins.load=[\"x.so\"]"]),
        [
            "--set plugins.load=[\"x.so\"]: plugins.load: found \"x.so\"; this build has no plugin \
          loader, so link the component's crate into the program and remove the key"
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
            "plan.toml:9: selection.signal: the signal \"logp@reference\" reads logp@reference; a \
          plan cannot name a reference model yet; use base, bottleneck, final or step:N"
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
