//! What a child of `t3s plugin test` does: it holds components to the laws, noting what it asks.

use std::{fs, path::Path};

use t3s_core::{
    HfConfig, ModelAdapter,
    adapter::FamilyOptions,
    laws::{self, Again},
    registry::{Factory, Registration},
    toml::{Table, Value},
};

use super::{At, Ended, Notes, write};
use crate::{
    args::{PluginTestArgs, Resume},
    commands::{
        key_value,
        plugin::guarded::{Fenced, SIDES, no_core_file, watched},
    },
    failure::Failure,
};

/// Holds the components from one on to the laws, or asks one about one input again.
pub fn child(args: &PluginTestArgs, notes: &Path) -> Result<(), Failure> {
    no_core_file();
    let before = fs::read(notes).ok();
    let before: Option<Notes> = before.and_then(|text| serde_json::from_slice(&text).ok());
    // Until a component is asked, the plugin is being loaded.
    write(notes, &Notes::default())?;
    let tested = tested(args, notes, before);
    let ended = match &tested {
        Ok(ended) => *ended,
        Err(_) => Ended::Refused,
    };
    write(
        notes,
        &Notes {
            at: None,
            ended: Some(ended),
        },
    )?;
    tested.map(drop)
}

fn tested(args: &PluginTestArgs, notes: &Path, before: Option<Notes>) -> Result<Ended, Failure> {
    let plugin = crate::commands::plugin::open(&args.file)?;
    let entries = plugin.components();
    let sets = overrides(&args.overrides, entries)?;
    let config = args.config.as_deref().map(config).transpose()?;
    let first = args.component.min(entries.len());
    if args.resume != Resume::From {
        let at = before.and_then(|notes| notes.at);
        let (Some(at), Some(entry)) = (at, entries.get(first)) else {
            return Err(Failure::usage("no notes to resume from"));
        };
        let again = match args.resume {
            Resume::Smaller => Again::Smaller,
            _ => Again::Same,
        };
        if let Some(asked) = &at.asked {
            let entry = watched(entry, at.fenced, note(notes, first, entry, at.fenced));
            laws::ask_again(&entry, &sets[first], asked, again);
        }
        return Ok(Ended::Kept);
    }
    let mut worst = Ended::Kept;
    for (index, entry) in entries.iter().enumerate().skip(first) {
        worst = worst.max(held(index, entry, &sets[index], config.as_ref(), notes)?);
    }
    Ok(worst)
}

/// A `config.json`.
fn config(path: &Path) -> Result<HfConfig, Failure> {
    let fault = |error: String| Failure::usage(format!("{}: {error}", path.display()));
    let text = fs::read(path).map_err(|error| fault(error.to_string()))?;
    serde_json::from_slice(&text)
        .map(HfConfig)
        .map_err(|error| fault(error.to_string()))
}

/// Holds one component to the laws and says whether it keeps them.
fn held(
    index: usize,
    entry: &Registration,
    options: &Table,
    config: Option<&HfConfig>,
    notes: &Path,
) -> Result<Ended, Failure> {
    let (kind, name) = (entry.kind(), entry.name);
    let lacking = laws::required(entry, options);
    if !lacking.is_empty() {
        let sets: Vec<String> = lacking
            .iter()
            .map(|option| format!("--set {name}.{option}=VALUE"))
            .collect();
        println!("{kind} {name}: not tested; it needs {}", sets.join(" "));
        return Ok(Ended::Untested);
    }
    let sides = match entry.factory {
        // No column of an adapter's lies on guarded memory.
        Factory::Adapter(_) => &SIDES[..1],
        _ => SIDES,
    };
    for fenced in sides {
        let note = note(notes, index, entry, *fenced);
        note("");
        let entry = watched(entry, *fenced, note);
        let held = match entry.factory {
            Factory::Adapter(make) => {
                let options = adapter_options(name, options)?;
                match adapter(&entry, make, config, &options) {
                    Ok(held) => held,
                    Err(why) => {
                        println!("{kind} {name}: not tested; {why}");
                        return Ok(Ended::Untested);
                    }
                }
            }
            _ => laws::registration(&entry, options),
        };
        if let Err(fault) = held {
            println!("{kind} {name}: {fault}");
            return Ok(Ended::Broken);
        }
    }
    println!("{kind} {name}: keeps the laws");
    Ok(Ended::Kept)
}

