//! Plans in files, with a few components of their own.

mod components;
mod messages;
mod values;

use std::{fs, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use tempfile::TempDir;

use super::*;
use crate::{
    CheckpointRef, ComponentError, ConfidenceSignal, Declaration, ObservableRef, SelectContext,
    SelectionStrategy, SignalRef, TokenView, When,
    registry::{Factory, Registration, read_options, schema_of},
    strategy::Scope,
};

/// Keeps tokens whose signal is above a threshold.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Above {
    threshold: f32,
    signal: String,
}

impl Default for Above {
    fn default() -> Self {
        Self {
            threshold: 0.0,
            signal: "delta-logp".to_owned(),
        }
    }
}

/// Keeps a share.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its being refused matters")]
struct KeepShare {
    share: Share,
}

#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "f64")]
struct Share(#[expect(dead_code, reason = "only its being refused matters")] f64);

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        if (0.0..=1.0).contains(&share) {
            Ok(Self(share))
        } else {
            Err(format!("{share} is not a share; write 0.8 for 80 %"))
        }
    }
}

macro_rules! strategy {
    ($type:ty, |$this:ident| $needs:expr) => {
        impl SelectionStrategy for $type {
            fn needs(&self) -> Vec<SignalRef> {
                let $this = self;
                $needs
            }
            fn when(&self) -> When {
                When::Recorded
            }
            fn declare(&self) -> Declaration {
                Declaration::new(Scope::PerExample)
            }
            fn select(
                &self,
                _: &TokenView<'_>,
                _: &SelectContext<'_>,
                out: &mut [f32],
            ) -> Result<(), ComponentError> {
                out.fill(0.0);
                Ok(())
            }
        }
    };
}

strategy!(Above, |this| vec![SignalRef::new(&this.signal)]);
strategy!(KeepShare, |_this| vec![]);

/// One column.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Logp {
    #[serde(default = "base")]
    at: String,
}

fn base() -> String {
    "base".to_owned()
}

impl ConfidenceSignal for Logp {
    fn needs(&self) -> Vec<ObservableRef> {
        vec![ObservableRef::logp(self.at.parse().expect("a checkpoint"))]
    }
    fn compute(&self, _: &TokenView<'_>, _: &mut [f32]) -> Result<(), ComponentError> {
        Ok(())
    }
}

/// Two columns.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Delta {}

impl ConfidenceSignal for Delta {
    fn needs(&self) -> Vec<ObservableRef> {
        [CheckpointRef::Base, CheckpointRef::Bottleneck]
            .map(ObservableRef::logp)
            .into()
    }
    fn compute(&self, _: &TokenView<'_>, _: &mut [f32]) -> Result<(), ComponentError> {
        Ok(())
    }
}

fn registry() -> Registry {
    macro_rules! entry {
        ($kind:ident, $name:literal, $type:ty) => {
            Registration {
                name: $name,
                summary: "",
                origin: "test",
                schema: &schema_of::<$type>,
                factory: Factory::$kind(&|o| Ok(Box::new(read_options::<$type>(o)?))),
            }
        };
    }
    Registry::from_entries([
        entry!(Strategy, "t3s", Above),
        entry!(Strategy, "inverse-t3s", Above),
        entry!(Strategy, "keep-share", KeepShare),
        entry!(Signal, "logp", Logp),
        entry!(Signal, "delta-logp", Delta),
    ])
    .expect("no clash")
}

const GOOD: &str = r#"[student]
path = "student"

[data]
train = "traces.jsonl"

[selection]
strategy = "t3s"

[train]
steps = 50
learning_rate = 1e-5
"#;

/// A folder with plans.
struct Plans(TempDir);

impl Plans {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        Self(folder)
    }

    fn load(&self, overrides: &[&str]) -> Result<Loaded, PlanErrors> {
        let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_owned()).collect();
        load(&self.0.path().join("plan.toml"), &overrides, &registry())
    }

    fn good(&self, overrides: &[&str]) -> Loaded {
        self.load(overrides).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The messages, with the folder's own path taken out.
    fn bad(&self, overrides: &[&str]) -> Vec<String> {
        let errors = self.load(overrides).expect_err("a bad plan");
        errors.0.iter().map(|e| self.short(e)).collect()
    }

    fn short(&self, text: impl ToString) -> String {
        let folder = format!("{}/", self.0.path().display());
        text.to_string().replace(&folder, "")
    }
}

fn one(text: &str) -> Plans {
    Plans::new(&[("plan.toml", text)])
}
