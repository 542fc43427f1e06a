//! The registry: every signal, strategy and model adapter that this program knows, by name.
//!
//! Registration is one line beside the component: [`register_signal!`](crate::register_signal),
//! [`register_strategy!`](crate::register_strategy) or
//! [`register_adapter!`](crate::register_adapter). `inventory` collects the entries of every crate
//! that is linked in; names are unique per kind, and a clash is an error that names both origins.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{PoisonError, RwLock},
};

use serde::de::DeserializeOwned;

use crate::{ComponentError, ConfidenceSignal, ModelAdapter, SelectionStrategy};

/// The three kinds of component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`ConfidenceSignal`].
    Signal,
    /// [`SelectionStrategy`].
    Strategy,
    /// [`ModelAdapter`].
    Adapter,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signal => "signal",
            Self::Strategy => "strategy",
            Self::Adapter => "model adapter",
        })
    }
}

/// How a component of each kind is made from its options table.
///
/// The closures live as long as the program: they are constants of a linked crate, or belong to a
/// plugin, and a plugin once loaded stays loaded.
#[derive(Clone, Copy)]
pub enum Factory {
    /// Makes a signal.
    Signal(Make<dyn ConfidenceSignal>),
    /// Makes a strategy.
    Strategy(Make<dyn SelectionStrategy>),
    /// Makes an adapter.
    Adapter(&'static (dyn Fn() -> Box<dyn ModelAdapter> + Send + Sync)),
}

/// Makes a component of the trait `T` from its options.
pub type Make<T> = &'static (dyn Fn(&toml::Table) -> Result<Box<T>, ComponentError> + Send + Sync);

/// One registered component.
#[derive(Clone, Copy)]
pub struct Registration {
    /// The name in plans, kebab-case, e.g. `static-confidence`.
    pub name: &'static str,
    /// One line for `t3s list`.
    pub summary: &'static str,
    /// Where it comes from, e.g. `t3s-strategies 0.1.0`.
    pub origin: &'static str,
    /// JSON schema of the options (schemars), for `t3s list`, near-miss hints and the docs.
    pub schema: &'static (dyn Fn() -> schemars::Schema + Send + Sync),
    /// Makes one.
    pub factory: Factory,
}

impl Registration {
    /// The component's kind.
    pub fn kind(&self) -> Kind {
        match self.factory {
            Factory::Signal(_) => Kind::Signal,
            Factory::Strategy(_) => Kind::Strategy,
            Factory::Adapter(_) => Kind::Adapter,
        }
    }
}

inventory::collect!(Registration);

/// Reads a component's options, strictly: every problem names the key.
///
/// # Errors
/// An unknown key, a missing one, or a value of the wrong type.
pub fn read_options<T: DeserializeOwned>(options: &toml::Table) -> Result<T, ComponentError> {
    serde_path_to_error::deserialize(toml::Value::Table(options.clone())).map_err(|error| {
        let key = error.path().to_string();
        let key = if key == "." { String::new() } else { key };
        ComponentError::Options {
            key,
            message: error.into_inner().message().to_owned(),
        }
    })
}

/// Registers a signal: `register_signal!("delta-logp", DeltaLogp, "one line for t3s list")`.
///
/// The type is its own options struct: it implements `serde::Deserialize` (with
/// `deny_unknown_fields`), `schemars::JsonSchema` and [`ConfidenceSignal`](crate::ConfidenceSignal).
#[macro_export]
macro_rules! register_signal {
    ($name:literal, $type:ty, $summary:literal) => {
        $crate::inventory::submit! {
            $crate::registry::Registration {
                name: $name,
                summary: $summary,
                origin: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
                schema: &|| $crate::registry::schema_of::<$type>(),
                factory: $crate::registry::Factory::Signal(&|options| {
                    Ok(Box::new($crate::registry::read_options::<$type>(options)?))
                }),
            }
        }
    };
}

/// Registers a strategy: `register_strategy!("t3s", T3s, "one line for t3s list")`.
///
/// The type is its own options struct: it implements `serde::Deserialize` (with
/// `deny_unknown_fields`), `schemars::JsonSchema` and
/// [`SelectionStrategy`](crate::SelectionStrategy).
#[macro_export]
macro_rules! register_strategy {
    ($name:literal, $type:ty, $summary:literal) => {
        $crate::inventory::submit! {
            $crate::registry::Registration {
                name: $name,
                summary: $summary,
                origin: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
                schema: &|| $crate::registry::schema_of::<$type>(),
                factory: $crate::registry::Factory::Strategy(&|options| {
                    Ok(Box::new($crate::registry::read_options::<$type>(options)?))
                }),
            }
        }
    };
}

/// Registers a model adapter: `register_adapter!("qwen3", Qwen3, "one line for t3s list")`.
///
/// The type implements `Default` and [`ModelAdapter`](crate::ModelAdapter).
#[macro_export]
macro_rules! register_adapter {
    ($name:literal, $type:ty, $summary:literal) => {
        $crate::inventory::submit! {
            $crate::registry::Registration {
                name: $name,
                summary: $summary,
                origin: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")),
                schema: &|| $crate::registry::schema_of::<()>(),
                factory: $crate::registry::Factory::Adapter(&|| Box::new(<$type>::default())),
            }
        }
    };
}

/// The JSON schema of an options struct.
pub fn schema_of<T: schemars::JsonSchema>() -> schemars::Schema {
    schemars::schema_for!(T)
}

/// Why the registry could not be built or a name not be found.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Two components of one kind share a name.
    #[error("{kind} {name:?} is registered by {first} and by {second}; rename one of them")]
    Clash {
        /// Kind of both.
        kind: Kind,
        /// Name of both.
        name: String,
        /// Where one comes from.
        first: String,
        /// Where the other comes from.
        second: String,
    },
    /// No component of this kind has this name.
    #[error(
        "unknown {kind} {name:?}{}; known: {}{}", hint(.nearest), .known.join(", "),
        loaded(.plugins)
    )]
    Unknown {
        /// Kind that was asked for.
        kind: Kind,
        /// Name that was asked for.
        name: String,
        /// The known name most like it, if one is near.
        nearest: Option<String>,
        /// Every known name.
        known: Vec<String>,
        /// The plugins that were loaded.
        plugins: Vec<String>,
    },
    /// The component refused its options.
    #[error(transparent)]
    Component(#[from] ComponentError),
}

