//! The log-probabilities that a rule reads: the current step's, or a recorded signal.

use serde::{Deserialize, Serialize};
use t3s_core::{
    ComponentError, Declaration, SelectContext, SignalRef, TokenView, When, strategy::Scope,
};

/// What says "the step under way" in place of a signal.
const CURRENT: &str = "current";

/// `current`, or the id of a signal that is a log-probability, e.g. `logp@base`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Confidence(Option<SignalRef>);

impl Confidence {
    /// Of the step under way.
    pub fn current() -> Self {
        Self(None)
    }

    /// The signal, where it is a recorded one.
    pub fn needs(&self) -> impl Iterator<Item = SignalRef> {
        self.0.iter().cloned()
    }

    /// What a rule promises that looks at each token alone and weighs it no less where this rises.
    pub fn rising(&self) -> Declaration {
        self.needs()
            .fold(Declaration::new(Scope::PerExample), |d, signal| {
                d.rising(signal.as_str())
            })
    }

    /// The same of a rule that weighs a token no more where this rises.
    pub fn falling(&self) -> Declaration {
        self.needs()
            .fold(Declaration::new(Scope::PerExample), |d, signal| {
                d.falling(signal.as_str())
            })
    }

    /// When a rule that reads this is asked.
    pub fn when(&self) -> When {
        match self.0 {
            None => When::Online,
            Some(_) => When::Recorded,
        }
    }

    /// `[tokens]`, nats; a number for every eligible token.
    ///
    /// # Errors
    /// When it is not there, or an eligible token's is NaN; names the token.
    pub fn read<'t>(
        &self,
        tokens: &TokenView<'t>,
        cx: &SelectContext<'t>,
    ) -> Result<&'t [f32], ComponentError> {
        match &self.0 {
            None => current(tokens, cx),
            Some(signal) => tokens.numbers(signal.as_str()),
        }
    }
}

impl From<String> for Confidence {
    fn from(text: String) -> Self {
        Self((text != CURRENT).then(|| SignalRef::new(text)))
    }
}

impl From<Confidence> for String {
    fn from(confidence: Confidence) -> Self {
        confidence
            .0
            .map_or_else(|| CURRENT.to_owned(), |signal| signal.to_string())
    }
}

/// The log-probabilities of the step under way, in which every eligible token has a number.
fn current<'t>(
    tokens: &TokenView<'_>,
    cx: &SelectContext<'t>,
) -> Result<&'t [f32], ComponentError> {
    let logp = cx.current_logp.ok_or_else(|| {
        ComponentError::Failed(
            "the log-probabilities of the step under way are not known; a recorded selection has \
             none"
                .to_owned(),
        )
    })?;
    if logp.len() != tokens.n_tokens() {
        return Err(ComponentError::Failed(format!(
            "{} log-probabilities of the step under way for {} tokens",
            logp.len(),
            tokens.n_tokens()
        )));
    }
    for (example, rows) in tokens.examples() {
        for row in rows {
            if tokens.eligible()[row] && logp[row].is_nan() {
                let position = tokens.positions()[row];
                return Err(ComponentError::Failed(format!(
                    "the log-probability of the step under way is NaN at example {example}, \
                     position {position}"
                )));
            }
        }
    }
    Ok(logp)
}
