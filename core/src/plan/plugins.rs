//! `[plugins]`: libraries are loaded while a plan is read, since their components are part of what
//! the plan may name.

use std::{collections::BTreeMap, env, path::Path};

use toml::Value;

use super::{
    error::{Problem, Problems},
    source::{Content, Node},
};
use crate::{
    plugin::{self, Cause, PluginError},
    registry::Registry,
};

/// Digests of the libraries that were loaded, by file name.
pub(super) type Digests = BTreeMap<String, String>;

/// Replaces `$NAME` and `${NAME}` in the file names of `plugins.load` by what the environment says,
/// before they are resolved against the plan's folder.
pub(super) fn expand(root: &mut Node, problems: &mut Problems) {
    for (index, node) in listed_mut(root).into_iter().enumerate() {
        let place = node.place.clone();
        let Content::Scalar(Value::String(text)) = &mut node.content else {
            continue;
        };
        match expanded(text, |name| env::var(name).ok()) {
            Ok(path) => *text = path,
            Err(message) => {
                let key = format!("plugins.load.{index}");
                problems.push(Some(place), key, Problem::Other(message));
            }
        }
    }
}

fn expanded(text: &str, look_up: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut path = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        path.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let name = match rest.strip_prefix('{') {
            Some(inner) => match inner.split_once('}') {
                Some((name, after)) => {
                    rest = after;
                    name
                }
                None => return Err(format!("found {text:?}; a ${{ is never closed")),
            },
            None => {
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let (name, after) = rest.split_at(rest.find(|c| !word(c)).unwrap_or(rest.len()));
                rest = after;
                name
            }
        };
        let value = look_up(name).ok_or_else(|| {
            format!("found {text:?}; the environment variable {name:?} is not set")
        })?;
        path.push_str(&value);
    }
    path.push_str(rest);
    Ok(path)
}

/// Loads what `[plugins]` lists into a copy of `registry`; every library that is refused is noted
/// with its line, and planning goes on without it.
pub(super) fn load(
    root: &Node,
    registry: &Registry,
    problems: &mut Problems,
) -> (Registry, Digests) {
    let mut registry = registry.clone();
    let mut digests = Digests::new();
    let mut paths: BTreeMap<String, &Path> = BTreeMap::new();
    let pins = pins(root);
    for (index, node) in listed(root).iter().enumerate() {
        let Content::Scalar(Value::String(path)) = &node.content else {
            continue;
        };
        let (path, name) = (Path::new(path), file_name(path));
        let pinned = pins.get(&name).map(String::as_str);
        let loaded = first_of_its_name(path, paths.get(&name).copied()).and_then(|()| {
            paths.insert(name.clone(), path);
            let plugin = plugin::load(path, pinned)?;
            registry = plugin.add_to(registry.clone())?;
            digests.insert(name, plugin.sha256().to_owned());
            Ok(())
        });
        if let Err(error) = loaded {
            let key = format!("plugins.load.{index}");
            problems.push(Some(node.place.clone()), key, Problem::Plugin(error));
        }
    }
    unused_pins(root, &pins, problems);
    (registry, digests)
}

/// Refuses a library whose file name another one has, given as `other`.
fn first_of_its_name(path: &Path, other: Option<&Path>) -> Result<(), PluginError> {
    let Some(other) = other else { return Ok(()) };
    let same = match (path.canonicalize(), other.canonicalize()) {
        (Ok(path), Ok(other)) => path == other,
        _ => path == other,
    };
    let cause = match same {
        true => Cause::Twice,
        false => Cause::SameFileName {
            other: other.to_owned(),
        },
    };
    Err(PluginError::new(path, cause))
}

/// A pin that no listed library has the name of would be a pin of nothing.
fn unused_pins(root: &Node, pins: &Digests, problems: &mut Problems) {
    let mut names = Vec::new();
    for node in listed(root) {
        if let Content::Scalar(Value::String(path)) = &node.content {
            names.push(file_name(path));
        }
    }
    for name in pins.keys().filter(|name| !names.contains(name)) {
        let place = root.find("plugins.sha256").map(|node| node.place.clone());
        let problem = Problem::Refused {
            found: format!("{name:?}"),
            accepted: format!(
                "must be the file name of a library in plugins.load ({})",
                if names.is_empty() {
                    "there are none".to_owned()
                } else {
                    names.join(", ")
                }
            ),
        };
        problems.push(place, "plugins.sha256", problem);
    }
}

fn pins(root: &Node) -> Digests {
    let Some(Value::Table(table)) = root.find("plugins.sha256").map(Node::to_value) else {
        return Digests::new();
    };
    let text = |(name, value): (String, Value)| Some((name, value.as_str()?.to_owned()));
    table.into_iter().filter_map(text).collect()
}

fn file_name(path: &str) -> String {
    let name = Path::new(path).file_name();
    name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn listed(root: &Node) -> &[Node] {
    match root.find("plugins.load").map(|node| &node.content) {
        Some(Content::Array(nodes)) => nodes,
        _ => &[],
    }
}

fn listed_mut(root: &mut Node) -> Vec<&mut Node> {
    let plugins = root.as_table_mut().and_then(|t| t.get_mut("plugins"));
    let load = plugins.and_then(|node| node.as_table_mut()?.get_mut("load"));
    match load.map(|node| &mut node.content) {
        Some(Content::Array(nodes)) => nodes.iter_mut().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::expanded;

    #[test]
    fn variables_are_replaced() {
        let known = |name: &str| (name == "DIR").then(|| "/opt/x".to_owned());
        for (text, path) in [
            ("a/b.so", "a/b.so"),
            ("$DIR/b.so", "/opt/x/b.so"),
            ("${DIR}y/b.so", "/opt/xy/b.so"),
        ] {
            assert_eq!(expanded(text, known).as_deref(), Ok(path));
        }
        assert_eq!(
            expanded("$NO/b.so", known),
            Err("found \"$NO/b.so\"; the environment variable \"NO\" is not set".to_owned())
        );
        assert!(expanded("${DIR/b.so", known).is_err());
    }
}