/// Whether the adapter `entry` keeps the laws; an error where there is no config to try them on.
fn adapter(
    entry: &Registration,
    make: &dyn Fn() -> Box<dyn ModelAdapter>,
    given: Option<&HfConfig>,
    options: &FamilyOptions,
) -> Result<Result<(), laws::Broken>, String> {
    if let Err(broken) = laws::registration(entry, &Table::new()) {
        return Ok(Err(broken));
    }
    let Some(config) = given else {
        let generic = laws::generic_config(entry.name);
        const GIVE: &str = "pass one of its family: --config FILE";
        if !make().claims(&generic) {
            let name = entry.name;
            return Err(format!(
                "it does not claim a config.json of model_type {name:?}; {GIVE}"
            ));
        }
        return match make().decoder(&generic) {
            Ok(_) => Ok(laws::adapter(make, &generic, options)),
            Err(error) => Err(format!(
                "it refuses a generic config.json ({error}); {GIVE}"
            )),
        };
    };
    match make().claims(config) {
        true => Ok(laws::adapter(make, config, options)),
        false => Err("it does not claim the config.json of --config".to_owned()),
    }
}

/// The tables `objective` and `decode` of an adapter's options.
fn adapter_options(name: &str, options: &Table) -> Result<FamilyOptions, Failure> {
    let mut read = FamilyOptions::default();
    for (key, value) in options {
        match (key.as_str(), value) {
            ("objective", Value::Table(table)) => read.objective = table.clone(),
            ("decode", Value::Table(table)) => read.decode = table.clone(),
            _ => {
                return Err(Failure::usage(format!(
                    "--set {name}.{key}: write {name}.objective.KEY=VALUE or \
                     {name}.decode.KEY=VALUE; a model adapter has no other options"
                )));
            }
        }
    }
    Ok(read)
}

/// Writes down what the component `entry` is about to be asked.
fn note(
    notes: &Path,
    index: usize,
    entry: &Registration,
    fenced: Fenced,
) -> &'static (dyn Fn(&str) + Send + Sync) {
    let notes = notes.to_owned();
    let who = format!("{} {}", entry.kind(), entry.name);
    Box::leak(Box::new(move |input: &str| {
        let at = At {
            index,
            who: who.clone(),
            fenced,
            asked: laws::asked(),
            input: input.to_owned(),
        };
        // Without the note only the report of a crash is poorer.
        let _ = write(
            &notes,
            &Notes {
                at: Some(at),
                ended: None,
            },
        );
    }))
}

/// The options of each component: `NAME.KEY=VALUE`, with more keys for tables inside.
fn overrides(pairs: &[String], entries: &[Registration]) -> Result<Vec<Table>, Failure> {
    let mut sets = vec![Table::new(); entries.len()];
    for text in pairs {
        let split = key_value(text).and_then(|(key, value)| Some((key.split_once('.')?, value)));
        let Some(((name, path), value)) = split else {
            return Err(Failure::usage(format!(
                "--set {text}: write COMPONENT.KEY=VALUE, e.g. my-rule.share=0.2"
            )));
        };
        let mut known = false;
        for (entry, options) in entries.iter().zip(&mut sets) {
            if entry.name == name {
                known = true;
                put(options, path, value.clone())
                    .map_err(|at| Failure::usage(format!("--set {text}: {at} is no table")))?;
            }
        }
        if !known {
            let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
            return Err(Failure::usage(format!(
                "--set {text}: the plugin has no component {name:?}; it has {}",
                names.join(", ")
            )));
        }
    }
    Ok(sets)
}

/// Puts `value` at `path`; the key that stands in the way if it cannot.
fn put<'p>(table: &mut Table, path: &'p str, value: Value) -> Result<(), &'p str> {
    let Some((first, rest)) = path.split_once('.') else {
        table.insert(path.to_owned(), value);
        return Ok(());
    };
    let inner = table
        .entry(first)
        .or_insert_with(|| Table::new().into())
        .as_table_mut()
        .ok_or(first)?;
    put(inner, rest, value)
}
