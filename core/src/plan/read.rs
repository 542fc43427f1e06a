//! The strict reading of a merged raw plan: unknown keys, wrong types and missing keys are noted
//! and repaired, so that one pass finds them all; then serde reads the rest.

use std::path::{Path, PathBuf};

use toml::Value;

use super::{
    error::{Place, Problem, Problems},
    sections::RunPlan,
    shape::{KeyShape, Shape, TableShape, describe, plan},
    source::{Content, Node, expand_home, relative_to},
};
use crate::registry::nearest;

/// Walks `root` along the plan's shape: afterwards every value has its type and paths are
/// relative to the working directory.
pub(super) fn conform_plan(root: &mut Node, problems: &mut Problems) {
    conform_table(root, plan(), "", problems);
}

/// Walks `node` along `shape`; false when it has to go.
fn conform(node: &mut Node, shape: &Shape, key: &str, problems: &mut Problems) -> bool {
    let place = Some(node.place.clone());
    match (shape, &mut node.content) {
        (Shape::Any, _)
        | (Shape::Text, Content::Scalar(Value::String(_)))
        | (Shape::Number, Content::Scalar(Value::Float(_) | Value::Integer(_)))
        | (Shape::Flag, Content::Scalar(Value::Boolean(_))) => true,
        (Shape::Whole { min }, Content::Scalar(Value::Integer(number))) if *number >= *min => true,
        (Shape::Path, Content::Scalar(Value::String(text))) => {
            if !text.is_empty() {
                *text = resolve_path(text, &node.place);
            }
            true
        }
        (Shape::Choice(choices), Content::Scalar(Value::String(word))) => {
            if choices.iter().any(|choice| choice.word == *word) {
                return true;
            }
            let words = || choices.iter().map(|choice| choice.word.as_str());
            let problem = Problem::UnknownWord {
                found: word.clone(),
                nearest: nearest(word, words()).map(str::to_owned),
                known: words().map(str::to_owned).collect(),
            };
            problems.push(place, key, problem);
            false
        }
        (Shape::List(inner), Content::Array(nodes)) => {
            let mut index = 0;
            nodes.retain_mut(|node| {
                let kept = conform(node, inner, &format!("{key}.{index}"), problems);
                index += 1;
                kept
            });
            true
        }
        (Shape::Map(inner), Content::Table(table)) => {
            table.retain(|name, node| conform(node, inner, &join(key, name), problems));
            true
        }
        (Shape::Table(inner), Content::Table(_)) => {
            conform_table(node, inner, key, problems);
            true
        }
        (shape, _) => {
            let problem = Problem::WrongType {
                found: describe(&node.to_value()),
                accepted: shape.accepted(),
            };
            problems.push(place, key, problem);
            false
        }
    }
}

/// Walks the table `node` along `shape`. Wrong values go; where the key is required, something of
/// its type takes the place.
pub(super) fn conform_table(
    node: &mut Node,
    shape: &TableShape,
    at: &str,
    problems: &mut Problems,
) {
    let (table_place, layer) = (node.place.clone(), node.layer);
    let Some(table) = node.as_table_mut() else {
        return;
    };
    table.retain(|name, node| {
        let key = join(at, name);
        match shape.key(name) {
            Some(known) if known.optional && is_off(node) => true,
            Some(known) => conform(node, &known.shape, &key, problems),
            None if shape.open => true,
            None => {
                let problem = unknown_key(name, shape, at);
                problems.push(Some(node.place.clone()), key, problem);
                false
            }
        }
    });
    for key in shape.keys.iter().filter(|key| key.required) {
        if table.contains_key(&key.name) {
            continue;
        }
        let name = join(at, &key.name);
        if !problems.concern(&name) {
            report_missing(key, &name, &table_place, problems);
        }
        if let Some(value) = key.shape.placeholder() {
            let node = Node::from_value(value, table_place.clone(), layer);
            table.insert(key.name.clone(), node);
        }
    }
}

/// A missing table is reported as the keys that it has to have.
fn report_missing(key: &KeyShape, name: &str, place: &Place, problems: &mut Problems) {
    if let Shape::Table(table) = &key.shape {
        for inner in table.keys.iter().filter(|key| key.required) {
            report_missing(inner, &join(name, &inner.name), place, problems);
        }
        return;
    }
    let accepted = key.shape.accepted();
    let problem = Problem::Missing {
        accepted: match first_sentence(&key.doc) {
            "" => accepted,
            doc => format!("{accepted} ({doc})"),
        },
    };
    problems.push(Some(place.clone()), name, problem);
}

fn first_sentence(doc: &str) -> &str {
    doc.split_once(". ")
        .map_or(doc, |(first, _)| first)
        .trim_end_matches('.')
}

/// The nearest key of the same table, or else the same key of another one.
fn unknown_key(name: &str, shape: &TableShape, at: &str) -> Problem {
    let near = nearest(name, shape.names()).map(|found| join(at, found));
    Problem::UnknownKey {
        nearest: near.or_else(|| elsewhere(name)),
        known: shape.names().map(str::to_owned).collect(),
    }
}

