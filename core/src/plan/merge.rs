//! `[merge]`: arithmetic on the weights of a run's models, as text.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::CheckpointRef;

/// A signed sum of models, written `base + final - bottleneck`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
#[schemars(with = "String")]
pub struct MergePlan {
    /// The models, the first of them added.
    pub terms: Vec<MergeTerm>,
}

/// A model of a sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeTerm {
    /// Whether it is added.
    pub plus: bool,
    /// Which one.
    pub model: MergeModel,
}

/// A model of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeModel {
    /// A checkpoint of the probe, or the base.
    At(CheckpointRef),
    /// The student that the selection trained.
    Student,
}

impl MergePlan {
    /// Whether the student is in it, so that it depends on what was selected.
    pub fn has_student(&self) -> bool {
        self.terms
            .iter()
            .any(|term| term.model == MergeModel::Student)
    }
}

impl fmt::Display for MergeModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(at) => at.fmt(f),
            Self::Student => f.write_str("student"),
        }
    }
}

impl From<MergePlan> for String {
    fn from(plan: MergePlan) -> Self {
        let mut text = Self::new();
        for (index, term) in plan.terms.iter().enumerate() {
            if index > 0 {
                text += if term.plus { " + " } else { " - " };
            }
            text += &term.model.to_string();
        }
        text
    }
}

impl TryFrom<String> for MergePlan {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let help = "write it as base + final - bottleneck, with spaces around the signs";
        let terms = signed(&words).map_err(|problem| format!("{problem}; {help}"))?;
        let terms = terms.into_iter().map(|(plus, word)| {
            let model = match (word, word.parse()) {
                ("student", _) => MergeModel::Student,
                (_, Ok(CheckpointRef::EveryStep | CheckpointRef::Reference)) | (_, Err(_)) => {
                    return Err(format!(
                        "{word:?} is no model of a run; known: base, bottleneck, final, step:N, \
                         student"
                    ));
                }
                (_, Ok(at)) => MergeModel::At(at),
            };
            Ok(MergeTerm { plus, model })
        });
        Ok(Self {
            terms: terms.collect::<Result<_, _>>()?,
        })
    }
}

/// Reads `A + B - C`, one word each, as words with their signs: true is plus.
///
/// # Errors
/// When words are missing, signs are not between words, or there is one word alone.
pub fn signed<'w>(words: &[&'w str]) -> Result<Vec<(bool, &'w str)>, String> {
    let mut terms = Vec::new();
    let mut sign = Some(true);
    for word in words {
        sign = match (sign, *word) {
            (None, "+") => Some(true),
            (None, "-") => Some(false),
            (None, word) => return Err(format!("there is no + or - before {word:?}")),
            (Some(_), "+" | "-") => return Err(format!("a model is missing before {word:?}")),
            (Some(plus), word) => {
                terms.push((plus, word));
                None
            }
        };
    }
    match sign {
        None if terms.len() >= 2 => Ok(terms),
        None => Err("that is one model alone".to_owned()),
        Some(_) => Err("the last model is missing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_read_and_written_back() {
        for text in ["base + final - bottleneck", "student - base + step:8"] {
            let plan = MergePlan::try_from(text.to_owned()).unwrap();
            assert_eq!(String::from(plan), text);
        }
        let plan = |text: &str| MergePlan::try_from(text.to_owned());
        assert!(plan("student + base").unwrap().has_student());
        assert!(!plan("final + base").unwrap().has_student());
        for (text, said) in [
            ("base", "one model alone"),
            ("base +", "last model is missing"),
            ("base final", "no + or - before"),
            ("+ base", "missing before"),
            ("base - step:*", "no model of a run"),
            ("base - reference", "no model of a run"),
            ("base-final", "one model alone"),
        ] {
            let message = plan(text).unwrap_err();
            assert!(message.contains(said), "{text}: {message}");
        }
    }
}
