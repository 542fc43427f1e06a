//! The shape of a table: which keys it has, of which type, with which default. Read off a JSON
//! schema, so that the option structs and their doc comments are the only place that says it.

use std::sync::OnceLock;

use serde_json::{Map, Value as Json};
use toml::Value;

use super::sections::RunPlan;

/// What a value may be.
#[derive(Debug, Clone)]
pub(super) enum Shape {
    /// A table with these keys.
    Table(TableShape),
    /// A table with any keys.
    Map(Box<Shape>),
    List(Box<Shape>),
    Text,
    /// A path, relative to the file that says it.
    Path,
    /// One of these words.
    Choice(Vec<Choice>),
    /// A whole number, not below `min`.
    Whole {
        min: i64,
    },
    Number,
    Flag,
    /// Anything; whoever reads it checks it.
    Any,
}

/// One word of a [`Shape::Choice`].
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) word: String,
    pub(super) doc: String,
}

#[derive(Debug, Clone, Default)]
pub(super) struct TableShape {
    pub(super) keys: Vec<KeyShape>,
    /// Whether there may be other keys.
    pub(super) open: bool,
}

impl TableShape {
    pub(super) fn key(&self, name: &str) -> Option<&KeyShape> {
        self.keys.iter().find(|key| key.name == name)
    }

    fn key_mut(&mut self, name: &str) -> &mut KeyShape {
        self.keys
            .iter_mut()
            .find(|key| key.name == name)
            .expect("the plan's types have this key")
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.name.as_str())
    }
}

#[derive(Debug, Clone)]
pub(super) struct KeyShape {
    pub(super) name: String,
    pub(super) doc: String,
    pub(super) required: bool,
    /// `false` in its place means that it is absent.
    pub(super) optional: bool,
    pub(super) default: Default,
    pub(super) shape: Shape,
}

/// What a key is when nobody writes it.
#[derive(Debug, Clone)]
pub(super) enum Default {
    /// It has to be written, or is absent.
    None,
    Value(Json),
    /// In words.
    Said(&'static str),
}

impl Shape {
    /// The shape that a schemars schema describes; what it does not understand is [`Shape::Any`].
    pub(super) fn of_schema(schema: &Json) -> Self {
        of(schema, schema, 0).0
    }

    /// What would be accepted, for messages and the reference.
    pub(super) fn accepted(&self) -> String {
        match self {
            Self::Table(_) | Self::Map(_) => "a table".to_owned(),
            Self::List(inner) => match &**inner {
                Self::Text => "an array of strings".to_owned(),
                Self::Path => "an array of paths".to_owned(),
                Self::Whole { .. } => "an array of whole numbers".to_owned(),
                Self::Number => "an array of numbers".to_owned(),
                _ => "an array".to_owned(),
            },
            Self::Text => "a string".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Choice(choices) => {
                let words: Vec<String> = choices.iter().map(|c| format!("{:?}", c.word)).collect();
                match words.split_last() {
                    Some((last, [])) => last.clone(),
                    Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
                    None => "nothing".to_owned(),
                }
            }
            Self::Whole { min: i64::MIN } => "a whole number".to_owned(),
            Self::Whole { min } => format!("a whole number, {min} or more"),
            Self::Number => "a number".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Any => "a value".to_owned(),
        }
    }

    /// Some value of this shape, so that reading can go on after a problem.
    pub(super) fn placeholder(&self) -> Option<Value> {
        Some(match self {
            Self::Table(table) => {
                let mut value = toml::Table::new();
                for key in table.keys.iter().filter(|key| key.required) {
                    value.insert(key.name.clone(), key.shape.placeholder()?);
                }
                Value::Table(value)
            }
            Self::Map(_) => Value::Table(toml::Table::new()),
            Self::List(_) => Value::Array(Vec::new()),
            Self::Text | Self::Path => Value::String(String::new()),
            Self::Choice(choices) => Value::String(choices.first()?.word.clone()),
            Self::Whole { min } => Value::Integer((*min).max(1)),
            Self::Number => Value::Float(1.0),
            Self::Flag => Value::Boolean(false),
            Self::Any => return None,
        })
    }
}

/// What a value is, for messages.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the string {text:?}"),
        Value::Integer(number) => format!("the number {number}"),
        Value::Float(number) => format!("the number {number:?}"),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(time) => format!("the date {time}"),
        Value::Array(_) => "an array".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}