fn elsewhere(name: &str) -> Option<String> {
    plan().keys.iter().find_map(|section| match &section.shape {
        Shape::Table(table) => table
            .key(name)
            .map(|key| format!("{}.{}", section.name, key.name)),
        _ => None,
    })
}

pub(super) fn join(at: &str, name: &str) -> String {
    if at.is_empty() {
        name.to_owned()
    } else {
        format!("{at}.{name}")
    }
}

fn is_off(node: &Node) -> bool {
    matches!(node.content, Content::Scalar(Value::Boolean(false)))
}

fn resolve_path(text: &str, place: &Place) -> String {
    let resolved: PathBuf = match place {
        Place::File { path, .. } => relative_to(path, text),
        Place::Override(_) | Place::Default => expand_home(text),
    };
    // Plans are UTF-8, and so are the paths in them.
    resolved.to_string_lossy().into_owned()
}

/// The effective plan tree: `[probe]` has `[train]`'s keys under its own, and what was switched
/// off is gone.
pub(super) fn effective(root: &Node) -> Node {
    let mut root = root.clone();
    let Some(table) = root.as_table_mut() else {
        return root;
    };
    if let Some(train) = table.get("train").cloned() {
        let own = table.remove("probe");
        let mut probe = train;
        if let Some(own) = own {
            probe.merge(own);
        }
        table.insert("probe".to_owned(), probe);
    }
    for section in ["train", "probe"] {
        let section = table.get_mut(section).and_then(Node::as_table_mut);
        if let Some(section) = section
            && section.get("lora").is_some_and(is_off)
        {
            section.remove("lora");
        }
    }
    root
}

/// The plan that the conformed, effective tree says, with the defaults of a file at `path`.
/// `None` only when a value that serde refuses cannot be repaired; that is noted.
pub(super) fn plan_of(tree: &Node, path: &Path, problems: &mut Problems) -> Option<RunPlan> {
    let mut tree = tree.clone();
    loop {
        let value = plan_value(&tree, path);
        let error = match serde_path_to_error::deserialize::<_, RunPlan>(value) {
            Ok(plan) => return Some(plan),
            Err(error) => error,
        };
        let key = written_key(&error.path().to_string());
        let message = error.inner().message().to_owned();
        if !problems.concern(&key) {
            problems.push(tree.place_of(&key), &key, Problem::Other(message));
        }
        if !tree.remove(&key) {
            return None;
        }
    }
}

/// The key that people write for a key of [`RunPlan`].
fn written_key(key: &str) -> String {
    let key = key.replace("probe.training", "probe");
    let key = key.replace("selection.options", "selection");
    match key.strip_prefix("signals.") {
        Some(rest) => format!("signals.{}", rest.replacen(".options", "", 1)),
        None => key,
    }
}

/// From the form that people write to [`RunPlan`]'s own.
fn plan_value(tree: &Node, path: &Path) -> Value {
    let Value::Table(mut plan) = tree.to_value() else {
        unreachable!("a plan is a table");
    };
    let stem = path
        .file_stem()
        .map_or_else(|| "run".to_owned(), |s| s.to_string_lossy().into_owned());
    let out = format!("runs/{stem}");
    for (key, default) in [
        ("name", Value::String(stem)),
        ("out", Value::String(out)),
        ("seed", Value::Integer(0)),
        ("device", Value::String("auto".to_owned())),
    ] {
        plan.entry(key).or_insert(default);
    }

    let seed = plan["seed"].clone();
    let mut probe = toml::Table::new();
    if let Some(Value::Table(mut training)) = plan.remove("probe") {
        for own in ["checkpoint_every", "seed"] {
            if let Some(value) = training.remove(own) {
                probe.insert(own.to_owned(), value);
            }
        }
        probe.insert("training".to_owned(), Value::Table(training));
    }
    probe.entry("seed").or_insert_with(|| seed.clone());
    plan.insert("probe".to_owned(), Value::Table(probe));
    let eval = plan
        .entry("eval")
        .or_insert_with(|| Value::Table(toml::Table::new()));
    if let Value::Table(eval) = eval {
        eval.entry("seed").or_insert(seed);
    }

    if let Some(Value::Table(selection)) = plan.get_mut("selection") {
        gather_options(selection, &["strategy", "from"]);
    }
    if let Some(Value::Table(signals)) = plan.get_mut("signals") {
        for (_, signal) in signals.iter_mut() {
            if let Value::Table(signal) = signal {
                gather_options(signal, &["kind"]);
            }
        }
    }
    Value::Table(plan)
}

fn gather_options(component: &mut toml::Table, own: &[&str]) {
    let mut options = std::mem::take(component);
    for name in own {
        if let Some(value) = options.remove(*name) {
            component.insert((*name).to_owned(), value);
        }
    }
    component.insert("options".to_owned(), Value::Table(options));
}
