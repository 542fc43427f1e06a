//! `docs/plugins.md`: its commands, run in its order in an empty folder.

use std::{env, fs, path::Path, process::Command};

#[test]
fn every_command_of_the_manual_runs() {
    if Command::new("make").arg("--version").output().is_err()
        || Command::new("cc").arg("--version").output().is_err()
    {
        eprintln!("SKIPPED: no make or no cc");
        return;
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manual = fs::read_to_string(here.join("../docs/plugins.md")).expect("the manual");
    let blocks = manual.split("```sh\n").skip(1);
    let script: Vec<&str> = blocks
        .map(|rest| rest.split("```").next().expect("a block"))
        .collect();
    assert!(script.len() > 4, "its commands stand in blocks of sh");
    let script = format!("set -euxo pipefail\n{}", script.concat());

    let folder = tempfile::tempdir().expect("a folder");
    let program = Path::new(env!("CARGO_BIN_EXE_t3s"));
    let mut path = vec![program.parent().expect("a folder").to_owned()];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let build = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins");
    let output = Command::new("bash")
        .arg("-c")
        .arg(script)
        .current_dir(folder.path())
        .env("PATH", env::join_paths(path).expect("a path"))
        // What is between source and library is shared with the other tests of plugins.
        .env("CARGO_BUILD_BUILD_DIR", build)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_NET_OFFLINE", "true")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .output()
        .expect("bash starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{out}");
    for strategy in ["my-rule", "my-c-rule", "t3s", "all"] {
        let run = folder.path().join("runs").join(strategy);
        assert!(run.is_dir(), "{strategy} has run");
    }
}