fn hint(nearest: &Option<String>) -> String {
    nearest
        .as_ref()
        .map(|name| format!(", did you mean {name:?}?"))
        .unwrap_or_default()
}

fn loaded(plugins: &[String]) -> String {
    if plugins.is_empty() {
        return String::new();
    }
    format!("; plugins loaded: {}", plugins.join(", "))
}

/// The components of plugins, in the order of loading. Plugins stay loaded, so these stay good.
static BROUGHT: RwLock<Vec<Registration>> = RwLock::new(Vec::new());

/// Every component, by kind and name.
#[derive(Clone)]
pub struct Registry {
    entries: BTreeMap<(Kind, &'static str), Registration>,
    plugins: Vec<String>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("components", &self.entries.keys())
            .field("plugins", &self.plugins)
            .finish()
    }
}

impl Registry {
    /// Everything that is linked into this program.
    ///
    /// # Errors
    /// When two components of one kind share a name.
    pub fn linked() -> Result<Self, RegistryError> {
        Self::from_entries(inventory::iter::<Registration>().copied())
    }

    /// Everything that is linked into this program, and everything that plugins have brought into
    /// any registry of it; of two plugins' components with one name the later.
    ///
    /// For options that name components: they are read where no registry is at hand.
    ///
    /// # Errors
    /// When two linked components of one kind share a name.
    pub fn known() -> Result<Self, RegistryError> {
        let mut registry = Self::linked()?;
        let brought = BROUGHT.read().unwrap_or_else(PoisonError::into_inner);
        for entry in brought.iter() {
            registry.entries.insert((entry.kind(), entry.name), *entry);
        }
        Ok(registry)
    }

