//! The failure table: every way in which a library can be bad is a message, and the host goes on.
//!
//! Needs a C compiler (`cc`, or the one that `CC` names); without one the tests are skipped aloud.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use t3s_core::{
    SelectContext, SelectionStrategy, TableError, TokenTable, TokenWeights,
    plugin::{Plugin, PluginError, load},
    registry::Registry,
};
use t3s_plugin::toml::Table;

/// A folder for one test's libraries.
struct Bench(tempfile::TempDir);

impl Bench {
    /// `None` where there is no C compiler.
    fn new() -> Option<Self> {
        if Command::new(cc()).arg("--version").output().is_err() {
            eprintln!("SKIPPED: no C compiler ({}); set CC", cc());
            return None;
        }
        Some(Self(tempfile::tempdir().expect("a folder")))
    }

    /// `faulty.c` with `defines`, as `lib<name>.so`.
    fn build(&self, name: &str, defines: &[&str]) -> PathBuf {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let library = self.0.path().join(format!("lib{name}.so"));
        let built = Command::new(cc())
            .args(["-std=c11", "-fPIC", "-shared", "-O1", "-w"])
            .args(defines.iter().map(|define| format!("-D{define}")))
            .arg("-I")
            .arg(here.join("../include"))
            .arg("-o")
            .arg(&library)
            .arg(here.join("tests/faulty.c"))
            .output()
            .expect("cc starts");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{defines:?}: {said}");
        library
    }

    fn load(&self, name: &str, defines: &[&str]) -> Result<Plugin, PluginError> {
        load(&self.build(name, defines), None)
    }

    /// Why the library `name` is refused, with the folder's own path taken out.
    fn refused(&self, name: &str, defines: &[&str]) -> String {
        let error = self.load(name, defines).expect_err("refused");
        self.short(&error.to_string())
    }

    fn short(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }

    /// What asking the strategy `keep` of a library comes to.
    fn asked(&self, name: &str, defines: &[&str]) -> Result<Vec<f32>, String> {
        let plugin = self.load(name, defines).unwrap_or_else(|e| panic!("{e}"));
        let strategy = made(&plugin, &Table::new())?;
        select(strategy.as_ref())
    }
}

fn cc() -> String {
    env::var("CC").unwrap_or_else(|_| "cc".to_owned())
}

fn registry(plugin: &Plugin) -> Registry {
    let empty = Registry::from_entries([]).expect("nothing clashes");
    plugin.add_to(empty).expect("nothing clashes")
}

fn made(plugin: &Plugin, options: &Table) -> Result<Box<dyn SelectionStrategy>, String> {
    let made = registry(plugin).strategy("keep", options);
    made.map_err(|error| error.to_string())
}

/// Example 7 with a prompt token and two others, example 3 with one.
fn table() -> TokenTable {
    let mut table = TokenTable::new(
        vec![7, 3],
        vec![0, 3, 4],
        vec![10, 11, 12, 20],
        vec![0, 1, 2, 5],
        vec![false, true, true, true],
    )
    .expect("a good table");
    table.insert("x", vec![0.0; 4]).expect("4 values");
    table
}

fn select(strategy: &dyn SelectionStrategy) -> Result<Vec<f32>, String> {
    let table = table();
    let mut out = vec![0.25; 4];
    strategy
        .select(&table.view(), &SelectContext::recorded(1), &mut out)
        .map_err(|error| error.to_string())?;
    Ok(out)
}

#[test]
fn files_that_are_no_libraries() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.0.path();
    fs::write(folder.join("text.so"), "not a library").expect("a file");
    fs::write(folder.join("empty.so"), "").expect("a file");
    let refused = |name: &str| {
        let error = load(&folder.join(name), None).expect_err("refused");
        bench.short(&error.to_string())
    };
    assert_eq!(
        refused("missing.so"),
        "plugin missing.so: No such file or directory (os error 2)"
    );
    let error = load(folder, None).expect_err("refused").to_string();
    assert!(
        error.ends_with("is a directory, expected a shared library"),
        "{error}"
    );
    for name in ["text.so", "empty.so"] {
        assert_eq!(
            refused(name),
            format!("plugin {name}: not a shared library (it has no ELF header)")
        );
    }
}