/// The shape of a plan as people write it.
///
/// It differs from [`RunPlan`]'s in what planning resolves: `extends`, defaults that
/// depend on the file's name, `[probe]` with `[train]`'s keys beside its own, and component options
/// beside `strategy` and `kind`.
pub(super) fn plan() -> &'static TableShape {
    static PLAN: OnceLock<TableShape> = OnceLock::new();
    PLAN.get_or_init(|| {
        let schema = schemars::schema_for!(RunPlan);
        let Shape::Table(mut root) = Shape::of_schema(schema.as_value()) else {
            unreachable!("a plan is a table");
        };
        for (name, default) in [
            ("name", Default::Said("the file's name without `.toml`")),
            ("seed", Default::Value(Json::from(0))),
            ("device", Default::Value(Json::from("auto"))),
            (
                "out",
                Default::Said("`runs/NAME` in the working directory, NAME being the file's name"),
            ),
        ] {
            let key = root.key_mut(name);
            key.required = false;
            key.default = default;
        }

        let Shape::Table(train) = root.key_mut("train").shape.clone() else {
            unreachable!("a section is a table");
        };
        let probe = root.key_mut("probe");
        probe.required = false;
        let Shape::Table(probe) = &mut probe.shape else {
            unreachable!("a section is a table");
        };
        probe.keys.retain(|key| key.name != "training");
        let seed = probe.key_mut("seed");
        seed.required = false;
        seed.default = Default::Said("`seed`");
        probe
            .keys
            .extend(train.keys.into_iter().map(|key| KeyShape {
                required: false,
                default: Default::Said("`[train]`'s"),
                ..key
            }));

        let Shape::Table(eval) = &mut root.key_mut("eval").shape else {
            unreachable!("a section is a table");
        };
        eval.key_mut("seed").default = Default::Said("`seed`");

        open_options(&mut root.key_mut("selection").shape);
        let Shape::Map(signal) = &mut root.key_mut("signals").shape else {
            unreachable!("signals are tables under names of their own");
        };
        open_options(signal);

        let key = |name: &str, doc: &str, shape| KeyShape {
            name: name.to_owned(),
            doc: doc.to_owned(),
            required: false,
            optional: false,
            default: Default::Value(Json::Array(Vec::new())),
            shape,
        };
        root.keys.insert(
            0,
            key(
                "extends",
                "Plans that this one builds on, relative to this file. They are merged in their \
                 order, tables key by key and everything else whole, and this file is laid over \
                 them.",
                Shape::List(Box::new(Shape::Path)),
            ),
        );
        root
    })
}

/// Options stand beside the component's name, not in a table of their own.
fn open_options(component: &mut Shape) {
    let Shape::Table(table) = component else {
        unreachable!("a component is a table");
    };
    table.keys.retain(|key| key.name != "options");
    table.open = true;
}

/// The shape of `schema` in the document `root`, and whether it may be absent.
fn of(schema: &Json, root: &Json, depth: usize) -> (Shape, bool) {
    // Types that contain themselves are left to whoever reads them.
    let Some(map) = schema.as_object().filter(|_| depth < 32) else {
        return (Shape::Any, false);
    };
    let inner = |schema: &Json| of(schema, root, depth + 1);
    if let Some(target) = map.get("$ref").and_then(Json::as_str) {
        let found = target.strip_prefix('#').and_then(|at| root.pointer(at));
        return found.map_or((Shape::Any, false), inner);
    }
    if let Some(any) = map.get("anyOf").and_then(Json::as_array) {
        let is_null = |s: &Json| s.get("type").and_then(Json::as_str) == Some("null");
        let others: Vec<&Json> = any.iter().filter(|s| !is_null(s)).collect();
        return match others[..] {
            [only] => (inner(only).0, others.len() < any.len()),
            _ => (Shape::Any, others.len() < any.len()),
        };
    }
    if map.contains_key("oneOf") || map.contains_key("enum") {
        return (words(map).map_or(Shape::Any, Shape::Choice), false);
    }
    let (kind, optional) = match map.get("type") {
        Some(Json::String(kind)) => (kind.as_str(), false),
        Some(Json::Array(kinds)) => {
            let mut real = kinds
                .iter()
                .filter_map(Json::as_str)
                .filter(|k| *k != "null");
            match (real.next(), real.next()) {
                (Some(kind), None) => (kind, true),
                _ => return (Shape::Any, true),
            }
        }
        _ => return (Shape::Any, false),
    };
    let shape = match kind {
        "string" if map.get("x-path") == Some(&Json::Bool(true)) => Shape::Path,
        "string" => Shape::Text,
        "boolean" => Shape::Flag,
        "number" => Shape::Number,
        "integer" => Shape::Whole {
            min: map
                .get("minimum")
                .and_then(Json::as_i64)
                .unwrap_or(i64::MIN),
        },
        "array" => Shape::List(Box::new(
            map.get("items").map_or(Shape::Any, |s| inner(s).0),
        )),
        "object" => match (map.get("properties"), map.get("additionalProperties")) {
            (Some(Json::Object(keys)), more) => Shape::Table(TableShape {
                keys: keys.iter().map(|(n, s)| key(n, s, map, &inner)).collect(),
                open: more != Some(&Json::Bool(false)),
            }),
            (_, Some(Json::Bool(false))) => Shape::Table(TableShape::default()),
            (_, Some(values @ Json::Object(_))) => Shape::Map(Box::new(inner(values).0)),
            _ => Shape::Map(Box::new(Shape::Any)),
        },
        _ => Shape::Any,
    };
    (shape, optional)
}