    /// A registry of exactly these components.
    ///
    /// # Errors
    /// When two components of one kind share a name.
    pub fn from_entries(
        entries: impl IntoIterator<Item = Registration>,
    ) -> Result<Self, RegistryError> {
        let mut registry = Self {
            entries: BTreeMap::new(),
            plugins: Vec::new(),
        };
        registry.add(entries)?;
        Ok(registry)
    }

    /// This registry with the components of the plugin `origin` in it.
    ///
    /// # Errors
    /// When one of them has the name of one that is there; the message names both origins.
    pub fn with_plugin(
        mut self,
        origin: impl Into<String>,
        components: impl IntoIterator<Item = Registration>,
    ) -> Result<Self, RegistryError> {
        let components: Vec<Registration> = components.into_iter().collect();
        self.add(components.iter().copied())?;
        self.plugins.push(origin.into());
        BROUGHT
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(components);
        Ok(self)
    }

    /// Where the plugins in this registry come from, in the order of loading.
    pub fn plugins(&self) -> &[String] {
        &self.plugins
    }

    fn add(
        &mut self,
        entries: impl IntoIterator<Item = Registration>,
    ) -> Result<(), RegistryError> {
        for entry in entries {
            let key = (entry.kind(), entry.name);
            if let Some(first) = self.entries.get(&key) {
                // `inventory` gives no order: sort, so that the message is the same every time.
                let mut origins = [first.origin, entry.origin];
                origins.sort_unstable();
                return Err(RegistryError::Clash {
                    kind: key.0,
                    name: key.1.to_owned(),
                    first: origins[0].to_owned(),
                    second: origins[1].to_owned(),
                });
            }
            self.entries.insert(key, entry);
        }
        Ok(())
    }

    /// The components of `kind`, by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Registration> {
        self.entries
            .values()
            .filter(move |entry| entry.kind() == kind)
    }

    /// The component `name` of `kind`.
    ///
    /// # Errors
    /// When there is none; names the nearest.
    pub fn get(&self, kind: Kind, name: &str) -> Result<&Registration, RegistryError> {
        let found = self.of_kind(kind).find(|entry| entry.name == name);
        found.ok_or_else(|| {
            let known: Vec<String> = self.of_kind(kind).map(|e| e.name.to_owned()).collect();
            RegistryError::Unknown {
                kind,
                name: name.to_owned(),
                nearest: nearest(name, known.iter().map(String::as_str)).map(str::to_owned),
                known,
                plugins: self.plugins.clone(),
            }
        })
    }

    /// Makes the signal `name`.
    ///
    /// # Errors
    /// When there is none of this name or it refuses its options.
    pub fn signal(
        &self,
        name: &str,
        options: &toml::Table,
    ) -> Result<Box<dyn ConfidenceSignal>, RegistryError> {
        match self.get(Kind::Signal, name)?.factory {
            Factory::Signal(make) => Ok(make(options)?),
            _ => unreachable!("the kind is part of the key"),
        }
    }

    /// Makes the strategy `name`.
    ///
    /// # Errors
    /// When there is none of this name or it refuses its options.
    pub fn strategy(
        &self,
        name: &str,
        options: &toml::Table,
    ) -> Result<Box<dyn SelectionStrategy>, RegistryError> {
        match self.get(Kind::Strategy, name)?.factory {
            Factory::Strategy(make) => Ok(make(options)?),
            _ => unreachable!("the kind is part of the key"),
        }
    }

    /// Makes the adapter `name`.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn adapter(&self, name: &str) -> Result<Box<dyn ModelAdapter>, RegistryError> {
        match self.get(Kind::Adapter, name)?.factory {
            Factory::Adapter(make) => Ok(make()),
            _ => unreachable!("the kind is part of the key"),
        }
    }
}

