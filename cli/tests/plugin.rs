//! `t3s plugin`: what is begun builds, keeps the laws and loads; what kills its process is reported
//! by one that lives. Plugins are built outside the repository, by cargo and by the C compiler.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/sdk/tests");
const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/include");
const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/sdk");

fn t3s(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_t3s"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("t3s starts")
}

fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{out}{}", String::from_utf8_lossy(&output.stderr))
}

fn cc() -> Option<String> {
    let cc = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let there = Command::new(&cc).arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: no C compiler ({cc}); set CC");
    }
    there.then_some(cc)
}

fn faulty(cc: &str, folder: &Path, name: &str, defines: &[&str]) -> PathBuf {
    built(cc, folder, "faulty.c", name, defines)
}

fn built(cc: &str, folder: &Path, source: &str, name: &str, defines: &[&str]) -> PathBuf {
    let library = folder.join(format!("lib{name}.so"));
    let built = Command::new(cc)
        .args(["-std=c11", "-fPIC", "-shared", "-O1", "-w", "-I", INCLUDE])
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg("-o")
        .args([&library, &Path::new(SOURCES).join(source)])
        .arg("-lm")
        .status();
    assert!(built.expect("cc starts").success(), "{defines:?}");
    library
}

/// Cargo in `folder`, without the network, into a target folder that all these tests share.
fn cargo(folder: &Path, arguments: &[&str]) -> (Output, PathBuf) {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    if !folder.join("Cargo.lock").exists() {
        fs::copy(lock, folder.join("Cargo.lock")).expect("a copy");
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins");
    let output = Command::new(env!("CARGO"))
        .current_dir(folder)
        .args(arguments)
        .args(["--offline", "--quiet"])
        .env("CARGO_TARGET_DIR", &target)
        // Nobody debugs what is built here, or builds it twice; plugin_manual.rs says the same, so
        // that it finds these builds done.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo starts");
    (output, target)
}

#[test]
fn a_plugin_that_ends_its_process_is_reported_by_one_that_lives() {
    let Some(cc) = cc() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let tested = |name: &str, defines: &[&str]| {
        let library = faulty(&cc, folder.path(), name, defines);
        let output = t3s(
            folder.path(),
            &["plugin", "test", library.to_str().expect("UTF-8")],
        );
        (output.status.code(), text(&output))
    };
    for (name, define, said) in [
        ("abort", "FAULT_ABORT", "it aborted (SIGABRT)"),
        ("exit", "FAULT_EXIT", "it called exit (exit status: 3)"),
        (
            "null",
            "FAULT_NULL_READ",
            "outside its columns, or wrote into one (SIGSEGV)",
        ),
        (
            "outside",
            "FAULT_OUTSIDE",
            "outside its columns, or wrote into one (SIGSEGV)",
        ),
    ] {
        let (code, message) = tested(name, &[define]);
        assert_eq!(code, Some(1), "{message}");
        assert!(message.contains(said), "{message}");
        assert!(
            message.starts_with("strategy keep: it ended the process: "),
            "{message}"
        );
        assert!(
            message.contains("\nlaw \"answers\", smallest input found:\n"),
            "{message}"
        );
    }
    let (code, message) = tested("good", &["DESCRIPTION=\"{\\\"needs\\\": []}\""]);
    // faulty.c refuses options of any kind, and reads no column: it keeps the laws.
    assert_eq!(code, Some(0), "{message}");
    assert!(
        message.contains("strategy keep: keeps the laws"),
        "{message}"
    );
    let (code, message) = tested(
        "prompt",
        &["FAULT_PROMPT", "DESCRIPTION=\"{\\\"needs\\\": []}\""],
    );
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("law \"mask\" is broken"), "{message}");
    assert!(message.contains("smallest input found:\n"), "{message}");
    let output = t3s(folder.path(), &["plugin", "test", "missing.so"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

/// `t3s plugin test` on `library`: its exit code, and what it says of each component, by name.
fn verdicts(library: &Path, arguments: &[&str]) -> (Option<i32>, BTreeMap<String, String>, String) {
    let file = library.to_str().expect("UTF-8");
    let folder = library.parent().expect("a folder");
    let output = t3s(folder, &[&["plugin", "test", file], arguments].concat());
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    let mut of = String::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let begins = ["strategy ", "model adapter "]
            .iter()
            .find_map(|kind| line.strip_prefix(kind)?.split_once(": "));
        let line = match begins {
            Some((name, rest)) => {
                of = name.to_owned();
                rest
            }
            None => line,
        };
        let of = said.entry(of.clone()).or_default();
        of.push_str(line);
        of.push('\n');
    }
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said, error)
}

#[test]
fn each_law_catches_the_built_strategy_that_breaks_it() {
    let Some(cc) = cc() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let library = built(&cc, folder.path(), "broken_laws.c", "broken_laws", &[]);
    let (code, said, error) = verdicts(&library, &[]);
    assert_eq!(code, Some(1), "{error}");
    // The law, and how many tokens its smallest input has.
    for (name, law, tokens) in [
        ("answers", "answers", 8),
        ("needs", "needs", 0),
        // The host looks for this one itself.
        ("written", "answers", 1),
        ("not-finite", "range", 1),
        ("above-one", "range", 1),
        ("below-zero", "range", 1),
        ("mask", "mask", 1),
        ("deterministic", "deterministic", 1),
        ("ineligible", "ineligible", 1),
        ("permutation", "permutation", 1),
        ("padding", "padding", 1),
        ("splitting", "splitting", 2),
        ("budget", "budget", 1),
        ("monotone", "monotone", 1),
        ("missing", "missing", 0),
        ("nan", "nan", 1),
        // A single token, which it meets where an example is asked about alone.
        ("degenerate", "splitting", 2),
    ] {
        let said = &said[name];
        let begins = format!("law {law:?} is broken: strategy {name:?}: ");
        assert!(said.starts_with(&begins), "{name}: {said}");
        let (_, input) = said
            .split_once("\nsmallest input found:\n")
            .expect("an input");
        assert_eq!(input.matches("position ").count(), tokens, "{name}: {said}");
    }
    let outside = "it read or wrote outside its columns, or wrote into one (SIGSEGV)";
    for (name, death, tokens) in [
        ("reads-after", outside, 3),
        ("reads-before", outside, 3),
        ("writes-column", outside, 3),
        ("empty", outside, 0),
        ("aborts", "it aborted (SIGABRT)", 3),
        ("exits", "it called exit (exit status: 0)", 2),
    ] {
        let said = &said[name];
        let begins =
            format!("it ended the process: {death}\nlaw \"answers\", smallest input found:\n");
        assert!(said.starts_with(&begins), "{name}: {said}");
        assert_eq!(said.matches("position ").count(), tokens, "{name}: {said}");
        assert!(!said.contains("it lives"), "{name}: {said}");
    }
    assert!(said["later"].contains("\n(asked about this alone, it lives: "));
    assert_eq!(said["lawful"], "keeps the laws\n");
    assert_eq!(
        said["needy"],
        "not tested; it needs --set needy.share=VALUE\n"
    );
    assert_eq!(said.len(), 26);
}

#[test]
fn components_are_given_options_and_those_without_are_not_tested() {
    let Some(cc) = cc() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let library = built(&cc, folder.path(), "broken_laws.c", "needy", &["ONLY"]);
    let (code, said, error) = verdicts(&library, &[]);
    assert_eq!(code, Some(3), "{said:?}");
    assert!(
        error.starts_with("incomplete: ") && error.contains("as far as it was tested"),
        "{error}"
    );
    let (code, said, error) = verdicts(&library, &["--set", "needy.share=0.5"]);
    assert_eq!(code, Some(0), "{said:?} {error}");
    assert_eq!(said["needy"], "keeps the laws\n");
    let (code, said, _) = verdicts(&library, &["--set", "needy.share=0.25"]);
    assert_eq!(code, Some(1), "{said:?}");
    assert!(
        said["needy"].starts_with("law \"options\" is broken: "),
        "{said:?}"
    );
    for (pair, expected) in [
        ("nedy.share=1", "no component \"nedy\"; it has needy"),
        ("share=1", "write COMPONENT.KEY=VALUE"),
        ("needy.share", "write COMPONENT.KEY=VALUE"),
    ] {
        let (code, _, error) = verdicts(&library, &["--set", pair]);
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_is_begun_in_c_builds_and_keeps_the_laws() {
    if cc().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let begun = t3s(
        folder.path(),
        &["plugin", "new", "soft-edge", "--lang", "c"],
    );
    assert!(begun.status.success(), "{}", text(&begun));
    let here = folder.path().join("soft-edge");
    let made = Command::new("make").current_dir(&here).output();
    let Ok(made) = made else {
        eprintln!("SKIPPED: no make");
        return;
    };
    assert!(made.status.success(), "{}", text(&made));
    assert!(made.stderr.is_empty(), "warnings: {}", text(&made));
    let tested = t3s(&here, &["plugin", "test", "libsoft_edge.so"]);
    assert!(tested.status.success(), "{}", text(&tested));
    let listed = text(&t3s(&here, &["plugin", "list", "libsoft_edge.so"]));
    assert!(
        listed.contains("libsoft_edge.so (ABI 1.2)\n  strategy soft-edge: "),
        "{listed}"
    );
    let inspected = text(&t3s(&here, &["plugin", "inspect", "libsoft_edge.so"]));
    for part in [
        "sha256 ",
        "ABI 1.2, built with t3s_plugin.h 1.2\n",
        "\"tau\"",
    ] {
        assert!(inspected.contains(part), "{inspected}");
    }
    let all = text(&t3s(
        &here,
        &["list", "strategies", "--plugin", "libsoft_edge.so"],
    ));
    assert!(all.contains("from libsoft_edge.so"), "{all}");
    assert!(all.contains("from t3s-strategies "), "{all}");
    combinators_know_it(&here.join("libsoft_edge.so"));
    for kind in ["signal", "adapter"] {
        let name = format!("my-{kind}");
        let begun = t3s(
            folder.path(),
            &["plugin", "new", &name, "--kind", kind, "--lang", "c"],
        );
        assert!(begun.status.success(), "{}", text(&begun));
        let here = folder.path().join(&name);
        // Its own test, which runs the program under test.
        let program = Path::new(env!("CARGO_BIN_EXE_t3s"));
        let path = [program.parent().expect("a folder").display().to_string()];
        let path = path.into_iter().chain(env::var("PATH").ok());
        let made = Command::new("make")
            .args(["CFLAGS=-O1 -Wall -Wextra -Werror", "test"])
            .env("PATH", path.collect::<Vec<_>>().join(":"))
            .current_dir(&here)
            .output()
            .expect("make");
        let said = text(&made);
        assert!(made.status.success(), "{said}");
        assert!(
            said.contains(&format!("{kind} {name}: keeps the laws")),
            "{said}"
        );
        assert!(here.join("plan.toml").is_file());
    }
    let again = t3s(folder.path(), &["plugin", "new", "soft-edge"]);
    assert_eq!(again.status.code(), Some(2), "{}", text(&again));
    let bad = t3s(folder.path(), &["plugin", "new", "../x"]);
    assert_eq!(bad.status.code(), Some(2), "{}", text(&bad));
}

/// A strategy of a plugin inside one that is linked.
fn combinators_know_it(library: &Path) {
    let plugin = t3s_core::plugin::load(library, None).unwrap_or_else(|e| panic!("{e}"));
    let registry = t3s_core::registry::Registry::from_entries([]).expect("empty");
    let registry = plugin.add_to(registry).expect("no clash");
    assert_eq!(registry.plugins().len(), 1);
    let known = t3s_core::registry::Registry::known().expect("no clash");
    let mut options = t3s_core::toml::Table::new();
    options.insert("tau".to_owned(), 2.0.into());
    let strategy = known.strategy("soft-edge", &options);
    assert_eq!(strategy.map(|s| s.needs().len()).ok(), Some(1));
}

/// One build folder is shared, so the builds are one test.
#[test]
fn what_is_begun_in_rust_builds_and_keeps_the_laws() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, kind, library) in [
        ("my-rule", "strategy", "libmy_rule.so"),
        ("my-score", "signal", "libmy_score.so"),
        ("my-family", "adapter", "libmy_family.so"),
    ] {
        let begun = t3s(
            folder.path(),
            &["plugin", "new", name, "--kind", kind, "--sdk", SDK],
        );
        assert!(begun.status.success(), "{}", text(&begun));
        let here = folder.path().join(name);
        let (tested, target) = cargo(&here, &["test"]);
        assert!(tested.status.success(), "{}", text(&tested));
        // With the feature of the test, so that what it was built on serves again.
        let (built, _) = cargo(&here, &["build", "--features", "t3s-plugin/laws"]);
        assert!(built.status.success(), "{}", text(&built));
        let library = target.join("debug").join(library);
        let tested = t3s(&here, &["plugin", "test", library.to_str().expect("UTF-8")]);
        assert!(tested.status.success(), "{}", text(&tested));
        if kind == "adapter" {
            adapters_are_given_configs(&library);
        }
    }

    let library = panics_are_errors(folder.path());
    the_quickstart_selects_with(folder.path(), &library);
}

/// The config.json of the command line, or a generic one.
fn adapters_are_given_configs(library: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    let given = |name: &str, text: &str, arguments: &[&str]| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("a file");
        let path = path.to_str().expect("UTF-8");
        verdicts(library, &[&["--config", path], arguments].concat())
    };
    let good = r#"{"model_type": "my-family", "vocab_size": 100, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64}"#;
    let (code, said, error) = given("good.json", good, &[]);
    assert_eq!(code, Some(0), "{said:?} {error}");
    assert_eq!(said["my-family"], "keeps the laws\n");
    let (code, said, _) = given("bad.json", &good.replace("100", "0"), &[]);
    assert_eq!(code, Some(1), "{said:?}");
    assert!(
        said["my-family"].starts_with("law \"decoder\" is broken: the config was refused: "),
        "{said:?}"
    );
    let (code, said, _) = given("other.json", &good.replace("my-family", "qwen3"), &[]);
    assert_eq!(code, Some(3), "{said:?}");
    assert!(said["my-family"].starts_with("not tested; "), "{said:?}");
    let (code, _, error) = given("text.json", "{", &[]);
    assert_eq!(code, Some(2), "{error}");
    let option = ["--set", "my-family.objective.speed=3"];
    let (code, said, _) = given("good.json", good, &option);
    assert_eq!(code, Some(1), "{said:?}");
    let (code, _, error) = given("good.json", good, &["--set", "my-family.speed=3"]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("my-family.objective.KEY=VALUE"), "{error}");
}

