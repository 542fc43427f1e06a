//! Plugins in a plan: which are refused, with the plan's line, and that a changed one reruns what
//! read it and nothing else. The libraries come from the C compiler, since that takes no time.

#[expect(dead_code, reason = "used in part")]
#[path = "../../tests/program/support/mod.rs"]
mod support;

use std::{env, fs, path::Path, process::Command};

use support::{World, stages_done};

const FAULTY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/sdk/tests/faulty.c");
const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/include");

/// Builds `faulty.c` as `library` in the world's folder; `false`, aloud, where there is no compiler.
fn built(world: &World, library: &str, defines: &[&str]) -> bool {
    let cc = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let path = world.path(library);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let status = Command::new(&cc)
        .args(["-std=c11", "-fPIC", "-shared", "-O1", "-w", "-I", INCLUDE])
        .args(["-DDESCRIPTION=\"{\\\"needs\\\": [\\\"delta-logp\\\"]}\""])
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg("-o")
        .args([&path, Path::new(FAULTY)])
        .status();
    match status {
        Ok(status) => {
            assert!(status.success(), "{defines:?}");
            true
        }
        Err(_) => {
            eprintln!("SKIPPED: no C compiler ({cc}); set CC");
            false
        }
    }
}

/// The world's plan with `strategy` and a `[plugins]` table.
fn plan(world: &World, strategy: &str, plugins: &str) -> String {
    world.read("plan.toml").replace("\"t3s\"", strategy) + "\n[plugins]\n" + plugins
}

#[test]
fn libraries_that_a_plan_may_not_load() {
    let world = World::new();
    if !built(&world, "one/libkeep.so", &[]) {
        return;
    }
    built(&world, "two/libkeep.so", &["NAME=\"other\""]);
    built(&world, "three/libclash.so", &["NAME=\"t3s\""]);
    built(&world, "three/libagain.so", &[]);
    let line = world.read("plan.toml").lines().count() + 3;
    let refused = |plugins: &str| {
        world.write("bad.toml", plan(&world, "\"keep\"", plugins));
        let said = world.t3s(&["run", "bad.toml"]).failed(2);
        let here = world.path("").canonicalize().expect("a folder");
        let here = format!("{}/", here.display());
        assert!(!world.path("runs").exists(), "nothing was begun");
        said.replace(&here, "")
    };
    for (plugins, message) in [
        (
            "load = [\"one/libkeep.so\", \"one/../one/libkeep.so\"]",
            "plugins.load.1: plugin one/../one/libkeep.so: listed twice; remove one of the two",
        ),
        (
            "load = [\"one/libkeep.so\", \"two/libkeep.so\"]",
            "plugins.load.1: plugin two/libkeep.so: has the file name of one/libkeep.so, and pins \
             and reports name a library by its file name; rename one of the two",
        ),
        (
            "load = [\"one/libkeep.so\", \"three/libagain.so\"]",
            "plugins.load.1: plugin three/libagain.so: strategy \"keep\" is registered by \
             one/libkeep.so and by three/libagain.so; rename one of them",
        ),
        (
            "load = [\"one/libkeep.so\", \"three/libclash.so\"]",
            "plugins.load.1: plugin three/libclash.so: strategy \"t3s\" is registered by \
             t3s-strategies 0.1.0 and by three/libclash.so; rename one of them",
        ),
        (
            "load = [\"one/libkeep.so\"]\nsha256 = { \"libkeep.so\" = \"00ff\" }",
            "plugins.load.0: plugin one/libkeep.so: its sha256 is ",
        ),
    ] {
        let said = refused(plugins);
        let expected = format!("bad.toml:{line}: {message}");
        assert!(said.contains(&expected), "{said}\nexpected {expected}");
    }
    // Without its plugin the strategy is unknown; with another one, that one is named too.
    let said = refused("load = [\"two/libkeep.so\"]");
    assert!(
        said.contains("unknown strategy \"keep\"") && said.contains("libkeep.so"),
        "{said}"
    );
}

#[test]
fn another_build_of_a_plugin_reruns_what_read_it() {
    let world = World::new();
    if !built(&world, "libkeep.so", &[]) {
        return;
    }
    let load = "load = [\"libkeep.so\"]";
    world.write("plan.toml", plan(&world, "\"keep\"", load));
    let named = ["bottleneck.step=2"];
    let first = stages_done(&world.run(&named).good().json());
    assert!(first.contains(&"select".to_owned()), "{first:?}");
    assert_eq!(stages_done(&world.run(&named).good().json()), [""; 0]);
    built(&world, "libkeep.so", &["FAULT_UNUSED"]);
    let same = stages_done(&world.run(&named).good().json());
    assert_eq!(same, [""; 0], "the same bytes");
    built(&world, "libkeep.so", &["NAME=\"keep\"", "MINOR=0"]);
    let other = stages_done(&world.run(&named).good().json());
    assert_eq!(other, ["select", "train", "evaluate-student"]);
}

#[test]
fn another_build_of_an_adapter_reruns_what_computed_with_the_model() {
    let test = env::current_exe().expect("a test has a path");
    let name = format!("libt3s_example_llama{}", env::consts::DLL_SUFFIX);
    let library = test.parent().expect("a folder").join(&name);
    let library = fs::read(&library).unwrap_or_else(|e| panic!("{}: {e}", library.display()));
    let world = World::new();
    world.write(&name, &library);
    let mut config = support::config();
    config["architectures"] = serde_json::json!(["LlamaForCausalLM"]);
    config["model_type"] = "llama".into();
    world.write("config.json", config.to_string());
    let init = [
        "init",
        "--config",
        "config.json",
        "--tokenizer",
        "tokenizer",
    ];
    world
        .t3s(&[&init[..], &["--plugin", &name, "--out", "llama"]].concat())
        .good();
    let plan = world.read("plan.toml").replace("\"student\"", "\"llama\"");
    world.write(
        "plan.toml",
        format!("{plan}\n[plugins]\nload = [{name:?}]\n"),
    );
    let named = ["bottleneck.step=2"];
    let first = stages_done(&world.run(&named).good().json());
    assert_eq!(stages_done(&world.run(&named).good().json()), [""; 0]);
    // What follows the library's own bytes is not loaded: the same plugin under another digest.
    world.write(&name, [&library[..], b"rebuilt"].concat());
    let other = stages_done(&world.run(&named).good().json());
    let computing: Vec<&String> = first.iter().filter(|stage| *stage != "corpus").collect();
    assert_eq!(other.iter().collect::<Vec<_>>(), computing);
}
