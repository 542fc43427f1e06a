//! What an instance says of itself across the boundary, as JSON.

use serde::{Deserialize, Serialize};

use crate::{
    ComponentError, Declaration, ObservableRef, SelectionStrategy, SignalRef, When, strategy::Scope,
};

/// The description of a strategy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StrategyDescription {
    needs: Vec<String>,
    #[serde(default)]
    when: WhenWord,
    #[serde(default)]
    scope: ScopeWord,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keeps: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    removes: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rising: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    falling: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WhenWord {
    #[default]
    Recorded,
    Online,
}

/// A strategy that promises nothing may look at everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ScopeWord {
    PerExample,
    #[default]
    Global,
}

impl StrategyDescription {
    /// Of `strategy`.
    pub fn of(strategy: &dyn SelectionStrategy) -> Self {
        let declared = strategy.declare();
        Self {
            needs: strategy.needs().iter().map(ToString::to_string).collect(),
            when: match strategy.when() {
                When::Recorded => WhenWord::Recorded,
                When::Online => WhenWord::Online,
            },
            scope: match declared.scope {
                Scope::PerExample => ScopeWord::PerExample,
                Scope::Global => ScopeWord::Global,
            },
            keeps: declared.keeps,
            removes: declared.removes,
            rising: declared.rising,
            falling: declared.falling,
        }
    }

    /// The signals it reads.
    pub fn needs(&self) -> Vec<SignalRef> {
        self.needs.iter().map(SignalRef::new).collect()
    }

    /// When it is asked.
    pub fn when(&self) -> When {
        match self.when {
            WhenWord::Recorded => When::Recorded,
            WhenWord::Online => When::Online,
        }
    }

    /// What it promises.
    pub fn declaration(&self) -> Declaration {
        let mut declared = Declaration::new(match self.scope {
            ScopeWord::PerExample => Scope::PerExample,
            ScopeWord::Global => Scope::Global,
        });
        declared.keeps = self.keeps;
        declared.removes = self.removes;
        declared.rising = self.rising.clone();
        declared.falling = self.falling.clone();
        declared
    }
}

/// The description of a signal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalDescription {
    needs: Vec<String>,
}

impl SignalDescription {
    /// Of `signal`.
    pub fn of(signal: &dyn crate::ConfidenceSignal) -> Self {
        Self {
            needs: signal.needs().iter().map(ToString::to_string).collect(),
        }
    }

    /// The columns it reads.
    ///
    /// # Errors
    /// When one is no observable, or at no checkpoint.
    pub fn needs(&self) -> Result<Vec<ObservableRef>, ComponentError> {
        self.needs.iter().map(|name| name.parse()).collect()
    }
}