/// Without the preflight the system's loader would end this process.
#[cfg(target_os = "linux")]
#[test]
fn damaged_and_foreign_libraries() {
    let Some(bench) = Bench::new() else { return };
    let bytes = fs::read(bench.build("good", &[])).expect("a library");
    let refused = |name: &str, bytes: &[u8]| {
        let path = bench.0.path().join(name);
        fs::write(&path, bytes).expect("a file");
        bench.short(&load(&path, None).expect_err("refused").to_string())
    };
    for share in [1, 3, 5] {
        let cut = refused("cut.so", &bytes[..bytes.len() * share / 10]);
        assert!(cut.starts_with("plugin cut.so: truncated: "), "{cut}");
    }
    let mut foreign = bytes.clone();
    foreign[18..20].copy_from_slice(&243_u16.to_le_bytes());
    let message = refused("foreign.so", &foreign);
    assert!(
        message.starts_with("plugin foreign.so: built for RISC-V, this program"),
        "{message}"
    );
    let mut program = bytes;
    program[16] = 2;
    assert!(refused("program.so", &program).contains("is a program, expected a shared library"));
}

#[test]
fn libraries_that_are_no_plugins() {
    let Some(bench) = Bench::new() else { return };
    assert_eq!(
        bench.refused("a", &["FAULT_NO_SYMBOL"]),
        "plugin liba.so: not a t3s plugin (it exports no symbol t3s_plugin)"
    );
    assert_eq!(
        bench.refused("b", &["FAULT_MAGIC"]),
        "plugin libb.so: not a t3s plugin (its symbol t3s_plugin is something else)"
    );
}

#[test]
fn versions_are_negotiated() {
    let Some(bench) = Bench::new() else { return };
    let older = bench
        .load("older", &["MINOR=0"])
        .expect("an older minor version loads");
    assert_eq!(older.abi(), (1, 0));
    let before = bench.load("before", &["MINOR=1"]).expect("as well");
    assert_eq!(before.abi(), (1, 1));
    let strategy = made(&older, &Table::new()).expect("made");
    assert_eq!(select(strategy.as_ref()), Ok(vec![0.0, 1.0, 1.0, 1.0]));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        bench.refused("newer", &["MINOR=3"]),
        format!(
            "plugin libnewer.so: built for plugin ABI 1.3 (by faulty.c), this program speaks 1.2; \
             build it again with t3s-plugin {version}"
        )
    );
    let other = bench.refused("other", &["MAJOR=2"]);
    assert!(
        other.contains("built for plugin ABI 2.2 (by another t3s-plugin)"),
        "{other}"
    );
    let old_adapter = bench.refused("old_adapter", &["MINOR=0", "KIND=T3S_ADAPTER"]);
    assert!(old_adapter.ends_with("adapt is null"), "{old_adapter}");
}

#[test]
fn broken_tables() {
    let Some(bench) = Bench::new() else { return };
    for (name, define, message) in [
        (
            "abort",
            "FLAGS=T3S_FLAG_ABORTS",
            "compiled with panic = \"abort\", so",
        ),
        ("empty", "FAULT_EMPTY", "has no component; is a register_"),
        (
            "table",
            "FAULT_NULL_TABLE",
            "broken table: components is null",
        ),
        (
            "list",
            "FAULT_NULL_LIST",
            "broken table: the list of components is null",
        ),
        (
            "listed",
            "FAULT_LIST",
            "cannot list its components: no list today",
        ),
        (
            "null",
            "FAULT_NULL_COMPONENT",
            "broken table: component 0: its pointer is null",
        ),
        (
            "size",
            "FAULT_SIZE",
            "broken table: component 0: its size is 24, of version 1.2 it",
        ),
        (
            "create",
            "FAULT_NO_CREATE",
            "broken table: component 0: \"keep\": create is null",
        ),
        (
            "run",
            "FAULT_NO_RUN",
            "broken table: component 0: \"keep\": run is null",
        ),
        (
            "schema",
            "FAULT_SCHEMA",
            "broken table: component 0: \"keep\": its schema is not JSON",
        ),
        (
            "kind",
            "KIND=9",
            "broken table: component 0: \"keep\": its kind is 9, which",
        ),
        (
            "no_name",
            "NAME=\"\"",
            "broken table: component 0: its name is empty",
        ),
        (
            "bad_name",
            "NAME=\"\\xff\"",
            "broken table: component 0: its name is not UTF-8",
        ),
        (
            "null_name",
            "FAULT_NAME_NULL",
            "broken table: component 0: its name is null",
        ),
        (
            "same",
            "FAULT_SAME_NAME",
            "strategy \"keep\" is registered by libsame.so and by lib",
        ),
    ] {
        let found = bench.refused(name, &[define]);
        let expected = format!("plugin lib{name}.so: {message}");
        assert!(found.starts_with(&expected), "{found}\nexpected {expected}");
    }
}