fn key(
    name: &str,
    schema: &Json,
    table: &Map<String, Json>,
    inner: &dyn Fn(&Json) -> (Shape, bool),
) -> KeyShape {
    let (shape, optional) = inner(schema);
    let required = table.get("required").and_then(Json::as_array);
    KeyShape {
        name: name.to_owned(),
        doc: doc(schema),
        required: required.is_some_and(|names| names.iter().any(|n| n == name)),
        optional,
        default: match schema.get("default") {
            Some(Json::Null) | None => Default::None,
            Some(value) => Default::Value(value.clone()),
        },
        shape,
    }
}

fn doc(schema: &Json) -> String {
    let text = schema.get("description").and_then(Json::as_str);
    text.unwrap_or_default().replace('\n', " ")
}

/// The words of an enum without fields; `None` for any other.
fn words(map: &Map<String, Json>) -> Option<Vec<Choice>> {
    let mut choices = Vec::new();
    let mut add = |words: &[Json], doc: &str| {
        for word in words {
            choices.push(Choice {
                word: word.as_str()?.to_owned(),
                doc: doc.to_owned(),
            });
        }
        Some(())
    };
    if let Some(Json::Array(all)) = map.get("enum") {
        add(all, "")?;
    }
    if let Some(Json::Array(variants)) = map.get("oneOf") {
        for variant in variants {
            match (variant.get("const"), variant.get("enum")) {
                (Some(word), _) => add(std::slice::from_ref(word), &doc(variant))?,
                (None, Some(Json::Array(all))) => add(all, "")?,
                _ => return None,
            }
        }
    }
    Some(choices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_has_the_keys_people_write() {
        let root = plan();
        let keys = |section: &str| match &root.key(section).expect("a section").shape {
            Shape::Table(table) => table.names().map(str::to_owned).collect::<Vec<_>>(),
            _ => panic!("{section} is no table"),
        };
        assert_eq!(root.keys[0].name, "extends");
        assert_eq!(keys("plugins"), ["load", "sha256"]);
        assert_eq!(keys("selection"), ["strategy", "from"]);
        assert_eq!(keys("probe")[..2], ["checkpoint_every", "seed"]);
        assert_eq!(keys("probe")[2..], keys("train"));
        let Shape::Table(train) = &root.key("train").expect("train").shape else {
            panic!("train is no table");
        };
        assert!(train.key("lora").expect("lora").optional);
        assert!(train.key("steps").expect("steps").required);
    }

    /// The path mark is an attribute beside the type, which is easily forgotten.
    #[test]
    fn every_path_of_the_plan_is_marked_as_one() {
        let mut marked = Vec::new();
        fn walk(table: &TableShape, at: &str, marked: &mut Vec<String>) {
            for key in &table.keys {
                let at = format!("{at}{}", key.name);
                match &key.shape {
                    Shape::Path => marked.push(at),
                    Shape::Table(inner) => walk(inner, &format!("{at}."), marked),
                    _ => {}
                }
            }
        }
        walk(plan(), "", &mut marked);
        let types = include_str!("sections.rs").matches(": PathBuf,").count();
        assert_eq!(marked.len(), types, "{marked:?}");
    }

    #[test]
    fn choices_with_and_without_docs_are_words() {
        #[derive(schemars::JsonSchema)]
        #[expect(dead_code, reason = "only its schema matters")]
        enum Plain {
            A,
            B,
            /// With a doc.
            C,
        }
        let shape = Shape::of_schema(schemars::schema_for!(Plain).as_value());
        assert_eq!(shape.accepted(), "\"A\", \"B\" or \"C\"");
    }
}
