//! `t3s plugin`: begin one, look into one, hold one to the laws.

mod guarded;
mod new;
mod test;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use t3s_core::plugin::{Plugin, load};

use crate::{args::PluginCommand, display::Display, failure::Failure};

/// Runs `t3s plugin ...`.
pub fn run(command: &PluginCommand, display: &Display) -> Result<(), Failure> {
    match command {
        PluginCommand::New {
            name,
            kind,
            lang,
            sdk,
        } => new::run(name, *kind, *lang, sdk.as_deref()),
        PluginCommand::List { files } => list(files, display),
        PluginCommand::Inspect { file } => inspect(file, display),
        PluginCommand::Test(args) => match &args.notes {
            None => test::parent(args),
            Some(notes) => test::child(args, notes),
        },
    }
}

fn open(file: &Path) -> Result<Plugin, Failure> {
    load(file, None).map_err(Failure::usage)
}

fn list(files: &[PathBuf], display: &Display) -> Result<(), Failure> {
    let plugins = files
        .iter()
        .map(|file| open(file))
        .collect::<Result<Vec<_>, _>>()?;
    let result: Vec<Value> = plugins.iter().map(as_json).collect();
    display.result(&result, || {
        for plugin in &plugins {
            let (major, minor) = plugin.abi();
            println!("{} (ABI {major}.{minor})", plugin.path().display());
            for entry in plugin.components() {
                println!("  {} {}: {}", entry.kind(), entry.name, entry.summary);
            }
        }
    });
    Ok(())
}

fn inspect(file: &Path, display: &Display) -> Result<(), Failure> {
    let plugin = open(file)?;
    display.result(&as_json(&plugin), || {
        let (major, minor) = plugin.abi();
        println!("{}", plugin.path().display());
        println!("ABI {major}.{minor}, built with {}", plugin.built_with());
        println!("sha256 {}", plugin.sha256());
        for entry in plugin.components() {
            println!("\n{} {}: {}", entry.kind(), entry.name, entry.summary);
            let schema = (entry.schema)();
            match serde_json::to_string_pretty(schema.as_value()) {
                Ok(text) => println!("{text}"),
                Err(error) => println!("(its schema cannot be shown: {error})"),
            }
        }
    });
    Ok(())
}

fn as_json(plugin: &Plugin) -> Value {
    let (major, minor) = plugin.abi();
    let components: Vec<Value> = plugin
        .components()
        .iter()
        .map(|entry| {
            json!({
                "kind": entry.kind().to_string(),
                "name": entry.name,
                "summary": entry.summary,
                "options": (entry.schema)(),
            })
        })
        .collect();
    json!({
        "path": plugin.path(),
        "abi": [major, minor],
        "built_with": plugin.built_with(),
        "sha256": plugin.sha256(),
        "components": components,
    })
}
