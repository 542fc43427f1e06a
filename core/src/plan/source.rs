//! Raw plans: files are parsed, what they extend is merged under them, and every value remembers
//! which file and line it came from and what it overrode.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::{
    Spanned, Value,
    de::{DeTable, DeValue},
};

use super::error::{Place, Problem, Problems};

/// A value of a raw plan with its history.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) content: Content,
    /// Where the winning value was written.
    pub(super) place: Place,
    /// Layers are numbered in the order in which they are merged; a higher one wins.
    pub(super) layer: usize,
    /// The values it overrode, the latest first.
    pub(super) overrode: Vec<(Place, Value)>,
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    /// Neither a table nor an array.
    Scalar(Value),
}

impl Node {
    pub(super) fn new(content: Content, place: Place, layer: usize) -> Self {
        Self {
            content,
            place,
            layer,
            overrode: Vec::new(),
        }
    }

    pub(super) fn empty_table(place: Place, layer: usize) -> Self {
        Self::new(Content::Table(BTreeMap::new()), place, layer)
    }

    /// A value without inner places: all of it comes from `place`.
    pub(super) fn from_value(value: Value, place: Place, layer: usize) -> Self {
        let inner = |value| Self::from_value(value, place.clone(), layer);
        let content = match value {
            Value::Table(table) => {
                Content::Table(table.into_iter().map(|(k, v)| (k, inner(v))).collect())
            }
            Value::Array(values) => Content::Array(values.into_iter().map(inner).collect()),
            scalar => Content::Scalar(scalar),
        };
        Self::new(content, place, layer)
    }

    pub(super) fn to_value(&self) -> Value {
        match &self.content {
            Content::Table(table) => Value::Table(
                table
                    .iter()
                    .map(|(k, n)| (k.clone(), n.to_value()))
                    .collect(),
            ),
            Content::Array(nodes) => Value::Array(nodes.iter().map(Self::to_value).collect()),
            Content::Scalar(value) => value.clone(),
        }
    }

    pub(super) fn as_table_mut(&mut self) -> Option<&mut BTreeMap<String, Node>> {
        match &mut self.content {
            Content::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The node at a dotted key; array elements by their index.
    pub(super) fn find(&self, key: &str) -> Option<&Node> {
        let mut node = self;
        for part in key.split('.').filter(|part| !part.is_empty()) {
            node = match &node.content {
                Content::Table(table) => table.get(part)?,
                Content::Array(nodes) => nodes.get(part.parse::<usize>().ok()?)?,
                Content::Scalar(_) => return None,
            };
        }
        Some(node)
    }

    /// Where the value at a dotted key was written, or else the nearest table around it.
    pub(super) fn place_of(&self, key: &str) -> Option<Place> {
        let mut key = key;
        loop {
            if let Some(node) = self.find(key) {
                return Some(node.place.clone());
            }
            key = key.rsplit_once('.').map_or("", |(table, _)| table);
        }
    }

    /// Removes the value at a dotted key; false when there is none.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        let (table, last) = key.rsplit_once('.').unwrap_or(("", key));
        let mut node = self;
        for part in table.split('.').filter(|part| !part.is_empty()) {
            let Some(next) = node.as_table_mut().and_then(|t| t.get_mut(part)) else {
                return false;
            };
            node = next;
        }
        node.as_table_mut()
            .is_some_and(|table| table.remove(last).is_some())
    }

    /// Lays `over` over this node: tables key by key, everything else whole.
    pub(super) fn merge(&mut self, over: Node) {
        match (&mut self.content, over) {
            (
                Content::Table(table),
                Node {
                    content: Content::Table(entries),
                    place,
                    layer,
                    ..
                },
            ) => {
                for (key, node) in entries {
                    match table.get_mut(&key) {
                        Some(under) => under.merge(node),
                        None => {
                            table.insert(key, node);
                        }
                    }
                }
                self.place = place;
                self.layer = layer;
            }
            (_, mut over) => {
                over.overrode.push((self.place.clone(), self.to_value()));
                over.overrode.append(&mut self.overrode);
                *self = over;
            }
        }
    }
}

/// The plan at `path` with everything it extends merged under it; `None` when a file cannot be
/// read. Problems are noted.
pub(super) fn read(path: &Path, problems: &mut Problems) -> Option<(Node, usize)> {
    let mut reader = Reader {
        problems,
        open: Vec::new(),
        layers: 0,
    };
    let root = reader.file(path, None)?;
    let layers = reader.layers;
    Some((root, layers))
}

struct Reader<'p> {
    problems: &'p mut Problems,
    /// The files that are being read, from the plan down: canonical, and as reached.
    open: Vec<(PathBuf, PathBuf)>,
    layers: usize,
}

