//! The reference of every key, made from the types of [`sections`](super::sections).

use std::fmt::Write;

use serde_json::Value as Json;

use super::shape::{Default, KeyShape, Shape, TableShape, plan};

/// Every key of a plan with its type, default and meaning, as Markdown: `docs/plans.md` contains
/// it, and a test holds it there.
pub fn reference_markdown() -> String {
    let root = plan();
    let mut text = String::new();
    let top: Vec<&KeyShape> = root.keys.iter().filter(|k| !is_section(k)).collect();
    text.push_str("### Top level\n\n");
    rows(&top, &mut text);
    for key in root.keys.iter().filter(|key| is_section(key)) {
        section(&key.name, key, &mut text);
    }
    text
}

fn is_section(key: &KeyShape) -> bool {
    match &key.shape {
        Shape::Table(_) => true,
        Shape::Map(inner) => matches!(**inner, Shape::Table(_)),
        _ => false,
    }
}

fn section(name: &str, key: &KeyShape, text: &mut String) {
    let (name, table): (String, &TableShape) = match &key.shape {
        Shape::Table(table) => (name.to_owned(), table),
        Shape::Map(inner) => match &**inner {
            Shape::Table(table) => (format!("{name}.ID"), table),
            _ => return,
        },
        _ => return,
    };
    line(text, format_args!("\n### `[{name}]`\n\n{}\n", key.doc));
    if name == "probe" {
        text.push_str(
            "\n`checkpoint_every`, `seed`, and every key of `[train]`, which it inherits key by key.\n\n",
        );
        let own: Vec<&KeyShape> = table
            .keys
            .iter()
            .filter(|k| ["checkpoint_every", "seed"].contains(&k.name.as_str()))
            .collect();
        rows(&own, text);
        return;
    }
    text.push('\n');
    let plain: Vec<&KeyShape> = table.keys.iter().filter(|k| !is_section(k)).collect();
    rows(&plain, text);
    if table.open {
        text.push_str("\nThe other keys are the component's options; `t3s list` shows them.\n");
    }
    for inner in table.keys.iter().filter(|key| is_section(key)) {
        section(&format!("{name}.{}", inner.name), inner, text);
    }
}

fn rows(keys: &[&KeyShape], text: &mut String) {
    if keys.is_empty() {
        return;
    }
    text.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
    for key in keys {
        let kind = match &key.shape {
            Shape::Choice(_) => "a word".to_owned(),
            shape => shape.accepted(),
        };
        let mut meaning = key.doc.clone();
        if let Shape::Choice(choices) = &key.shape {
            for choice in choices {
                let _ = write!(meaning, "<br>`{}`", choice.word);
                if !choice.doc.is_empty() {
                    let _ = write!(meaning, ": {}", choice.doc);
                }
            }
        }
        line(
            text,
            format_args!(
                "| `{}` | {kind} | {} | {} |\n",
                key.name,
                default(key),
                meaning.replace('|', "\\|")
            ),
        );
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a string takes all text");
}

fn default(key: &KeyShape) -> String {
    match &key.default {
        Default::None if key.required => "required".to_owned(),
        Default::None => "absent".to_owned(),
        Default::Said(words) => (*words).to_owned(),
        Default::Value(Json::Object(table)) if table.is_empty() => "none".to_owned(),
        Default::Value(value) => format!("`{value}`"),
    }
}
