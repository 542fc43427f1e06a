//! `--set KEY=VALUE`: overrides of the command line.
//!
//! The key is dotted TOML (`signals."my id".kind`); an array's element is named by its index
//! (`train.lora.targets.0`), and the index one past the end appends. The value is TOML; what is
//! not TOML and does not begin like an array, a table or a quoted string is taken as a string, so
//! that `--set selection.strategy=t3s` needs no quotes.

use std::sync::Arc;

use toml::{
    Value,
    de::{DeTable, DeValue},
};

use super::{
    error::{Place, Problem, Problems},
    source::{Content, Node, plain_value},
};

/// Lays the overrides over `root`, in their order, as one layer.
pub(super) fn apply(root: &mut Node, overrides: &[String], layer: usize, problems: &mut Problems) {
    for text in overrides {
        let place = Place::Override(Arc::from(text.as_str()));
        let applied = parse(text).and_then(|(keys, value)| {
            if keys[0] == "extends" {
                return Err("extends can only stand in a file".to_owned());
            }
            let node = Node::from_value(value, place.clone(), layer);
            lay(root, &keys, node, layer)
        });
        if let Err(message) = applied {
            problems.push(Some(place), "", Problem::Other(message));
        }
    }
}

fn parse(text: &str) -> Result<(Vec<String>, Value), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("write KEY=VALUE, e.g. train.steps=50")?;
    Ok((parse_key(key)?, parse_value(value.trim())?))
}

fn parse_key(key: &str) -> Result<Vec<String>, String> {
    let refused = || format!("{:?} is not a dotted key", key.trim());
    if key.contains(['\n', '#', '[']) {
        return Err(refused());
    }
    let line = format!("{key} = 0");
    let document = DeTable::parse(&line).map_err(|_| refused())?;
    let mut parts = Vec::new();
    let mut table = document.get_ref();
    loop {
        let (part, value) = table.iter().next().ok_or_else(refused)?;
        parts.push(part.get_ref().clone().into_owned());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return Ok(parts),
        }
    }
}

fn parse_value(text: &str) -> Result<Value, String> {
    match DeValue::parse(text) {
        Ok(value) => plain_value(value.get_ref()),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => Err(format!(
            "{text:?} is not a TOML value: {}",
            error.message().trim()
        )),
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

fn lay(node: &mut Node, keys: &[String], over: Node, layer: usize) -> Result<(), String> {
    let Some((key, rest)) = keys.split_first() else {
        node.merge(over);
        return Ok(());
    };
    match &mut node.content {
        Content::Table(table) => {
            let place = over.place.clone();
            match table.get_mut(key) {
                Some(inner) => lay(inner, rest, over, layer),
                None if rest.is_empty() => {
                    table.insert(key.clone(), over);
                    Ok(())
                }
                None => {
                    let mut inner = Node::empty_table(place, layer);
                    lay(&mut inner, rest, over, layer)?;
                    table.insert(key.clone(), inner);
                    Ok(())
                }
            }
        }
        Content::Array(nodes) => {
            let n = nodes.len();
            let index: usize = key
                .parse()
                .ok()
                .filter(|index| *index <= n)
                .ok_or_else(|| format!("{key:?} is no index of an array of {n} elements"))?;
            if let Some(inner) = nodes.get_mut(index) {
                return lay(inner, rest, over, layer);
            }
            let mut inner = Node::empty_table(over.place.clone(), layer);
            if rest.is_empty() {
                inner = over;
            } else {
                lay(&mut inner, rest, over, layer)?;
            }
            nodes.push(inner);
            Ok(())
        }
        Content::Scalar(_) => {
            let mut table = Node::empty_table(over.place.clone(), layer);
            lay(&mut table, keys, over, layer)?;
            node.merge(table);
            Ok(())
        }
    }
}