impl Reader<'_> {
    /// `said`: which line extends this file.
    fn file(&mut self, path: &Path, said: Option<Place>) -> Option<Node> {
        let unreadable = |cause: std::io::Error| Problem::Unreadable {
            path: path.to_owned(),
            cause: cause.to_string(),
        };
        let key = if said.is_some() { "extends" } else { "" };
        let canonical = match fs::canonicalize(path) {
            Ok(canonical) => canonical,
            Err(error) => {
                self.problems.push(said, key, unreadable(error));
                return None;
            }
        };
        if let Some(first) = self.open.iter().position(|(c, _)| *c == canonical) {
            let mut chain: Vec<PathBuf> =
                self.open[first..].iter().map(|(_, p)| p.clone()).collect();
            chain.push(path.to_owned());
            self.problems.push(said, key, Problem::Cycle(chain));
            return None;
        }
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.problems.push(said, key, unreadable(error));
                return None;
            }
        };
        let shown: Arc<Path> = path.into();
        self.problems.opened(shown.clone());

        let (document, errors) = DeTable::parse_recoverable(&text);
        let lines = Lines {
            path: shown,
            text: &text,
        };
        for error in &errors {
            let place = lines.place(error.span().map_or(0, |span| span.start));
            let message = error.message().trim().replace('\n', ", ");
            self.problems
                .push(Some(place), "", Problem::Syntax(message));
        }
        let mut root = Node::empty_table(lines.whole(), 0);
        root.content = Content::Table(self.table(document.get_ref(), &lines));

        self.open.push((canonical, path.to_owned()));
        let parents = self.extends(&mut root, path);
        self.open.pop();
        self.layers += 1;
        set_layer(&mut root, self.layers);
        match parents {
            Some(mut merged) => {
                merged.merge(root);
                Some(merged)
            }
            None => Some(root),
        }
    }

    /// Takes `extends` out of `root` and merges the files it names, the later over the earlier.
    fn extends(&mut self, root: &mut Node, path: &Path) -> Option<Node> {
        let extends = root.as_table_mut()?.remove("extends")?;
        let wrong = |node: &Node| Problem::WrongType {
            found: super::shape::describe(&node.to_value()),
            accepted: "an array of paths, relative to this file".to_owned(),
        };
        let Content::Array(entries) = &extends.content else {
            let place = Some(extends.place.clone());
            self.problems.push(place, "extends", wrong(&extends));
            return None;
        };
        let mut merged: Option<Node> = None;
        for entry in entries {
            let place = Some(entry.place.clone());
            let Content::Scalar(Value::String(named)) = &entry.content else {
                self.problems.push(place, "extends", wrong(entry));
                continue;
            };
            let Some(parent) = self.file(&relative_to(path, named), place) else {
                continue;
            };
            match &mut merged {
                Some(merged) => merged.merge(parent),
                None => merged = Some(parent),
            }
        }
        merged
    }

    fn table(&mut self, table: &DeTable<'_>, lines: &Lines<'_>) -> BTreeMap<String, Node> {
        let mut entries = BTreeMap::new();
        for (key, value) in table {
            let place = lines.place(key.span().start);
            if let Some(node) = self.node(value, place, lines) {
                entries.insert(key.get_ref().clone().into_owned(), node);
            }
        }
        entries
    }

    fn node(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        place: Place,
        lines: &Lines<'_>,
    ) -> Option<Node> {
        let content = match value.get_ref() {
            DeValue::Table(table) => Content::Table(self.table(table, lines)),
            DeValue::Array(values) => {
                let mut nodes = Vec::new();
                for value in values.iter() {
                    nodes.extend(self.node(value, lines.place(value.span().start), lines));
                }
                Content::Array(nodes)
            }
            scalar => match scalar_value(scalar) {
                Ok(value) => Content::Scalar(value),
                Err(message) => {
                    self.problems
                        .push(Some(place), "", Problem::Syntax(message));
                    return None;
                }
            },
        };
        Some(Node::new(content, place, 0))
    }
}

/// A scalar as a plain value.
fn scalar_value(scalar: &DeValue<'_>) -> Result<Value, String> {
    Ok(match scalar {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix())
            .map(Value::Integer)
            .map_err(|_| format!("{digits} does not fit into 64 bits with a sign"))?,
        DeValue::Float(digits) => digits
            .as_str()
            .parse()
            .map(Value::Float)
            .map_err(|_| format!("{digits} is not a number"))?,
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(_) | DeValue::Table(_) => unreachable!("callers go into these themselves"),
    })
}

/// A parsed value without its places.
pub(super) fn plain_value(value: &DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::Array(values) => Value::Array(
            values
                .iter()
                .map(|v| plain_value(v.get_ref()))
                .collect::<Result<_, _>>()?,
        ),
        DeValue::Table(table) => {
            let mut plain = toml::Table::new();
            for (key, value) in table {
                plain.insert(
                    key.get_ref().clone().into_owned(),
                    plain_value(value.get_ref())?,
                );
            }
            Value::Table(plain)
        }
        scalar => scalar_value(scalar)?,
    })
}

fn set_layer(node: &mut Node, layer: usize) {
    node.layer = layer;
    match &mut node.content {
        Content::Table(table) => table.values_mut().for_each(|n| set_layer(n, layer)),
        Content::Array(nodes) => nodes.iter_mut().for_each(|n| set_layer(n, layer)),
        Content::Scalar(_) => {}
    }
}

struct Lines<'t> {
    path: Arc<Path>,
    text: &'t str,
}

impl Lines<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        Place::File {
            path: self.path.clone(),
            line: 1 + before.iter().filter(|b| **b == b'\n').count(),
        }
    }

    fn whole(&self) -> Place {
        Place::File {
            path: self.path.clone(),
            line: 0,
        }
    }
}

/// What `named` means in the file `file`: relative to its folder; `~` is the home folder.
pub(super) fn relative_to(file: &Path, named: &str) -> PathBuf {
    let expanded = expand_home(named);
    let joined = match file.parent() {
        Some(folder) => folder.join(expanded),
        None => expanded,
    };
    // Drops `.` in the middle; `..` stays, since its meaning depends on links.
    joined.components().collect()
}

/// `~` and `~/...` with the home folder in place of `~`, where there is one.
pub(super) fn expand_home(named: &str) -> PathBuf {
    match (named.strip_prefix('~'), std::env::home_dir()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => PathBuf::from(named),
    }
}
