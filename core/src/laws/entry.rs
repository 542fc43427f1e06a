//! The laws of registrations: names, summaries, options.

use super::{Broken, signal, strategy};
use crate::{
    ComponentError, ConfidenceSignal, SelectionStrategy,
    registry::{Factory, Kind, Registration, Registry},
};

/// Holds every component of `kind` with its default options to the laws: those of its options (see
/// [`registration`]) and those of its kind. Returns how many there are.
///
/// # Errors
/// The first law that is broken; the message names the component.
pub fn registry(registry: &Registry, kind: Kind) -> Result<usize, Broken> {
    let mut count = 0;
    for entry in registry.of_kind(kind) {
        registration(entry, &toml::Table::new())?;
        count += 1;
    }
    Ok(count)
}

/// Holds the component `entry`, made with `options`, to the laws of its kind, and its registration
/// to these:
///
/// * `name`: kebab-case, with a summary of one line;
/// * `schema`: the options are an object, and each has a description and a default or is required;
/// * `unknown-option`: an option that does not exist is refused;
/// * `options`: `options` make a component, and so do the schema's defaults written out, which make
///   the same one.
///
/// # Errors
/// The first law that is broken; the message names the component.
pub fn registration(entry: &Registration, options: &toml::Table) -> Result<(), Broken> {
    let broken = |law| {
        move |message: String| Broken {
            law,
            input: String::new(),
            message,
        }
    };
    let checked = named(entry)
        .map_err(broken("name"))
        .and_then(|()| schema(entry).map_err(broken("schema")))
        .and_then(|()| unknown_option(entry, options).map_err(broken("unknown-option")))
        .and_then(|()| round_trip(entry, options).map_err(broken("options")))
        .and_then(|()| match entry.factory {
            Factory::Strategy(make) => strategy(|| made(make(options))),
            Factory::Signal(make) => signal(|| made(make(options))),
            Factory::Adapter(_) => Ok(()),
        });
    checked.map_err(|broken| Broken {
        message: format!("{} {:?}: {}", entry.kind(), entry.name, broken.message),
        ..broken
    })
}

fn made<T>(made: Result<T, ComponentError>) -> T {
    made.expect("the law `options` has made one from the same options")
}

fn named(entry: &Registration) -> Result<(), String> {
    let kebab = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if !entry.name.split('-').all(kebab) {
        return Err("the name is not kebab-case".to_owned());
    }
    if entry.summary.trim().is_empty() || entry.summary.contains('\n') {
        return Err("the summary is not one line".to_owned());
    }
    Ok(())
}

/// The properties of the schema: name and JSON value.
fn properties(entry: &Registration) -> Vec<(String, serde_json::Value)> {
    let schema = (entry.schema)();
    let found = schema.get("properties").and_then(|p| p.as_object());
    let pairs = found.into_iter().flatten();
    pairs.map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn schema(entry: &Registration) -> Result<(), String> {
    if let Factory::Adapter(_) = entry.factory {
        return Ok(());
    }
    let schema = (entry.schema)();
    if schema.get("type").and_then(|t| t.as_str()) != Some("object") {
        return Err("the schema of its options is not that of a table".to_owned());
    }
    let required: Vec<&str> = schema
        .get("required")
        .and_then(|r| r.as_array())
        .map(|r| r.iter().filter_map(|name| name.as_str()).collect())
        .unwrap_or_default();
    for (name, property) in properties(entry) {
        if property.get("description").is_none() {
            return Err(format!("option {name:?} has no doc comment"));
        }
        if property.get("default").is_none() && !required.contains(&name.as_str()) {
            return Err(format!(
                "option {name:?} is neither required nor has a default in the schema"
            ));
        }
    }
    Ok(())
}

/// What tells two components of one registration apart without an input.
fn tell(entry: &Registration, options: &toml::Table) -> Result<String, ComponentError> {
    match entry.factory {
        Factory::Strategy(make) => make(options).map(|s| {
            let s: &dyn SelectionStrategy = s.as_ref();
            format!("{:?} {:?} {:?}", s.needs(), s.when(), s.declare())
        }),
        Factory::Signal(make) => make(options).map(|s| {
            let s: &dyn ConfidenceSignal = s.as_ref();
            format!("{:?}", s.needs())
        }),
        Factory::Adapter(make) => {
            make();
            Ok(String::new())
        }
    }
}

fn unknown_option(entry: &Registration, options: &toml::Table) -> Result<(), String> {
    if let Factory::Adapter(_) = entry.factory {
        return Ok(());
    }
    let mut options = options.clone();
    options.insert("no-such-option".to_owned(), toml::Value::Boolean(true));
    match tell(entry, &options) {
        Ok(_) => Err(
            "an option that does not exist was taken; write #[serde(deny_unknown_fields)]"
                .to_owned(),
        ),
        Err(_) => Ok(()),
    }
}

fn round_trip(entry: &Registration, options: &toml::Table) -> Result<(), String> {
    let expected = tell(entry, options)
        .map_err(|error| format!("the options {{{options}}} were refused: {error}"))?;
    let mut written = options.clone();
    for (name, property) in properties(entry) {
        let Some(default) = property.get("default").filter(|d| !d.is_null()) else {
            continue;
        };
        if !written.contains_key(&name) {
            let value = toml::Value::try_from(default)
                .map_err(|error| format!("the default of {name:?} is not TOML: {error}"))?;
            written.insert(name, value);
        }
    }
    let found = tell(entry, &written).map_err(|error| {
        format!("the defaults of the schema, written out, were refused: {error}")
    })?;
    if found == expected {
        Ok(())
    } else {
        Err(format!(
            "with the schema's defaults written out, {expected} became {found}"
        ))
    }
}
