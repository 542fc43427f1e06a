//! Bad input: a clear error that says what and where, the right exit code, and nothing lost.

#[expect(dead_code, reason = "used in part")]
mod support;

use std::fs;

use serde_json::{Value, json};
use support::{World, stages_done};

const NAMED: &str = "bottleneck.step=2";

/// All of `parts` are in `message`.
#[track_caller]
fn names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

/// The tensors of a safetensors file: its header and where the data begins.
fn header(bytes: &[u8]) -> (Value, usize) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    (header, 8 + length)
}

#[test]
fn data_files_that_are_missing_empty_or_broken() {
    let world = World::new();
    let message = world.run(&["data.train=nowhere.jsonl"]).failed(2);
    names(&message, &["nowhere.jsonl"]);
    world.write("empty.jsonl", "");
    let message = world.run(&["data.train=empty.jsonl"]).failed(1);
    names(&message, &["empty.jsonl"]);
    let good = world.read("traces.jsonl");
    let lines: Vec<&str> = good.lines().take(2).collect();
    world.write(
        "broken.jsonl",
        format!("{}\n{{\"question\": \n{}\n", lines[0], lines[1]),
    );
    let message = world.run(&["data.train=broken.jsonl"]).failed(1);
    names(&message, &["broken.jsonl:2"]);
    world.write(
        "other.jsonl",
        format!("{}\n{{\"colour\": \"red\"}}\n", lines[0]),
    );
    let message = world.run(&["data.train=other.jsonl"]).failed(1);
    names(&message, &["other.jsonl:2", "question"]);
}

#[test]
fn evaluation_data_without_answers() {
    let world = World::new();
    world.write(
        "unanswered.jsonl",
        "{\"question\": \"1 + 1?\", \"response\": \"it is not said\"}\n",
    );
    let message = world.run(&["eval.data=unanswered.jsonl"]).failed(2);
    names(&message, &["unanswered.jsonl", "answer"]);
}

