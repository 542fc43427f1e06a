//! `t3s list`: every component, with its options.

use serde_json::{Value, json};
use t3s_core::registry::{Kind, Registration};

use crate::{
    args::{ListArgs, ListKind},
    display::Display,
    failure::Failure,
};

/// Lists components.
pub fn run(args: &ListArgs, display: &Display) -> Result<(), Failure> {
    let registry = super::registry(&args.plugins)?;
    let kinds = [
        (ListKind::Strategies, Kind::Strategy, "strategies"),
        (ListKind::Signals, Kind::Signal, "signals"),
        (ListKind::Adapters, Kind::Adapter, "model adapters"),
    ];
    let mut listed = Vec::new();
    for (wanted, kind, title) in kinds {
        if args.kind.is_none_or(|only| only == wanted) {
            listed.push((title, registry.of_kind(kind).collect::<Vec<_>>()));
        }
    }
    let result: serde_json::Map<String, Value> = listed
        .iter()
        .map(|(title, entries)| {
            let entries = entries.iter().map(|entry| as_json(entry)).collect();
            ((*title).to_owned(), Value::Array(entries))
        })
        .collect();
    display.result(&result, || {
        for (title, entries) in &listed {
            println!("{title}");
            for entry in entries {
                println!("  {:<18} {}", entry.name, entry.summary);
                println!("  {:<18}   from {}", "", entry.origin);
                for (name, option) in options(entry) {
                    println!("  {:<18}   {name}: {option}", "");
                }
            }
        }
    });
    Ok(())
}

fn as_json(entry: &Registration) -> Value {
    json!({
        "name": entry.name,
        "summary": entry.summary,
        "origin": entry.origin,
        "options": (entry.schema)(),
    })
}

/// Name, default and meaning of each option.
fn options(entry: &Registration) -> Vec<(String, String)> {
    let schema = (entry.schema)();
    let properties = schema.as_value().pointer("/properties");
    let Some(properties) = properties.and_then(Value::as_object) else {
        return Vec::new();
    };
    properties
        .iter()
        .map(|(name, property)| {
            let text = property["description"].as_str().unwrap_or("");
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let default = match &property["default"] {
                Value::Null => String::new(),
                value => format!(" [{value}]"),
            };
            (name.clone(), format!("{text}{default}"))
        })
        .collect()
}
