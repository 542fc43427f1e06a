//! `t3s bench`, and that its peer speaks the same language.

#[allow(dead_code, reason = "shared with the other tests of the program")]
mod support;

use std::{env, path::Path, path::PathBuf, process::Command};

use serde_json::Value;
use support::{Said, program};

const WORKS: [&[&str]; 5] = [
    &["train", "--kept", "0.4"],
    &["train", "--method", "lora", "--rank", "2"],
    &["score"],
    &["generate", "--new-tokens", "32"],
    &["head"],
];
const SMALL: [&str; 8] = [
    "--seq", "16", "--batch", "2", "--steps", "2", "--warmup", "0",
];

fn t3s(work: &[&str]) -> Said {
    let mut command = Command::new(program());
    command.args(["--threads", "1", "bench"]).args(work);
    command.output().expect("t3s starts").into()
}

fn small(work: &[&str]) -> Value {
    let said = t3s(&[work, &SMALL].concat()).good();
    let mut objects = said.json();
    assert_eq!(objects.len(), 1, "{}", said.out);
    objects.remove(0)
}

#[test]
fn every_work_is_measured_as_one_object() {
    for work in WORKS {
        let report = small(work);
        assert_eq!(report["what"], work[0]);
        assert!(report["gemm"]["flops_per_second"].as_f64().unwrap() > 0.0);
        assert!(report["memory"]["peak_bytes"].as_u64().unwrap() > 1 << 20);
        for part in report["parts"].as_array().unwrap() {
            assert_eq!(part["seconds"].as_array().unwrap().len(), 2, "{part}");
            let seconds = part["seconds"][0].as_f64().unwrap();
            assert!(seconds > 0.0, "{part}");
            let rate = &part["tokens_per_second"];
            assert!(rate["min"].as_f64() <= rate["median"].as_f64(), "{part}");
            assert!(rate["median"].as_f64() <= rate["max"].as_f64(), "{part}");
        }
    }
    // Two of five of 2 x 15 predicted tokens; of 32 hidden states.
    assert_eq!(small(WORKS[0])["parts"][0]["rows"], 12);
    let head = small(WORKS[4]);
    assert_eq!(
        (&head["parts"][0]["rows"], &head["parts"][1]["rows"]),
        (&32.into(), &12.into())
    );
}

#[test]
fn what_makes_no_sense_is_refused_by_option() {
    for (work, says) in [
        (
            &["train", "--config", "qwen3-9b"][..],
            "--config: \"qwen3-9b\" is neither",
        ),
        (&["train", "--kept", "0"], "--kept: 0; a share above 0"),
        (
            &["train", "--rank", "4"],
            "--rank 4: only adapters have one",
        ),
        (
            &["train", "--tokens", "64"],
            "--tokens: 64 per pass; an example has 512",
        ),
        (&["score", "--steps", "0"], "--steps: 0"),
        (
            &["score", "--seq", "5000"],
            "--seq: 5000 tokens; tiny reads up to 4096",
        ),
        (
            &["generate", "--new-tokens", "1"],
            "--new-tokens: the first token",
        ),
        (&["head", "--batch", "0"], "--batch: 0"),
        // Before a byte of its weights is allocated.
        (
            &["train", "--config", "qwen3-32b"],
            "train qwen3-32b needs about",
        ),
    ] {
        let error = t3s(work).failed(2);
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn the_peer_says_the_same_things() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let own = root.join(".venv/bin/python");
    let python: PathBuf = match env::var_os("T3S_PYTHON") {
        Some(path) => path.into(),
        None if own.exists() => own,
        None => "python3".into(),
    };
    let has = Command::new(&python)
        .args(["-c", "import torch, transformers, peft"])
        .output();
    if !has.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED: {} has no torch, transformers and peft",
            python.display()
        );
        return;
    }
    for work in WORKS {
        let output = Command::new(&python)
            .arg(root.join("benches/peers/hf_train.py"))
            .args(work)
            .args(SMALL)
            .args(["--threads", "1", "--device", "cpu"])
            .output()
            .expect("python starts");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let theirs: Value = serde_json::from_slice(&output.stdout).expect("one object");
        let ours = small(work);
        assert_eq!(keys(&ours), keys(&theirs), "{work:?}");
        for key in [
            "what",
            "parameters",
            "trainable",
            "method",
            "rank",
            "dtype",
            "seq",
            "batch",
        ] {
            assert_eq!(ours[key], theirs[key], "{work:?} {key}");
        }
        let parts = |of: &Value| {
            let parts = of["parts"].as_array().unwrap().clone();
            let of = |part: Value| ["name", "tokens", "rows", "flops"].map(|key| part[key].clone());
            parts.into_iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(parts(&ours), parts(&theirs), "{work:?}");
    }
}

/// The keys of `value` and of what is in it, `options` aside.
fn keys(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                found.push(key.clone());
                if key != "options" {
                    found.extend(
                        keys(value)
                            .into_iter()
                            .map(|inner| format!("{key}.{inner}")),
                    );
                }
            }
        }
        Value::Array(list) => {
            for value in list {
                found.extend(keys(value));
            }
        }
        _ => {}
    }
    found
}
