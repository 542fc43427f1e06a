//! House rules that a compiler does not check.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file that git tracks or would, with one of these endings.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        _ => {
            eprintln!("SKIPPED: not a git checkout");
            return Vec::new();
        }
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|name| endings.iter().any(|ending| name.ends_with(ending)))
        .map(|name| root().join(name))
        .filter(|path| path.is_file())
        .collect()
}

/// Which of the workspace's crates may be used by which, besides in tests. What is not listed may
/// use nothing of the workspace.
const ARROWS: &[(&str, &[&str])] = &[
    ("t3s-data", &["t3s-core"]),
    ("t3s-strategies", &["t3s-core"]),
    ("t3s-model-adapters", &["t3s-core"]),
    ("t3s-engine", &["t3s-core"]),
    ("t3s-plugin", &["t3s-core"]),
    (
        "t3s-pipeline",
        &[
            "t3s-core",
            "t3s-data",
            "t3s-strategies",
            "t3s-model-adapters",
            "t3s-engine",
        ],
    ),
    ("t3s-report", &["t3s-core", "t3s-data", "t3s-pipeline"]),
    (
        "t3s",
        &[
            "t3s-core",
            "t3s-data",
            "t3s-engine",
            "t3s-pipeline",
            "t3s-plugin",
            "t3s-report",
        ],
    ),
];

#[test]
fn crates_depend_only_along_the_arrows() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > ARROWS.len());
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let free = ["t3s-tests", "t3s-benches"].contains(&name)
            || name.starts_with("t3s-example")
            || name.starts_with("t3s-plugin-");
        if free {
            continue;
        }
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let of = dependency["name"].as_str().expect("a name");
            let ours = of == "t3s" || of.starts_with("t3s-");
            if ours && dependency["kind"].is_null() {
                let may = allowed.get(name).is_some_and(|list| list.contains(&of));
                assert!(may, "{name} may not depend on {of}");
            }
            let tensors = of.starts_with("candle") || of == "tokenizers";
            if [
                "t3s-core",
                "t3s-strategies",
                "t3s-model-adapters",
                "t3s-plugin",
            ]
            .contains(&name)
            {
                assert!(
                    !tensors,
                    "{name} has no tensors and no text, so it may not use {of}"
                );
            }
        }
    }
}

#[test]
fn files_stay_small_enough_to_hold_in_the_head() {
    for path in files(&[".rs"]) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(
            lines < 700,
            "{} has {lines} lines; split it by meaning",
            path.display()
        );
    }
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not find itself.
    let words = [
        "to".to_owned() + "do!(",
        "unimple".to_owned() + "mented!(",
        "FIX".to_owned() + "ME",
        "TO".to_owned() + "DO",
    ];
    for path in files(&[".rs", ".md", ".toml", ".sh", ".py"]) {
        let text = fs::read_to_string(&path).unwrap();
        for word in &words {
            assert!(
                !text.contains(word.as_str()),
                "{} says {word}",
                path.display()
            );
        }
    }
}

/// `docs/plans.md` lists every key as the types have it. `T3S_UPDATE=1 cargo test` writes it anew.
#[test]
fn the_manual_of_plans_is_that_of_the_types() {
    const BEGIN: &str = "<!-- reference:begin -->\n";
    const END: &str = "<!-- reference:end -->";
    let path = root().join("docs/plans.md");
    let text = fs::read_to_string(&path).unwrap();
    let start = text.find(BEGIN).expect("a mark") + BEGIN.len();
    let end = text.find(END).expect("a mark");
    let wanted = format!("\n{}\n", t3s_core::plan::reference_markdown().trim());
    if std::env::var_os("T3S_UPDATE").is_some() {
        let text = format!("{}{wanted}{}", &text[..start], &text[end..]);
        fs::write(&path, text).unwrap();
        return;
    }
    assert!(
        text[start..end] == wanted,
        "docs/plans.md is out of date: T3S_UPDATE=1 cargo test -p t3s-tests --test tidy"
    );
}

/// Code cites equations by an id, which has to be there.
#[test]
fn every_equation_that_is_cited_is_written_down() {
    let equations = fs::read_to_string(root().join("docs/equations.md")).unwrap();
    for path in files(&[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        let text = text
            .replace("\n    /// ", " ")
            .replace("\n/// ", " ")
            .replace("\n//! ", " ");
        for (at, _) in text.match_indices("]` in docs/equations.md") {
            let Some(start) = text[..at].rfind('[').map(|at| at + 1) else {
                continue;
            };
            let id = &text[start..at];
            let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if !id.chars().all(word) {
                continue;
            }
            let head = format!("**[{id}]**");
            assert!(equations.contains(&head), "{} cites [{id}]", path.display());
        }
    }
}

#[test]
fn no_file_names_a_machine() {
    // Put together, so that this file does not find itself.
    let folders = ["work", "root", "home", "tmp/target"].map(|name| format!("/{name}/"));
    for path in files(&[".rs", ".md", ".toml", ".sh", ".py", ".json", ".jsonl"]) {
        let text = fs::read_to_string(&path).unwrap();
        for folder in &folders {
            assert!(
                !text.contains(folder.as_str()),
                "{} names {folder}",
                path.display()
            );
        }
    }
}