/// The quickstart's own `select`, by a library of foreign flags and by one in C, beside T3S.
fn the_quickstart_selects_with(folder: &Path, fell: &Path) {
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart");
    let edge = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/examples/edge-weights");
    let edge_library = folder.join("libedge_weights.so");
    let Some(cc) = cc() else { return };
    let built = Command::new(cc)
        .args(["-std=c11", "-fPIC", "-shared", "-O2", "-I", INCLUDE, "-o"])
        .args([&edge_library, &edge.join("edge_weights.c")])
        .arg("-lm")
        .status();
    assert!(built.expect("cc starts").success());
    fs::write(
        folder.join("plan.toml"),
        format!(
            "extends = [{:?}]\n[plugins]\nload = [{fell:?}, \"libedge_weights.so\"]\n",
            quickstart.join("plan.toml")
        ),
    )
    .expect("a file");
    // The whole data; of the training only what makes the stages before and after it run.
    let kept = |strategy: &str| {
        let mut arguments = vec!["run".to_owned(), "plan.toml".to_owned()];
        for pair in [
            "train.steps=2",
            "probe.checkpoint_every=1",
            "bottleneck.step=1",
            "eval.limit=4",
            "eval.generate.max_new_tokens=8",
            &format!("out=runs/{strategy}"),
            &format!("selection.strategy={strategy}"),
        ] {
            arguments.extend(["--set".to_owned(), pair.to_owned()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ran = t3s(folder, &arguments);
        assert!(ran.status.success(), "{}", text(&ran));
        let summary = fs::read(folder.join(format!("runs/{strategy}/summary.json")));
        let summary: serde_json::Value =
            serde_json::from_slice(&summary.expect("a summary")).expect("JSON");
        summary["selection"].clone()
    };
    let (fell, edge, anchors) = (kept("fell"), kept("edge-weights"), kept("t3s"));
    let count = |selection: &serde_json::Value, key: &str| selection[key].as_u64();
    // T3S keeps what did not rise, so those that fell, and the few that stayed.
    assert!(count(&fell, "kept") > Some(0), "{fell}");
    assert!(
        count(&fell, "kept") <= count(&anchors, "kept"),
        "{fell} {anchors}"
    );
    // Soft weights are above zero everywhere.
    assert_eq!(count(&edge, "kept"), count(&edge, "tokens"), "{edge}");
}

/// Another edition, other flags: a library by LTO and stripped, and one that aborts. The first.
fn panics_are_errors(folder: &Path) -> PathBuf {
    let here = folder.join("panicky");
    fs::create_dir_all(here.join("src")).expect("a folder");
    let manifest = format!(
        "[package]\nname = \"panicky\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
         [lib]\ncrate-type = [\"cdylib\"]\n\
         [dependencies]\nschemars = \"1\"\nserde = {{ version = \"1\", features = [\"derive\"] }}\n\
         t3s-plugin = {{ path = {SDK:?} }}\n\
         [profile.release]\nopt-level = \"z\"\nlto = \"thin\"\nstrip = true\n\
         [profile.aborting]\ninherits = \"dev\"\npanic = \"abort\"\n\
         [workspace]\n"
    );
    fs::write(here.join("Cargo.toml"), manifest).expect("a file");
    let source = concat!(include_str!("plugin/panicky.rs"), "\nmod fell;\n");
    fs::write(here.join("src/lib.rs"), source).expect("a file");
    fs::write(here.join("src/fell.rs"), include_str!("plugin/fell.rs")).expect("a file");
    let (built, target) = cargo(&here, &["build", "--release"]);
    assert!(built.status.success(), "{}", text(&built));
    // Here core is built without its host's part, which no build of the workspace does.
    assert!(!text(&built).contains("warning"), "{}", text(&built));
    let library = target.join("release/libpanicky.so");
    let plugin = t3s_core::plugin::load(&library, None).unwrap_or_else(|e| panic!("{e}"));
    let registry = t3s_core::registry::Registry::from_entries([]).expect("empty");
    let registry = plugin.add_to(registry).expect("no clash");
    let make = |at: &str| {
        let mut options = t3s_core::toml::Table::new();
        options.insert("panic_in".to_owned(), at.into());
        registry.strategy("panicky", &options)
    };
    for at in ["new", "needs"] {
        let said = make(at).err().expect("an error").to_string();
        assert!(
            said.starts_with("strategy \"panicky\" panicked: src/lib.rs:"),
            "{said}"
        );
        assert!(said.ends_with(&format!(": a bug in {at}")), "{said}");
    }
    let strategy = make("select").unwrap_or_else(|e| panic!("{e}"));
    let table = t3s_core::TokenTable::new(vec![1], vec![0, 1], vec![5], vec![3], vec![true])
        .expect("a good table");
    let mut out = [0.0];
    let cx = t3s_core::SelectContext::recorded(0);
    let said = strategy.select(&table.view(), &cx, &mut out).err();
    let said = said.expect("an error").to_string();
    assert!(
        said.ends_with(": index out of bounds: the len is 1 but the index is 1"),
        "{said}"
    );
    // And the host goes on: so does the plugin.
    let good = make("nowhere").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(good.select(&table.view(), &cx, &mut out), Ok(()));
    assert_eq!(out, [1.0]);
    let unknown = "panik_in = 1".parse().expect("TOML");
    let said = registry
        .strategy("panicky", &unknown)
        .err()
        .expect("an error");
    assert!(said.to_string().contains("panik_in"), "{said}");

    let (built, target) = cargo(&here, &["build", "--profile", "aborting"]);
    assert!(built.status.success(), "{}", text(&built));
    let error = t3s_core::plugin::load(&target.join("aborting/libpanicky.so"), None);
    let said = error.expect_err("refused").to_string();
    assert!(said.contains("compiled with panic = \"abort\""), "{said}");
    library
}
