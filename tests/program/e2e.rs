//! The whole run through the program: what it leaves behind, what a second run repeats, and how it
//! goes on after an interruption.

#[expect(dead_code, reason = "used in part")]
mod support;

use std::{
    fs,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{World, signal, stages_done};

const ALL: [&str; 11] = [
    "corpus",
    "probe",
    "score-base",
    "score-step-000002",
    "trajectory",
    "select",
    "train",
    "evaluate-base",
    "evaluate-step-000002",
    "evaluate-step-000004",
    "evaluate-student",
];

/// The step of the bottleneck is named, so that the stages are known.
const NAMED: &str = "bottleneck.step=2";

#[test]
fn a_run_leaves_everything_and_a_second_one_does_nothing() {
    let world = World::new();
    let events = world.run(&[]).good().json();
    assert_eq!(events[0]["event"], "run-started");
    assert_eq!(events.last().unwrap()["event"], "done");
    let done = stages_done(&events);
    assert!(done.len() >= 9 && done[0] == "corpus", "{done:?}");
    let run = |name: &str| format!("runs/a/{name}");
    for name in ["summary.json", "plan.toml", "run.json", "selection.parquet"] {
        assert!(world.path(&run(name)).exists(), "{name}");
    }
    for name in [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
    ] {
        assert!(world.path(&run("student")).join(name).exists(), "{name}");
    }
    for stage in ["probe", "train"] {
        let folder = world.path(&run("tensorboard")).join(stage);
        assert!(fs::read_dir(folder).unwrap().count() > 0, "{stage}");
    }
    for line in world.read(&run("events.jsonl")).lines() {
        serde_json::from_str::<Value>(line).expect("an event");
    }
    let summary = world.json(&run("summary.json"));
    assert_eq!(summary["corpus"]["examples"], 16);
    assert_eq!(summary["evaluation"].as_array().unwrap().len(), 4);
    assert!(summary["selection"]["kept"].as_u64() > Some(0));
    let losses = [
        &summary["train"]["first_loss"],
        &summary["train"]["last_loss"],
    ];
    assert!(losses[0].as_f64() > losses[1].as_f64(), "{losses:?}");

    let student = fs::read(world.path("runs/a/student/model.safetensors")).unwrap();
    let events = world.run(&[]).good().json();
    assert_eq!(stages_done(&events), [""; 0]);
    assert_eq!(
        fs::read(world.path("runs/a/student/model.safetensors")).unwrap(),
        student
    );

    // What was trained is a model like any other.
    let store = ["--data", "traces.jsonl", "--out", "store.parquet"];
    world
        .t3s(&[&["score", "runs/a/student"], &store[..]].concat())
        .good();
}

#[test]
fn selections_share_every_earlier_stage() {
    let world = World::new();
    let events = world.run(&[NAMED]).good().json();
    assert_eq!(stages_done(&events), ALL);
    let rerun = ["select", "train", "evaluate-student"];
    for strategy in ["inverse-t3s", "static-confidence", "all", "random"] {
        let selection = format!("selection.strategy={strategy}");
        // In the same folder, and in one beside it.
        let out = format!("out=runs/{strategy}");
        let events = world.run(&[NAMED, &selection, &out]).good().json();
        assert_eq!(stages_done(&events), rerun, "{strategy}");
    }
    let events = world.run(&[NAMED, "selection.strategy=all"]).good().json();
    assert_eq!(
        stages_done(&events),
        [""; 0],
        "taken over from the folder beside it"
    );
    let kept =
        |name: &str| world.json(&format!("runs/{name}/summary.json"))["selection"]["kept"].clone();
    let number = |name: &str| kept(name).as_u64().unwrap();
    let t3s = {
        world.run(&[NAMED]).good();
        number("a")
    };
    assert_eq!(t3s + number("inverse-t3s"), number("all"));
    // A folder whose siblings are gone is complete.
    fs::remove_dir_all(world.path("runs/a")).unwrap();
    let events = world
        .run(&[NAMED, "selection.strategy=random", "out=runs/random"])
        .good()
        .json();
    assert_eq!(stages_done(&events), [""; 0]);
}

#[test]
fn changing_the_probe_repeats_what_reads_it() {
    let world = World::new();
    world.run(&[NAMED]).good();
    let events = world
        .run(&[NAMED, "probe.learning_rate=1e-3"])
        .good()
        .json();
    let done = stages_done(&events);
    assert!(!done.contains(&"corpus".to_owned()) && !done.contains(&"score-base".to_owned()));
    assert!(
        done.contains(&"probe".to_owned()) && done.contains(&"train".to_owned()),
        "{done:?}"
    );
}

#[test]
fn nothing_right_falls_back_to_the_answers_likelihood_and_says_so() {
    let world = World::new();
    let generate = "bottleneck.generate={temperature=0.0, max_new_tokens=4}";
    let overrides = [
        "bottleneck.by=train-accuracy",
        "bottleneck.samples=1",
        generate,
    ];
    let events = world.run(&overrides).good().json();
    let warned = |e: &Value| {
        let message = e["message"].as_str().unwrap_or("");
        e["event"] == "warning" && message.contains("answered a single training prompt right")
    };
    assert!(events.iter().any(warned));
    let summary = world.json("runs/a/summary.json");
    assert_eq!(summary["bottleneck"]["by"], "answer-token-logp");
    let accuracy = summary["train_accuracy"].as_array().unwrap();
    let counts = &accuracy[0]["accuracy"];
    assert_eq!(
        counts["answers"], counts["truncated"],
        "none ends within four tokens"
    );
}

#[test]
fn a_low_rank_run_writes_an_adapter() {
    let world = World::new();
    let lora = "train.lora={rank=2, targets=[\"q_proj\", \"down_proj\"]}";
    world.run(&[NAMED, lora]).good();
    let student = world.path("runs/a/student");
    assert!(student.join("adapter_model.safetensors").is_file());
    let config: Value =
        serde_json::from_slice(&fs::read(student.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["peft_type"], &config["r"]),
        (&"LORA".into(), &2.into())
    );
    let args = [
        "score",
        "runs/a/student",
        "--base",
        "student",
        "--data",
        "traces.jsonl",
    ];
    world
        .t3s(&[&args[..], &["--out", "store.parquet"]].concat())
        .good();
}

#[test]
fn plain_fine_tuning_is_a_command_of_its_own() {
    let world = World::new();
    let said = world.t3s(&["--json", "train", "plan.toml"]).good();
    let summary = said.json().pop().unwrap();
    assert_eq!(summary["train"]["steps"], 4);
    assert_eq!(
        stages_done(&said.json()),
        ["corpus", "sft", "evaluate-base", "evaluate-student"]
    );
}

#[test]
fn stores_can_be_selected_on_without_a_plan() {
    let world = World::new();
    world.run(&[NAMED]).good();
    let score = |model: &str, out: &str| {
        let args = [
            "score",
            model,
            "--data",
            "traces.jsonl",
            "--max-tokens",
            "128",
            "--out",
            out,
        ];
        world.t3s(&args).good();
    };
    score("student", "base.parquet");
    let probe = fs::read_dir(world.path("runs/a/stages"))
        .unwrap()
        .map(|e| e.unwrap().path());
    let probe = probe
        .into_iter()
        .find(|p| p.to_string_lossy().contains("/probe-"))
        .unwrap();
    score(
        probe.join("checkpoints/step-000002").to_str().unwrap(),
        "bottleneck.parquet",
    );
    let stores = [
        "--store",
        "base=base.parquet",
        "--store",
        "bottleneck=bottleneck.parquet",
    ];
    let args = [
        &["--json", "select"],
        &stores[..],
        &["--out", "selection.parquet"],
    ]
    .concat();
    let chosen = world.t3s(&args).good().json().pop().unwrap();
    let summary = world.json("runs/a/summary.json");
    assert_eq!(chosen["kept"], summary["selection"]["kept"]);
    let refused = world.t3s(&[
        "select",
        "--store",
        "base=base.parquet",
        "--out",
        "x.parquet",
    ]);
    let message = refused.failed(2);
    assert!(
        message.contains("no store of bottleneck was given"),
        "{message}"
    );
}

#[test]
fn check_says_what_a_run_will_cost_and_explain_where_a_value_is_from() {
    let world = World::new();
    let checked = world
        .t3s(&["--json", "check", "plan.toml"])
        .good()
        .json()
        .pop()
        .unwrap();
    assert_eq!(checked["corpus"]["examples"], 16);
    assert!(checked["prediction"]["peak_memory"].as_u64() > Some(1 << 20));
    assert!(
        !world.path("runs").exists(),
        "a check leaves nothing behind"
    );
    let said = world
        .t3s(&[
            "explain",
            "plan.toml",
            "probe.steps",
            "--set",
            "train.steps=9",
        ])
        .good();
    assert!(said.out.starts_with("probe.steps = 9\n"), "{}", said.out);
    assert!(said.out.contains("plan.toml:"), "{}", said.out);
    let said = world.t3s(&["list"]).good();
    for name in [
        "t3s",
        "inverse-t3s",
        "static-confidence",
        "random",
        "all",
        "delta-logp",
        "qwen3",
    ] {
        assert!(
            said.out.contains(&format!("\n  {name} ")),
            "{name}: {}",
            said.out
        );
    }
}

/// Starts a run and waits for the `n`th optimiser step of `stage`.
fn started(world: &World, overrides: &[&str], stage: &str, n: usize) -> Child {
    let mut args = vec!["--json", "run", "plan.toml"];
    for pair in overrides {
        args.extend(["--set", pair]);
    }
    support::started(&mut world.command(&args), stage, n)
}

fn student(world: &World) -> Vec<u8> {
    fs::read(world.path("runs/a/student/model.safetensors")).unwrap()
}

const LONG: [&str; 3] = [NAMED, "train.steps=60", "train.save_every=10"];

#[test]
fn an_interrupted_run_goes_on_bit_for_bit() {
    let whole = World::new();
    whole.run(&LONG).good();

    let world = World::new();
    let mut child = started(&world, &LONG, "probe", 13);
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let works: Vec<_> = fs::read_dir(world.path("runs/a/work")).unwrap().collect();
    assert_eq!(works.len(), 1, "the probe's unfinished work is kept");
    let mut child = started(&world, &LONG, "train", 7);
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    world.run(&LONG).good();
    assert_eq!(student(&world), student(&whole));
}

#[test]
fn a_killed_run_goes_on_from_its_last_saved_state() {
    let whole = World::new();
    whole.run(&LONG).good();

    let world = World::new();
    let mut child = started(&world, &LONG, "train", 25);
    signal(&child, "-KILL");
    child.wait().unwrap();
    world.run(&LONG).good();
    assert_eq!(student(&world), student(&whole));
    let steps = world.read("runs/a/events.jsonl");
    let again = |step: u64| {
        let of = |line: &&str| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["event"] == "step" && event["stage"] == "train" && event["step"] == step
        };
        steps.lines().filter(of).count()
    };
    assert_eq!(again(5), 1, "what was saved is not done again");
    assert!(again(60) == 1);
}

#[test]
fn a_second_run_in_the_same_folder_is_refused() {
    let world = World::new();
    let mut child = started(&world, &[NAMED, "train.steps=2000"], "probe", 1);
    let message = world.run(&[]).failed(1);
    assert!(
        message.contains("another t3s run works in this folder"),
        "{message}"
    );
    assert!(
        message.contains(&format!("process {}", child.id())),
        "{message}"
    );
    signal(&child, "-INT");
    let started = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(!Path::new(&world.path("runs/a/summary.json")).exists());
}
