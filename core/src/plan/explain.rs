//! Which file and line won, and what it overrode.

use std::{collections::BTreeMap, fmt};

use toml::Value;

use super::{
    error::{Place, PlanError, Problem, within},
    read::join,
    source::{Content, Node},
};
use crate::registry::nearest;

/// One value that was written for a key, or its default.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// The key as it was written; `train.steps` for an inherited `probe.steps`.
    pub key: String,
    /// Where.
    pub place: Place,
    /// The value as TOML.
    pub value: String,
}

/// Where the value of one key comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The key from the root.
    pub key: String,
    /// The resolved value as TOML.
    pub value: String,
    /// The value that won, then those it overrode, the latest first. Never empty.
    pub origins: Vec<Origin>,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.key, self.value)?;
        for (i, origin) in self.origins.iter().enumerate() {
            let verb = if i == 0 { "from" } else { "over" };
            write!(f, "\n  {verb} {}", origin.place)?;
            if origin.key != self.key {
                write!(f, " {}", origin.key)?;
            }
            if i > 0 || origin.value != self.value {
                write!(f, ": {}", origin.value)?;
            }
        }
        Ok(())
    }
}

/// The origins of every key that somebody wrote.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    written: BTreeMap<String, Vec<Origin>>,
}

impl Origins {
    /// `root`: the merged raw plan, before it is read.
    pub(super) fn of(root: &Node) -> Self {
        let mut origins = Self::default();
        origins.add(root, "");
        origins
    }

    fn add(&mut self, node: &Node, key: &str) {
        if let Content::Table(table) = &node.content {
            for (name, inner) in table {
                self.add(inner, &join(key, name));
            }
            return;
        }
        let origin = |place: &Place, value: &Value| Origin {
            key: key.to_owned(),
            place: place.clone(),
            value: value.to_string(),
        };
        let mut all = vec![origin(&node.place, &node.to_value())];
        if let Content::Array(nodes) = &node.content {
            // Elements that were set one by one.
            for (i, inner) in nodes.iter().enumerate() {
                if inner.place != node.place && matches!(inner.place, Place::Override(_)) {
                    let mut element = origin(&inner.place, &inner.to_value());
                    element.key = join(key, &i.to_string());
                    all.insert(0, element);
                }
            }
        }
        all.extend(
            node.overrode
                .iter()
                .map(|(place, value)| origin(place, value)),
        );
        self.written.insert(key.to_owned(), all);
    }

    /// What was written for `key`, the winner first; empty where it has its default.
    pub fn written(&self, key: &str) -> Vec<Origin> {
        let mut all = self.written.get(key).cloned().unwrap_or_default();
        // `[probe]` inherits `[train]` key by key.
        if let Some(name) = key.strip_prefix("probe.")
            && let Some(inherited) = self.written.get(&format!("train.{name}"))
        {
            all.extend(inherited.iter().cloned());
        }
        all
    }

    /// Explains `key`, or every key of the table `key`. `plan` is the resolved plan as people
    /// write it.
    pub(super) fn explain(
        &self,
        key: &str,
        plan: &toml::Table,
    ) -> Result<Vec<Explanation>, Box<PlanError>> {
        let mut leaves = Vec::new();
        collect(plan, "", &mut leaves);
        let explanations: Vec<Explanation> = leaves
            .iter()
            .filter(|(leaf, _)| within(leaf, key))
            .map(|(leaf, value)| {
                let mut origins = self.written(leaf);
                if origins.is_empty() {
                    origins.push(Origin {
                        key: leaf.clone(),
                        place: Place::Default,
                        value: value.to_string(),
                    });
                }
                Explanation {
                    key: leaf.clone(),
                    value: value.to_string(),
                    origins,
                }
            })
            .collect();
        if explanations.is_empty() {
            let keys = || leaves.iter().map(|(leaf, _)| leaf.as_str());
            return Err(Box::new(PlanError {
                place: None,
                key: key.to_owned(),
                problem: Problem::UnknownKey {
                    nearest: nearest(key, keys()).map(str::to_owned),
                    known: plan.keys().cloned().collect(),
                },
            }));
        }
        Ok(explanations)
    }
}

fn collect<'t>(table: &'t toml::Table, at: &str, leaves: &mut Vec<(String, &'t Value)>) {
    for (name, value) in table {
        let key = join(at, name);
        match value {
            Value::Table(inner) => collect(inner, &key, leaves),
            leaf => leaves.push((key, leaf)),
        }
    }
}
