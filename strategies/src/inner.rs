//! A strategy as an option of another one.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use t3s_core::{
    ComponentError, SelectionStrategy, SignalRef, When,
    registry::{Registry, RegistryError},
    strategy::Scope,
    toml,
};

/// The key that names the strategy; its own options stand beside it, as in `[selection]`.
const NAME: &str = "strategy";

/// A table such as `{ strategy = "t3s", threshold = 0.1 }`, and the strategy it makes.
///
/// Names are those of every crate that is linked in or loaded ([`Registry::known`]): options are
/// read where no other registry is at hand.
pub struct Inner {
    table: toml::Table,
    strategy: Box<dyn SelectionStrategy>,
}

impl Inner {
    /// The strategy `name` with its default options.
    ///
    /// # Panics
    /// When there is none of this name, or it has to be given options.
    pub fn named(name: &str) -> Self {
        let mut table = toml::Table::new();
        table.insert(NAME.to_owned(), name.into());
        match Self::from_table(table) {
            Ok(inner) => inner,
            Err(message) => unreachable!("{name} is a default: {message}"),
        }
    }

    /// The strategy.
    pub fn get(&self) -> &dyn SelectionStrategy {
        self.strategy.as_ref()
    }

    fn from_table(table: toml::Table) -> Result<Self, String> {
        let mut options = table.clone();
        let name = match options.remove(NAME) {
            Some(toml::Value::String(name)) => name,
            Some(other) => {
                let found = other.type_str();
                return Err(format!(
                    "{NAME:?} is the name of a strategy, not of type {found}"
                ));
            }
            None => {
                return Err(format!(
                    "no {NAME:?} in the table; write {{ {NAME} = \"t3s\" }} and its options beside"
                ));
            }
        };
        let registry = Registry::known().map_err(|error| error.to_string())?;
        match registry.strategy(&name, &options) {
            Ok(strategy) => Ok(Self { table, strategy }),
            Err(RegistryError::Component(ComponentError::Options { key, message }))
                if !key.is_empty() =>
            {
                Err(format!("{name}: {key}: {message}"))
            }
            Err(RegistryError::Component(error)) => Err(format!("{name}: {error}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Inner").field(&self.table).finish()
    }
}

impl Serialize for Inner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.table.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Inner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = toml::Table::deserialize(deserializer)?;
        Self::from_table(table).map_err(D::Error::custom)
    }
}

impl JsonSchema for Inner {
    fn schema_name() -> Cow<'static, str> {
        "Strategy".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "properties": {
                NAME: {
                    "type": "string",
                    "description": "Name of the strategy; its options stand beside it.",
                },
            },
            "required": [NAME],
        })
    }
}

/// What all of `strategies` read, each once.
pub fn needs<'s>(strategies: impl IntoIterator<Item = &'s Inner>) -> Vec<SignalRef> {
    let mut needs = Vec::new();
    for need in strategies.into_iter().flat_map(|s| s.get().needs()) {
        if !needs.contains(&need) {
            needs.push(need);
        }
    }
    needs
}

/// [`When::Online`] if one of `strategies` is.
pub fn when<'s>(strategies: impl IntoIterator<Item = &'s Inner>) -> When {
    let online = |s: &Inner| s.get().when() == When::Online;
    match strategies.into_iter().any(online) {
        true => When::Online,
        false => When::Recorded,
    }
}

/// [`Scope::Global`] if one of `strategies` is.
pub fn scope<'s>(strategies: impl IntoIterator<Item = &'s Inner>) -> Scope {
    let alone = |s: &Inner| s.get().declare().scope == Scope::PerExample;
    match strategies.into_iter().all(alone) {
        true => Scope::PerExample,
        false => Scope::Global,
    }
}
