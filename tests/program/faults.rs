//! Bad input gets a clear error and loses nothing.

#[expect(dead_code, reason = "used in part")]
mod support;

use std::{fs, process::Command};

use serde_json::{Value, json};
use support::World;

/// Runs the tiny plan with overrides; it has to fail with `code`, and leave no finished stage that
/// it did not earn.
#[track_caller]
fn refused(world: &World, overrides: &[&str], code: i32, expected: &[&str]) {
    let message = world.run(overrides).failed(code);
    for text in expected {
        assert!(message.contains(text), "expected {text:?} in:\n{message}");
    }
}

#[test]
fn data_that_is_missing_empty_or_broken() {
    let world = World::new();
    refused(
        &world,
        &["data.train=none.jsonl"],
        2,
        &["data.train", "none.jsonl"],
    );
    world.write("empty.jsonl", "");
    refused(
        &world,
        &["data.train=empty.jsonl"],
        1,
        &["empty.jsonl", "the file is empty"],
    );
    let mut text = world.read("traces.jsonl");
    text += "{\"question\": \"a\", \"response\": \n";
    world.write("broken.jsonl", &text);
    refused(
        &world,
        &["data.train=broken.jsonl"],
        1,
        &["broken.jsonl:17: broken JSON", "expected one JSON object"],
    );
}

#[test]
fn problems_without_answers() {
    let world = World::new();
    world.write("asked.jsonl", "{\"question\": \"Start with 2, add 2?\"}\n");
    refused(
        &world,
        &["eval.data=asked.jsonl"],
        2,
        &[
            "eval.data",
            "none of its 1 problems has a gold answer",
            "eval.fields.answer",
        ],
    );
    let stages = fs::read_dir(world.path("runs/a/stages")).unwrap();
    assert_eq!(stages.count(), 0, "said before anything is computed");
    refused(
        &world,
        &["eval.fields={answer=\"gold\"}", "out=runs/b"],
        1,
        &["problems.jsonl:1: has no field gold"],
    );
}

#[test]
fn a_tokenizer_that_does_not_fit() {
    let world = World::new();
    let mut config = world.json("student/config.json");
    config["vocab_size"] = json!(100);
    config["eos_token_id"] = json!(2);
    world.write("student/config.json", config.to_string());
    refused(&world, &[], 1, &["tokenizer.json", "vocab_size", "100"]);
}

#[test]
fn a_config_that_is_not_understood() {
    let world = World::new();
    let mut config = world.json("student/config.json");
    config["rope_scaling"] = json!({ "rope_type": "yarn", "factor": 4.0 });
    world.write("student/config.json", config.to_string());
    refused(&world, &[], 1, &["config.json", "rope_scaling", "yarn"]);
    config["rope_scaling"] = Value::Null;
    config["model_type"] = json!("mamba");
    world.write("student/config.json", config.to_string());
    refused(&world, &[], 2, &["mamba", "known: ", "qwen3"]);
}

#[test]
fn weights_that_are_truncated_or_of_another_shape() {
    let world = World::new();
    let weights = fs::read(world.path("student/model.safetensors")).unwrap();
    for cut in [4, 100, weights.len() / 2, weights.len() - 1] {
        world.write("student/model.safetensors", &weights[..cut]);
        refused(
            &world,
            &[],
            1,
            &["model.safetensors", "truncated"]
                .map(|s| if cut == 4 { "model.safetensors" } else { s }),
        );
    }
    world.write("student/model.safetensors", &weights);
    let mut config = world.json("student/config.json");
    config["intermediate_size"] = json!(48);
    world.write("student/config.json", config.to_string());
    refused(
        &world,
        &[],
        1,
        &[
            "model.layers.0.mlp.gate_proj.weight",
            "[64, 32]",
            "[48, 32]",
        ],
    );
}