#[test]
fn names_clash_with_both_origins() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.load("first", &[]).expect("good");
    let second = bench.load("second", &[]).expect("good");
    let clash = |plugin: &Plugin| {
        let error = plugin.add_to(registry(&first)).expect_err("refused");
        bench.short(&error.to_string())
    };
    assert_eq!(
        clash(&second),
        "plugin libsecond.so: strategy \"keep\" is registered by libfirst.so and by libsecond.so; \
         rename one of them"
    );
    assert_eq!(
        clash(&first),
        "plugin libfirst.so: listed twice; remove one of the two"
    );
}

#[test]
fn digests_are_pinned() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.build("pinned", &[]);
    let digest = load(&path, None).expect("good").sha256().to_owned();
    assert_eq!(digest.len(), 64);
    assert!(load(&path, Some(&digest.to_uppercase())).is_ok());
    let error = load(&path, Some("00ff")).expect_err("refused").to_string();
    assert_eq!(
        bench.short(&error),
        format!("plugin libpinned.so: its sha256 is {digest}, the plan pins 00ff")
    );
}

#[test]
fn answers_that_are_none() {
    let Some(bench) = Bench::new() else { return };
    assert_eq!(bench.asked("good", &[]), Ok(vec![0.0, 1.0, 1.0, 1.0]));
    for (name, define, message) in [
        ("error", "FAULT_ERROR", "the moon is in the wrong phase"),
        (
            "silent",
            "FAULT_SILENT",
            "strategy \"keep\" failed and did not say why",
        ),
        (
            "null",
            "FAULT_NO_INSTANCE",
            "strategy \"keep\" was made and is null",
        ),
        (
            "status",
            "FAULT_STATUS",
            "strategy \"keep\" returned the status 77, which means nothing: ",
        ),
        (
            "utf8",
            "FAULT_NOT_UTF8",
            "the plugin gave a text that is not UTF-8",
        ),
        (
            "unwritten",
            "FAULT_UNWRITTEN",
            "strategy \"keep\" left 1 of 4 numbers unwritten, the first at example 3, position 5",
        ),
    ] {
        assert_eq!(
            bench.asked(name, &[define]),
            Err(message.to_owned()),
            "{define}"
        );
    }
    let described = |name: &str, description: &str| {
        let define = format!("DESCRIPTION=\"{}\"", description.replace('"', "\\\""));
        bench.asked(name, &[&define]).expect_err("refused")
    };
    assert_eq!(
        described("d1", "{}"),
        "the description of strategy \"keep\": missing field `needs` at line 1 column 2"
    );
    assert!(described("d2", "{\"needs\": [], \"whim\": 1}").contains("unknown field `whim`"));
}

#[test]
fn weights_that_are_none() {
    let Some(bench) = Bench::new() else { return };
    let weights = |name: &str, define: &str| {
        let out = bench.asked(name, &[define]).expect("an answer");
        let error: TableError = TokenWeights::new(&table().view(), out).expect_err("refused");
        error.to_string()
    };
    for (name, define, shown) in [
        ("nan", "FAULT_WEIGHT=(zero/zero)", "NaN"),
        ("below", "FAULT_WEIGHT=-0.5f", "-0.5"),
        ("above", "FAULT_WEIGHT=1.5f", "1.5"),
    ] {
        assert_eq!(
            weights(name, define),
            format!("weight {shown} at example 3, position 5; weights must lie in 0..=1")
        );
    }
    assert_eq!(
        weights("prompt", "FAULT_PROMPT"),
        "weight 1 at example 7, position 0, which is a prompt or padding token"
    );
}

#[test]
fn options_and_columns_that_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let plugin = bench.load("options", &[]).expect("good");
    let options: Table = "share = 1".parse().expect("TOML");
    assert_eq!(
        made(&plugin, &options).err().as_deref(),
        Some("must be left out")
    );
    let dated: Table = "share = 2026-01-01".parse().expect("TOML");
    assert!(
        made(&plugin, &dated)
            .err()
            .expect("refused")
            .contains("the date 2026-01-01")
    );
    let define = "DESCRIPTION=\"{\\\"needs\\\": [\\\"entropi@base\\\"]}\"";
    let signal = bench
        .load("signal", &["KIND=T3S_SIGNAL", define])
        .expect("good");
    let error = registry(&signal).signal("keep", &Table::new()).err();
    assert_eq!(
        error.expect("refused").to_string(),
        "signal \"keep\" needs: unknown observable \"entropi\"; known: logp, entropy, rank, \
         grad_norm, sketch"
    );
    let unknown = registry(&plugin).strategy("kep", &Table::new()).err();
    let unknown = bench.short(&unknown.expect("unknown").to_string());
    assert_eq!(
        unknown,
        "unknown strategy \"kep\", did you mean \"keep\"?; known: keep; plugins loaded: \
         liboptions.so"
    );
}
