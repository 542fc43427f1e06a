//! What the repository promises about its own files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The Rust files of the workspace, from the root.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "build" {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 100, "the sources are found");
    found
}

/// The crates of this workspace that `folder` needs to be built, not those of its tests.
fn needs(folder: &str) -> Vec<String> {
    let path = root().join(folder).join("Cargo.toml");
    let text = fs::read_to_string(&path).expect("a Cargo.toml");
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside && line.starts_with("t3s") {
            let end = line
                .find(['.', ' ', '='])
                .expect("a dependency has a value");
            found.push(line[..end].to_owned());
        }
    }
    found.sort();
    found
}

#[test]
fn crates_depend_only_downwards() {
    assert_eq!(needs("core"), [""; 0]);
    for folder in [
        "data",
        "strategies",
        "model-adapters",
        "engine",
        "plugins/sdk",
    ] {
        assert_eq!(needs(folder), ["t3s-core"], "{folder}");
    }
    assert_eq!(
        needs("pipeline"),
        [
            "t3s-core",
            "t3s-data",
            "t3s-engine",
            "t3s-model-adapters",
            "t3s-strategies"
        ]
    );
    assert_eq!(
        needs("cli"),
        ["t3s-core", "t3s-data", "t3s-engine", "t3s-pipeline"]
    );
}

#[test]
fn files_are_short_and_finished() {
    // Spelt in two parts, or this file would be found.
    let unfinished = [
        "TO\u{44}O",
        "FIX\u{4d}E",
        "to\u{64}o!(",
        "unimple\u{6d}ented!(",
    ];
    for path in sources() {
        let text = fs::read_to_string(&path).expect("a source file");
        let lines = text.lines().count();
        assert!(lines < 700, "{}: {lines} lines", path.display());
        for word in unfinished {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

#[test]
fn no_file_names_a_machine() {
    let listed = Command::new("git")
        .arg("ls-files")
        .current_dir(root())
        .output();
    let Some(listed) = listed.ok().filter(|output| output.status.success()) else {
        eprintln!("SKIPPED: this is no checkout of git");
        return;
    };
    let paths = [
        "/wor\u{6b}/",
        "/roo\u{74}/",
        "/hom\u{65}/",
        "/tmp/targe\u{74}",
    ];
    for name in String::from_utf8_lossy(&listed.stdout).lines() {
        // Files that are not text, and files that are deleted but not yet committed.
        let Ok(text) = fs::read_to_string(root().join(name)) else {
            continue;
        };
        for path in paths {
            assert!(!text.contains(path), "{name} names {path}");
        }
    }
}

#[test]
fn the_manual_of_plans_is_what_the_program_reads() {
    let manual = fs::read_to_string(root().join("docs/plans.md")).expect("docs/plans.md");
    let reference = t3s_core::plan::reference_markdown();
    assert!(reference.contains("max_new_tokens"));
    assert!(
        manual.contains(reference.trim()),
        "docs/plans.md is not what the keys' own comments say; take this over:\n\n{reference}"
    );
}