/// Puts `value` into the first weight of `tensor`.
fn poison(world: &World, tensor: &str, value: f32) {
    let path = world.path("student/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let start = 8 + header + metadata.info(tensor).unwrap().data_offsets.0;
    bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(&path, bytes).unwrap();
}

#[test]
fn weights_that_are_no_numbers() {
    for value in [f32::NAN, f32::INFINITY] {
        let world = World::new();
        poison(&world, "model.norm.weight", value);
        refused(&world, &[], 1, &["probe", "before step 1", "not finite"]);
        let left = fs::read_dir(world.path("runs/a/stages")).unwrap();
        assert_eq!(left.count(), 1, "only the corpus is done");
    }
}

#[test]
fn a_run_that_diverges_stops_and_keeps_its_checkpoints() {
    let world = World::new();
    let diverging = [
        "probe.learning_rate=1e30",
        "probe.schedule=constant",
        "probe.steps=40",
        "probe.checkpoint_every=1",
        "probe.clip_norm=0.0",
    ];
    refused(&world, &diverging, 1, &["probe", "of step ", "not finite"]);
    let work = fs::read_dir(world.path("runs/a/work"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let kept = fs::read_dir(work.join("checkpoints")).unwrap().count();
    assert!(kept >= 1, "the last good checkpoint is kept");
}

#[test]
fn a_selection_that_keeps_nothing() {
    let world = World::new();
    let overrides = ["bottleneck.step=2", "selection.threshold=-1e9"];
    refused(
        &world,
        &overrides,
        1,
        &["\"t3s\" keeps none of the", "raise selection.threshold"],
    );
    // The stages before it are kept for the next attempt.
    let events = world.run(&["bottleneck.step=2"]).good().json();
    assert!(!support::stages_done(&events).contains(&"probe".to_owned()));
}

#[test]
fn plans_with_mistakes() {
    let world = World::new();
    world.write(
        "plan.toml",
        world
            .read("plan.toml")
            .replace("learning_rate", "learnin_rate"),
    );
    let message = world.run(&[]).failed(2);
    assert!(
        message.contains("plan.toml:") && message.contains("learnin_rate"),
        "{message}"
    );
    assert!(
        message.contains("learning_rate"),
        "the nearest key: {message}"
    );
    let world = World::new();
    for (pair, expected) in [
        ("selection.strategy=t4s", "t3s"),
        ("train.stepz=3", "steps"),
        ("train.steps=many", "train.steps"),
        ("nonsense", "KEY=VALUE"),
        ("selection.treshold=1.0", "threshold"),
        ("grader.extract=(", "grader.extract"),
        ("device=cuda:9", "device"),
    ] {
        refused(&world, &[pair], 2, &[expected]);
    }
    refused(
        &world,
        &["bottleneck.step=3"],
        2,
        &["bottleneck.step", "every 2 steps"],
    );
    let message = world.t3s(&["run", "none.toml"]).failed(2);
    assert!(message.contains("none.toml"), "{message}");
}

#[test]
fn a_folder_of_something_else_is_not_touched() {
    let world = World::new();
    fs::create_dir_all(world.path("thesis")).unwrap();
    world.write("thesis/chapter.tex", "x");
    refused(
        &world,
        &["out=thesis"],
        2,
        &["is not empty and not a run folder"],
    );
    assert_eq!(fs::read_dir(world.path("thesis")).unwrap().count(), 1);
}

/// A file system of `kib` KiB, if this machine lets the test mount one.
fn small_disk(world: &World, kib: u32) -> Option<String> {
    let folder = world.path("disk");
    fs::create_dir_all(&folder).unwrap();
    let folder = folder.to_str().unwrap().to_owned();
    let mounted = Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={kib}k"),
            "none",
            &folder,
        ])
        .output();
    match mounted {
        Ok(output) if output.status.success() => Some(folder),
        _ => {
            eprintln!("SKIPPED: a small file system cannot be mounted here");
            None
        }
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let world = World::new();
    let Some(disk) = small_disk(&world, 300) else {
        return;
    };
    let out = format!("out={disk}/run");
    let message = world.run(&[&out, "bottleneck.step=2"]).failed(1);
    let elsewhere = world.run(&["out=elsewhere", "bottleneck.step=2"]);
    let all = support::stages_done(&elsewhere.good().json()).len();
    let stages = fs::read_dir(world.path("disk/run/stages")).unwrap();
    let whole = stages.filter(|stage| stage.as_ref().unwrap().path().join("stage.json").is_file());
    let whole = whole.count();
    // Room again, and the run goes on where it was.
    let grown = Command::new("mount")
        .args(["-o", "remount,size=64m", &disk])
        .status();
    assert!(grown.unwrap().success());
    let events = world.run(&[&out, "bottleneck.step=2"]);
    let _ = Command::new("umount").args(["-l", &disk]).status();
    let done = support::stages_done(&events.good().json()).len();
    assert!(
        message.contains("No space left on device") && message.contains("disk"),
        "{message}"
    );
    assert_eq!(done + whole, all, "every finished stage is kept");
}

#[test]
fn commands_without_a_plan_refuse_as_clearly() {
    let world = World::new();
    let message = world
        .t3s(&[
            "score",
            "none",
            "--data",
            "traces.jsonl",
            "--out",
            "s.parquet",
        ])
        .failed(2);
    assert!(message.contains("none/config.json"), "{message}");
    let message = world
        .t3s(&[
            "grads",
            "student",
            "--data",
            "traces.jsonl",
            "--out",
            "no/such/folder/g",
        ])
        .failed(1);
    assert!(message.contains("no/such/folder"), "{message}");
    world.write(
        "zero.jsonl",
        "{\"input_ids\": [1, 2], \"prompt_length\": 1, \"weights\": [0, 0]}",
    );
    let message = world
        .t3s(&[
            "grads",
            "student",
            "--data",
            "zero.jsonl",
            "--out",
            "g.safetensors",
        ])
        .failed(2);
    assert!(
        message.contains("every token has the weight 0"),
        "{message}"
    );
    let message = world
        .t3s(&["tokenizer", "traces.jsonl", "--vocab", "10", "--out", "t"])
        .failed(1);
    assert!(message.contains("259"), "{message}");
    assert!(!world.path("g.safetensors").exists());
}
