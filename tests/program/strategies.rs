//! Every strategy there is, by a one-line change of one plan.

#[expect(dead_code, reason = "used in part")]
mod support;

use serde_json::Value;
use support::{World, stages_done};

const NAMED: &str = "bottleneck.step=2";

/// Names of the strategies that `t3s list` knows.
fn all(world: &World) -> Vec<String> {
    let listed = world.t3s(&["--json", "list", "strategies"]).good().json();
    let listed = listed[0]["strategies"].as_array().expect("strategies");
    let name = |entry: &Value| entry["name"].as_str().expect("a name").to_owned();
    let names: Vec<String> = listed.iter().map(name).collect();
    assert!(names.len() > 20, "{names:?}");
    names
}

#[test]
fn every_strategy_runs_by_its_name_alone() {
    let world = World::new();
    let strategies = all(&world);
    // The probe of another run is as good a reference as any.
    let first = world.run(&[NAMED, "selection.strategy=all", "out=runs/other"]);
    first.good();
    let plan = world.read("plan.toml") + "\n[reference]\npath = \"runs/other/student\"\n";
    world.write("plan.toml", plan);
    let grid = format!("selection.strategy={}", strategies.join(","));
    let args = [
        "--json",
        "ablate",
        "plan.toml",
        "--set",
        NAMED,
        "--grid",
        &grid,
    ];
    let said = world.t3s(&args).good();
    let events = said.json();
    let done = stages_done(&events);
    let count = |name: &str| done.iter().filter(|stage| *stage == name).count();
    assert_eq!(
        (count("train"), count("score-reference")),
        (strategies.len() - 1, 1),
        "that of `all` is there"
    );
    let table = events.last().expect("a table");
    for row in table["rows"].as_array().unwrap() {
        if row["shared"] == false {
            let kept = row["kept_share"].as_f64().expect("a share");
            // No token is probable enough for ProFit under a student of random weights.
            assert_eq!(kept == 0.0, row["model"] == "profit", "{row:#}");
            assert!((0.0..=1.0).contains(&kept), "{row:#}");
            assert!(row["accuracy"].is_number(), "{row:#}");
        }
    }
    // Those that choose in every step say what they kept, not that they keep all.
    let kept = |name: &str| {
        let rows = table["rows"].as_array().unwrap().iter();
        let mut of = rows.filter(|row| row["model"] == name);
        of.next().expect(name)["kept_share"].as_f64().unwrap()
    };
    for name in ["sstoken", "rho-1", "token-cleaning"] {
        assert!((kept(name) - 0.6).abs() < 0.01, "{name}: {}", kept(name));
    }
    let summary = |name: &str| world.json(&format!("runs/a-ablation/runs/{name}-s3/summary.json"));
    assert_eq!(summary("sstoken")["selection"]["online"], true);
    let warnings = summary("profit")["warnings"].to_string();
    assert!(warnings.contains("kept no token in any step"), "{warnings}");
}

#[test]
fn sketches_have_a_width_and_a_seed_of_their_own() {
    let world = World::new();
    let kept = |more: &str| {
        let said = world
            .run(&[NAMED, "selection.strategy=gradient-sketch", more])
            .good();
        let summary = world.json("runs/a/summary.json");
        (
            stages_done(&said.json()),
            summary["selection"]["kept"].clone(),
        )
    };
    let (_, first) = kept("score.sketch_width=8");
    // Only what reads them is done again, and the share is the same share.
    for more in ["score.sketch_seed=9", "score.sketch_width=16"] {
        let (stages, again) = kept(more);
        assert!(stages.contains(&"sketch-base".to_owned()), "{stages:?}");
        assert!(!stages.contains(&"probe".to_owned()), "{stages:?}");
        assert!(!stages.contains(&"score-base".to_owned()), "{stages:?}");
        assert_eq!(first, again);
    }
}

#[test]
fn a_reference_is_a_folder_or_a_store_and_fits_the_data() {
    let world = World::new();
    let rho = "selection.strategy=rho-1";
    let message = world.run(&[rho]).failed(2);
    assert!(message.contains("reference.path"), "{message}");
    world
        .run(&[NAMED, "selection.strategy=all", "out=runs/other"])
        .good();
    let by_path = [
        NAMED,
        rho,
        "reference.path=runs/other/student",
        "out=runs/path",
    ];
    world.run(&by_path).good();
    let store = [
        "--data",
        "traces.jsonl",
        "--max-tokens",
        "128",
        "--out",
        "store.parquet",
    ];
    world
        .t3s(&[&["score", "runs/other/student"], &store[..]].concat())
        .good();
    let by_store = [
        NAMED,
        rho,
        "reference.store=store.parquet",
        "out=runs/store",
    ];
    world.run(&by_store).good();
    let kept = |run: &str| world.json(&format!("runs/{run}/summary.json"))["selection"].clone();
    assert_eq!(kept("path"), kept("store"));
    let message = world
        .run(&[&by_store[..], &["reference.path=student"]].concat())
        .failed(2);
    assert!(message.contains("only one of"), "{message}");
    let other = [&by_store[..], &["data.max_tokens=100"]].concat();
    let message = world.run(&other).failed(2);
    assert!(message.contains("is of other data"), "{message}");

    // An adapter of the student counts as the student with it.
    let lora = "train.lora={rank=2, targets=[\"q_proj\"]}";
    world
        .run(&[NAMED, "selection.strategy=all", lora, "out=runs/lora"])
        .good();
    world
        .run(&[
            NAMED,
            rho,
            "reference.path=runs/lora/student",
            "out=runs/by-lora",
        ])
        .good();
}