/// The name in `known` most like `name`, if one is near enough to be a slip of the keyboard.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.len().min(name.len()) / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DecodeRule, DecoderSpec, FamilyOptions, HfConfig, Objective, ObservableRef, TokenView,
    };

    /// Gives one number.
    #[derive(serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Constant {
        #[serde(default)]
        value: f32,
    }

    impl ConfidenceSignal for Constant {
        fn needs(&self) -> Vec<ObservableRef> {
            Vec::new()
        }

        fn compute(&self, _: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
            out.fill(self.value);
            Ok(())
        }
    }

    crate::register_signal!("constant", Constant, "one number");

    #[derive(Default)]
    struct NoFamily;

    impl ModelAdapter for NoFamily {
        fn claims(&self, _: &HfConfig) -> bool {
            false
        }

        fn decoder(&self, _: &HfConfig) -> Result<DecoderSpec, ComponentError> {
            Err(ComponentError::config("model_type", "none is known"))
        }

        fn options(&self, _: &HfConfig) -> Result<FamilyOptions, ComponentError> {
            Ok(FamilyOptions::default())
        }

        fn objective(&self, _: &toml::Table) -> Result<Box<dyn Objective>, ComponentError> {
            Ok(Box::new(crate::objective::NextToken))
        }

        fn decode(&self, _: &toml::Table) -> Result<DecodeRule, ComponentError> {
            Ok(DecodeRule::LeftToRight)
        }
    }

    // The same name as the signal: names are unique per kind.
    crate::register_adapter!("constant", NoFamily, "claims nothing");

    fn named(name: &'static str, origin: &'static str) -> Registration {
        let linked = Registry::linked().expect("no clash");
        let constant = linked
            .get(Kind::Signal, "constant")
            .expect("registered above");
        Registration {
            name,
            origin,
            ..*constant
        }
    }

    #[test]
    fn one_line_registers() {
        let registry = Registry::linked().expect("no clash");
        let entry = registry.get(Kind::Signal, "constant").expect("registered");
        assert_eq!(entry.summary, "one number");
        assert!(entry.origin.starts_with("t3s-core "), "{}", entry.origin);
        let schema = (entry.schema)();
        assert!(schema.as_value().pointer("/properties/value").is_some());
        assert!(registry.adapter("constant").is_ok());
        assert!(registry.strategy("constant", &toml::Table::new()).is_err());
    }

    #[test]
    fn a_clash_names_both_origins_in_one_order() {
        let clash = |a, b| {
            Registry::from_entries([named("x", a), named("x", b)])
                .map(|_| ())
                .expect_err("a clash")
                .to_string()
        };
        let expected = "signal \"x\" is registered by a 1 and by b 2; rename one of them";
        assert_eq!(clash("a 1", "b 2"), expected);
        assert_eq!(clash("b 2", "a 1"), expected);
    }

    #[test]
    fn unknown_names_come_with_the_nearest() {
        let registry =
            Registry::from_entries([named("entropy", "a"), named("delta-logp", "a")]).unwrap();
        let message = |name| registry.get(Kind::Signal, name).err().unwrap().to_string();
        assert_eq!(
            message("delta-lgop"),
            "unknown signal \"delta-lgop\", did you mean \"delta-logp\"?; known: delta-logp, \
             entropy"
        );
        assert_eq!(
            message("perplexity"),
            "unknown signal \"perplexity\"; known: delta-logp, entropy"
        );
    }

    #[test]
    fn options_are_read_strictly() {
        let registry = Registry::linked().expect("no clash");
        let refused = |text: &str| {
            let options = text.parse::<toml::Table>().expect("TOML");
            registry
                .signal("constant", &options)
                .err()
                .expect("refused")
        };
        let key = |error: RegistryError| match error {
            RegistryError::Component(ComponentError::Options { key, .. }) => key,
            other => panic!("{other}"),
        };
        assert_eq!(key(refused("value = true")), "value");
        assert!(refused("valu = 1").to_string().contains("valu"));
    }

    #[test]
    fn near_names_are_slips_of_the_keyboard() {
        let known = ["steps", "batch_tokens", "learning_rate", "by"];
        let nearest = |name| nearest(name, known);
        assert_eq!(nearest("stpes"), Some("steps"));
        assert_eq!(nearest("batch-token"), Some("batch_tokens"));
        assert_eq!(nearest("learning_rat"), Some("learning_rate"));
        assert_eq!(nearest("lr"), None);
        assert_eq!(nearest("zzz"), None);
    }
}
