//! Real text: a shortened form of `examples/gsm8k` runs where the data is there.

#[expect(dead_code, reason = "used in part")]
mod support;

use std::{path::Path, process::Command};

use serde_json::Value;
use support::{copy, program, shared};

#[test]
fn gsm8k_runs_from_raw_files_to_a_student() {
    let Some(data) = shared("data/gsm8k") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/gsm8k");
    for name in ["config.json", "plan.toml", "run.sh", "student.toml"] {
        std::fs::copy(example.join(name), folder.path().join(name)).unwrap();
    }
    // A twentieth of the data: the tokenizer and the corpus are read in full otherwise.
    let short = folder.path().join("data");
    copy(&data, &short);
    for (name, lines) in [("train.jsonl", 300), ("example_model_solutions.jsonl", 60)] {
        let text = std::fs::read_to_string(data.join(name)).unwrap();
        let text: String = text
            .lines()
            .take(lines)
            .flat_map(|line| [line, "\n"])
            .collect();
        let path = short.join(name);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let output = Command::new("bash")
        .arg(folder.path().join("run.sh"))
        .arg(&short)
        .env("T3S", program())
        .env("STEPS", "2")
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let summary = std::fs::read(folder.path().join("runs/t3s/summary.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    let examples = summary["corpus"]["examples"].as_u64().unwrap();
    assert!(
        (15..=60).contains(&examples),
        "the right ones of 60 solutions: {examples}"
    );
    assert_eq!(summary["evaluation"].as_array().unwrap().len(), 4);
    assert!(summary["selection"]["kept"].as_u64() > Some(0));
}
