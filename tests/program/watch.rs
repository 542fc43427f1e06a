//! A probe that is measured while it trains, on the quickstart's student.

#[expect(dead_code, reason = "used in part")]
mod support;

use std::path::Path;

use serde_json::Value;
use support::{World, signal, stages_done};

const PLAN: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../examples/quickstart/plan.toml"
);

/// The quickstart, small enough for a test and with a probe that falls and would go on for long.
const SMALL: [&str; 13] = [
    "bottleneck.watch=true",
    "bottleneck.prompts=16",
    "bottleneck.generate.max_new_tokens=40",
    "bottleneck.patience=1",
    "bottleneck.minimum_drop=0.1",
    "probe.steps=60",
    "train.batch_examples=8",
    "train.learning_rate=1e-3",
    "train.steps=2",
    "eval.limit=4",
    "eval.generate.max_new_tokens=8",
    "data.limit=16",
    "score.trajectory_examples=0",
];

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["--json", "run", PLAN, "--set", "out=runs/a"];
    for pair in SMALL.iter().chain(more) {
        all.extend(["--set", *pair]);
    }
    all
}

fn summary(world: &World) -> Value {
    world.json("runs/a/summary.json")
}

#[test]
fn the_probe_stops_when_its_valley_is_behind_it_however_often_it_is_interrupted() {
    assert!(Path::new(PLAN).is_file());
    let world = World::new();
    let mut child = support::started(&mut world.command(&args(&[])), "probe", 6);
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let events = world.t3s(&args(&[])).good().json();
    let found = summary(&world);
    let bottleneck = &found["bottleneck"];
    assert_eq!(bottleneck["by"], "train-accuracy");
    assert_eq!(bottleneck["dropped"], true);
    assert!(bottleneck["drop"].as_f64() >= Some(0.1));
    assert!(bottleneck["drop_interval"]["low"].as_f64() > Some(0.0));
    let valley = bottleneck["step"].as_u64().unwrap();
    let stopped = found["probe"]["steps"].as_u64().unwrap();
    assert_eq!(stopped, valley + 4, "one measurement after it");
    assert!(stopped < 60);
    let curve = found["train_accuracy"].as_array().unwrap();
    assert_eq!(curve.len() as u64, 1 + stopped / 4);
    assert!(!stages_done(&events).contains(&"accuracy".to_owned()));
    // The page and the analysis read what was measured on the way.
    let page = world.read("runs/a/report.html");
    for words in [
        "Of 16 answers to training prompts",
        "where the probe was stopped, step",
    ] {
        assert!(page.contains(words), "{words}");
    }
    assert_eq!(stages_done(&world.t3s(&args(&[])).good().json()), [""; 0]);

    let whole = World::new();
    whole.t3s(&args(&[])).good();
    let without_times = |world: &World| {
        let mut summary = summary(world);
        let mut probe = summary["probe"].take();
        probe["seconds"] = Value::Null;
        (
            probe,
            summary["bottleneck"].clone(),
            summary["train_accuracy"].clone(),
        )
    };
    assert_eq!(without_times(&world), without_times(&whole));

    // Only the training differs where it goes on; it has learnt before.
    let all = "selection.strategy=all";
    world.t3s(&args(&[all])).good();
    let restarted = summary(&world);
    let on = world.t3s(&args(&[all, "bottleneck.then=go-on"])).good();
    assert_eq!(stages_done(&on.json()), ["train", "evaluate-student"]);
    let first = |summary: &Value| summary["train"]["first_loss"].as_f64().unwrap();
    assert!(first(&summary(&world)) < first(&restarted));
}

#[test]
fn a_probe_without_a_valley_goes_to_its_end_and_says_so() {
    let world = World::new();
    // The tiny student never answers right, so there is nothing to fall.
    let overrides = [
        "bottleneck.by=train-accuracy",
        "bottleneck.watch=true",
        "bottleneck.samples=1",
        "bottleneck.generate={temperature=0.0, max_new_tokens=4}",
    ];
    let events = world.run(&overrides).good().json();
    let warned = |e: &Value| {
        let message = e["message"].as_str().unwrap_or("");
        e["event"] == "warning" && message.contains("no valley was behind the probe")
    };
    assert!(events.iter().any(warned));
    assert_eq!(summary(&world)["probe"]["steps"], 4);
    let analysis = [
        "analyse",
        "runs/a",
        "--examples",
        "4",
        "--transfer-steps",
        "1",
    ];
    let said = world.t3s(&analysis).good();
    assert!(said.out.contains("report.html"), "{}", said.out);
    let refused = ["bottleneck.watch=true", "bottleneck.step=2"];
    let message = world.run(&refused).failed(2);
    assert!(message.contains("bottleneck.watch"), "{message}");
}
