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

pub(super) fn made<T>(made: Result<T, ComponentError>) -> T {
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

/// The options that `entry` must be given, says its schema, and that are not among `options`.
pub fn required(entry: &Registration, options: &toml::Table) -> Vec<String> {
    let schema = (entry.schema)();
    let names = schema.get("required").and_then(|r| r.as_array());
    let names = names.into_iter().flatten().filter_map(|name| name.as_str());
    names
        .filter(|name| !options.contains_key(*name))
        .map(ToOwned::to_owned)
        .collect()
}

fn schema(entry: &Registration) -> Result<(), String> {
    if let Factory::Adapter(_) = entry.factory {
        return Ok(());
    }
    let schema = (entry.schema)();
    if schema.get("type").and_then(|t| t.as_str()) != Some("object") {
        return Err("the schema of its options is not that of a table".to_owned());
    }
    let required = required(entry, &toml::Table::new());
    for (name, property) in properties(entry) {
        if property.get("description").is_none() {
            return Err(format!("option {name:?} has no doc comment"));
        }
        if property.get("default").is_none() && !required.contains(&name) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Declaration, SelectContext, SignalRef, TokenView, When, registry::read_options,
        strategy::Scope,
    };

    /// Keeps everything, or too much of it.
    #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Good {
        /// Breaks a law of strategies.
        heavy: bool,
    }

    /// Takes any option.
    #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    #[serde(default)]
    struct Lax {}

    /// Has an option without a doc comment.
    #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Silent {
        heavy: bool,
    }

    /// Its schema says 1, its code 2.
    #[derive(serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct TwoDefaults {
        /// How much.
        #[serde(default = "two")]
        #[schemars(extend("default" = 1))]
        amount: u8,
    }

    fn two() -> u8 {
        2
    }

    /// Has an option that must be given.
    #[derive(serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Needy {
        /// How much.
        amount: u8,
    }

    /// A strategy that needs `column` and gives every eligible token `weight`.
    struct Constant {
        column: Option<String>,
        weight: f32,
    }

    impl SelectionStrategy for Constant {
        fn needs(&self) -> Vec<SignalRef> {
            self.column.iter().map(SignalRef::new).collect()
        }

        fn when(&self) -> When {
            When::Recorded
        }

        fn declare(&self) -> Declaration {
            Declaration::new(Scope::PerExample)
        }

        fn select(
            &self,
            tokens: &TokenView<'_>,
            _: &SelectContext<'_>,
            out: &mut [f32],
        ) -> Result<(), ComponentError> {
            if let Some(column) = &self.column {
                tokens.numbers(column)?;
            }
            for (out, eligible) in out.iter_mut().zip(tokens.eligible()) {
                *out = if *eligible { self.weight } else { 0.0 };
            }
            Ok(())
        }
    }

    fn constant(
        amount: Option<u8>,
        heavy: bool,
    ) -> Result<Box<dyn SelectionStrategy>, ComponentError> {
        Ok(Box::new(Constant {
            column: amount.map(|amount| format!("x{amount}")),
            weight: if heavy { 2.0 } else { 1.0 },
        }))
    }

    fn good() -> Registration {
        Registration {
            name: "all-of-it",
            summary: "everything",
            origin: "test",
            schema: &|| crate::registry::schema_of::<Good>(),
            factory: Factory::Strategy(&|o| constant(None, read_options::<Good>(o)?.heavy)),
        }
    }

    fn law(entry: &Registration, options: &str) -> Option<&'static str> {
        let options: toml::Table = options.parse().expect("TOML");
        let broken = registration(entry, &options).err()?;
        let named = format!("strategy {:?}: ", entry.name);
        assert!(broken.message.starts_with(&named), "{broken}");
        Some(broken.law)
    }

    #[test]
    fn each_law_of_registrations_catches_its_fault() {
        assert_eq!(law(&good(), ""), None);
        assert_eq!(law(&good(), "heavy = true"), Some("range"));
        assert_eq!(law(&good(), "heavi = true"), Some("options"));
        for name in ["All", "all_of_it", "-all", "all--of", ""] {
            assert_eq!(law(&Registration { name, ..good() }, ""), Some("name"));
        }
        for summary in ["", "two\nlines"] {
            let entry = Registration { summary, ..good() };
            assert_eq!(law(&entry, ""), Some("name"));
        }
        let lax = Registration {
            schema: &|| crate::registry::schema_of::<Lax>(),
            factory: Factory::Strategy(&|o| {
                read_options::<Lax>(o)?;
                constant(None, false)
            }),
            ..good()
        };
        assert_eq!(law(&lax, ""), Some("unknown-option"));
        let no_table = Registration {
            schema: &|| crate::registry::schema_of::<u8>(),
            ..good()
        };
        assert_eq!(law(&no_table, ""), Some("schema"));
        let silent = Registration {
            schema: &|| crate::registry::schema_of::<Silent>(),
            factory: Factory::Strategy(&|o| constant(None, read_options::<Silent>(o)?.heavy)),
            ..good()
        };
        assert_eq!(law(&silent, ""), Some("schema"));
        let two = Registration {
            schema: &|| crate::registry::schema_of::<TwoDefaults>(),
            factory: Factory::Strategy(&|o| {
                constant(Some(read_options::<TwoDefaults>(o)?.amount), false)
            }),
            ..good()
        };
        assert_eq!(law(&two, ""), Some("options"));
        let needy = Registration {
            schema: &|| crate::registry::schema_of::<Needy>(),
            factory: Factory::Strategy(&|o| {
                constant(Some(read_options::<Needy>(o)?.amount), false)
            }),
            ..good()
        };
        assert_eq!(law(&needy, ""), Some("options"));
        assert_eq!(law(&needy, "amount = 3"), None);
    }

    #[test]
    fn registries_are_counted() {
        let other = Registration {
            name: "other",
            ..good()
        };
        let both = Registry::from_entries([good(), other]).expect("no clash");
        assert_eq!(registry(&both, Kind::Strategy), Ok(2));
        assert_eq!(registry(&both, Kind::Signal), Ok(0));
    }
}
