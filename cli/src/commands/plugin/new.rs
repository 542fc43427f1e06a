//! `t3s plugin new`: a plugin that builds, keeps the laws and runs, to be changed.

use std::{fs, path::Path};

use crate::{
    args::{PluginKind, PluginLanguage},
    failure::Failure,
};

const STRATEGY: &str = include_str!("templates/strategy.rs.txt");
const SIGNAL: &str = include_str!("templates/signal.rs.txt");
const ADAPTER: &str = include_str!("templates/adapter.rs.txt");
const MANIFEST: &str = include_str!("templates/Cargo.toml.txt");
const PLAN: &str = include_str!("templates/plan.toml.txt");
const C_STRATEGY: &str = include_str!("../../../../plugins/examples/edge-weights/edge_weights.c");
const C_SIGNAL: &str = include_str!("templates/signal.c.txt");
const C_ADAPTER: &str = include_str!("templates/adapter.c.txt");
const HEADER: &str = include_str!("../../../../plugins/include/t3s_plugin.h");
const MAKEFILE: &str = include_str!("../../../../plugins/examples/edge-weights/Makefile");
/// Where the SDK was when this program was built.
const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/sdk");

/// Writes the folder `name`.
pub fn run(
    name: &str,
    kind: PluginKind,
    lang: PluginLanguage,
    sdk: Option<&Path>,
) -> Result<(), Failure> {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase())
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    if !name.split('-').all(part) {
        return Err(Failure::usage(format!(
            "{name:?} is not kebab-case; write small letters, digits and single dashes, e.g. my-rule"
        )));
    }
    let folder = Path::new(name);
    if folder.exists() {
        return Err(Failure::usage(format!(
            "{name} is there already; choose another name, or remove it"
        )));
    }
    let files = match lang {
        PluginLanguage::Rust => rust(name, kind, sdk)?,
        PluginLanguage::C => c(name, kind),
    };
    for (path, text) in &files {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
    }
    println!("{name}: {} files", files.len());
    let stem = name.replace('-', "_");
    let (build, library) = match lang {
        PluginLanguage::Rust => (
            "cargo test && cargo build --release",
            format!("target/release/lib{stem}.so"),
        ),
        PluginLanguage::C => ("make && make test", format!("lib{stem}.so")),
    };
    println!("  cd {name} && {build}");
    println!("  t3s plugin test {library}");
    Ok(())
}

fn filled(template: &str, name: &str) -> String {
    let stem = name.replace('-', "_");
    let camel: String = name
        .split('-')
        .map(|part| part[..1].to_ascii_uppercase() + &part[1..])
        .collect();
    template
        .replace("{{name}}", name)
        .replace("{{stem}}", &stem)
        .replace("{{Type}}", &camel)
}

fn rust(
    name: &str,
    kind: PluginKind,
    sdk: Option<&Path>,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let sdk = sdk.unwrap_or(Path::new(SDK));
    let sdk = sdk.canonicalize().map_err(|error| {
        Failure::usage(format!(
            "the crate t3s-plugin is not at {}: {error}; say where with --sdk",
            sdk.display()
        ))
    })?;
    let manifest = filled(MANIFEST, name).replace("{{sdk}}", &sdk.display().to_string());
    let source = match kind {
        PluginKind::Strategy => STRATEGY,
        PluginKind::Signal => SIGNAL,
        PluginKind::Adapter => ADAPTER,
    };
    let mut files = vec![
        ("Cargo.toml", manifest),
        ("src/lib.rs", filled(source, name)),
    ];
    if let Some(plan) = plan(name, kind, "target/release/") {
        files.push(("plan.toml", plan));
    }
    Ok(files)
}

fn c(name: &str, kind: PluginKind) -> Vec<(&'static str, String)> {
    let stem = name.replace('-', "_");
    let renamed = |text: &str| {
        text.replace("edge-weights", name)
            .replace("edge_weights", &stem)
    };
    let makefile = renamed(MAKEFILE).replace(&format!("{stem}.c"), "plugin.c");
    let source = match kind {
        PluginKind::Strategy => renamed(C_STRATEGY),
        PluginKind::Signal => filled(C_SIGNAL, name),
        PluginKind::Adapter => filled(C_ADAPTER, name),
    };
    let mut files = vec![
        ("plugin.c", source),
        ("Makefile", makefile),
        ("t3s_plugin.h", HEADER.to_owned()),
    ];
    files.extend(plan(name, kind, "").map(|plan| ("plan.toml", plan)));
    files
}

/// A plan that uses it. Adapters are found by a student's config.json.
fn plan(name: &str, kind: PluginKind, folder: &str) -> Option<String> {
    let selection = match kind {
        PluginKind::Strategy => format!("strategy = \"{name}\""),
        PluginKind::Signal => {
            format!(
                "# Any strategy that reads a signal.\nstrategy = \"entropy\"\nsignal = \"{name}\""
            )
        }
        PluginKind::Adapter => "strategy = \"t3s\"".to_owned(),
    };
    let library = format!("{folder}lib{}.so", name.replace('-', "_"));
    Some(
        filled(PLAN, name)
            .replace("{{library}}", &library)
            .replace("{{selection}}", &selection),
    )
}