#[test]
fn a_tokenizer_that_does_not_fit_the_vocabulary() {
    let world = World::new();
    let mut tokenizer = world.json("student/tokenizer.json");
    tokenizer["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(json!({
            "id": 5000, "content": "<far>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    tokenizer["model"]["vocab"]["<far>"] = 5000.into();
    world.write("student/tokenizer.json", tokenizer.to_string());
    let message = world.run(&[]).failed(1);
    names(&message, &["vocab", "320"]);
}

#[test]
fn weights_that_are_cut_off_or_of_another_shape() {
    let world = World::new();
    let path = "student/model.safetensors";
    let good = fs::read(world.path(path)).unwrap();
    world.write(path, &good[..good.len() / 2]);
    names(&world.run(&[]).failed(1), &["model.safetensors"]);

    let (mut head, data) = header(&good);
    let name = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(head[name]["shape"], json!([32, 32]));
    head[name]["shape"] = json!([16, 64]);
    let mut text = head.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.extend(&good[data..]);
    world.write(path, bytes);
    names(&world.run(&[]).failed(1), &[name, "[32, 32]", "[16, 64]"]);
    // Nothing was begun: with the right weights the same command works.
    world.write(path, good);
    world.run(&[NAMED]).good();
}

#[test]
fn weights_that_are_not_numbers() {
    let world = World::new();
    let path = "student/model.safetensors";
    let mut bytes = fs::read(world.path(path)).unwrap();
    let (head, data) = header(&bytes);
    let at = head["model.norm.weight"]["data_offsets"][0]
        .as_u64()
        .unwrap() as usize
        + data;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    world.write(path, bytes);
    let message = world.run(&[]).failed(1);
    names(&message, &["probe", "not finite", "weights hold NaN"]);
    assert!(!world.path("runs/a/summary.json").exists());
    assert!(!world.path("runs/a/student").exists());
}

#[test]
fn a_learning_rate_that_diverges_names_the_step_and_keeps_what_was_good() {
    let world = World::new();
    let mut overrides = vec![
        NAMED,
        "probe.steps=4",
        "probe.learning_rate=3e-3",
        "probe.clip_norm=1",
        "probe.save_every=0",
        "train.steps=30",
        "train.clip_norm=0",
        "train.save_every=1",
        "train.learning_rate=1e30",
    ];
    let message = world.run(&overrides).failed(1);
    names(&message, &["train", "step 2", "learning rate"]);
    // The probe and the selection stay; with a rate that works only the training is done.
    overrides.pop();
    let done = stages_done(&world.run(&overrides).good().json());
    let repeated = |stage: &&str| done.iter().any(|name| name == stage);
    assert!(done.contains(&"train".to_owned()), "{done:?}");
    assert!(!["probe", "select"].iter().any(repeated), "{done:?}");
}

#[test]
fn a_strategy_that_keeps_nothing() {
    let world = World::new();
    let message = world.run(&[NAMED, "selection.threshold=-1e9"]).failed(1);
    names(&message, &["\"t3s\"", "keeps none"]);
    assert!(world.path("runs/a/stages").read_dir().unwrap().count() > 2);
}

#[test]
fn plans_and_command_lines_with_mistakes() {
    let world = World::new();
    let plan = world.read("plan.toml");
    world.write(
        "misspelt.toml",
        plan.replace("max_tokens = 128", "max_token = 128"),
    );
    let message = world.t3s(&["run", "misspelt.toml"]).failed(2);
    names(
        &message,
        &["misspelt.toml:", "max_token", "data.max_tokens"],
    );
    names(
        &world.run(&["train.stepz=3"]).failed(2),
        &["stepz", "steps"],
    );
    names(
        &world.run(&["selection.strategy=t3z"]).failed(2),
        &["t3z", "t3s"],
    );
    names(
        &world.run(&["selection.treshold=1"]).failed(2),
        &["treshold", "threshold"],
    );
    names(
        &world.run(&["train.steps=many"]).failed(2),
        &["train.steps"],
    );
    names(
        &world.run(&["train.steps"]).failed(2),
        &["train.steps", "="],
    );
    names(
        &world.t3s(&["run", "nowhere.toml"]).failed(2),
        &["nowhere.toml"],
    );
    assert!(!world.path("runs").exists(), "nothing was begun");
    assert_eq!(world.t3s(&["walk"]).code, Some(2));
}

#[test]
fn an_out_folder_that_is_something_else() {
    let world = World::new();
    fs::create_dir(world.path("mine")).unwrap();
    world.write("mine/letter.txt", "keep");
    let message = world.run(&["out=mine"]).failed(2);
    names(&message, &["mine", "not a run folder"]);
    assert_eq!(world.read("mine/letter.txt"), "keep");
    assert_eq!(world.path("mine").read_dir().unwrap().count(), 1);
    names(&world.run(&["out=plan.toml"]).failed(1), &["plan.toml"]);
}

#[test]
fn files_that_cannot_grow_are_named_and_the_same_command_goes_on() {
    let world = World::new();
    let program = support::program().display().to_string();
    // Larger than the logs, smaller than the weights; SIGXFSZ is ignored so that writing fails.
    let script = format!(
        "trap '' XFSZ; ulimit -f 16; exec '{program}' --threads 2 run plan.toml --set {NAMED}"
    );
    let said: support::Said = std::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(world.folder.path())
        .output()
        .unwrap()
        .into();
    let message = said.failed(1);
    names(&message, &["runs/a"]);
    assert!(!world.path("runs/a/student").exists());
    world.run(&[NAMED]).good();
    let whole = World::new();
    whole.run(&[NAMED]).good();
    let student = |world: &World| fs::read(world.path("runs/a/student/model.safetensors")).unwrap();
    assert_eq!(student(&world), student(&whole));
}
