//! How the tokens are cut into four.

use std::str::FromStr;

use super::sample::Sample;
use crate::error::PipelineError;

/// A rule that cuts the tokens into four.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Subsets {
    /// Anchors and others, each cut at the median of its confidence at the base.
    #[default]
    Anchors,
    /// Quarters of a column, ascending: `delta-c`, or a recorded one such as `entropy@base`.
    Quartiles(String),
}

impl FromStr for Subsets {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "anchors" => Self::Anchors,
            column => Self::Quartiles(column.to_owned()),
        })
    }
}

impl Subsets {
    /// How it is written on the command line.
    pub fn name(&self) -> &str {
        match self {
            Self::Anchors => "anchors",
            Self::Quartiles(column) => column,
        }
    }

    /// The four parts of `sample` by name; each is `[tokens]`, and every token is in one of them.
    /// Equal values are told apart by their order, so that no part is empty where there are four
    /// tokens.
    ///
    /// # Errors
    /// When there is no such column; lists those there are.
    pub fn cut(&self, sample: &Sample) -> Result<Vec<(String, Vec<bool>)>, PipelineError> {
        let n = sample.places.len();
        let mark = |rows: &[usize]| {
            let mut chosen = vec![false; n];
            rows.iter().for_each(|row| chosen[*row] = true);
            chosen
        };
        let ascending = |mut rows: Vec<usize>, values: &[f32]| {
            rows.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
            rows
        };
        match self {
            Self::Anchors => {
                let confidence = &sample.columns["logp@base"];
                let anchors = sample.anchors();
                let mut parts = Vec::new();
                for (name, wanted) in [("anchors", true), ("others", false)] {
                    let rows = (0..n).filter(|row| anchors[*row] == wanted).collect();
                    let rows = ascending(rows, confidence);
                    let (low, high) = rows.split_at(rows.len() / 2);
                    parts.push((format!("{name}, less confident"), mark(low)));
                    parts.push((format!("{name}, more confident"), mark(high)));
                }
                Ok(parts)
            }
            Self::Quartiles(column) => {
                let values = sample.columns.get(column).ok_or_else(|| {
                    let mut names: Vec<&str> = sample.columns.keys().map(String::as_str).collect();
                    names.sort_unstable();
                    PipelineError::plan(
                        "--subsets",
                        format!(
                            "{column}: there is no such column; write anchors, or one of {}",
                            names.join(", ")
                        ),
                    )
                })?;
                let rows = ascending((0..n).collect(), values);
                let part = |quarter: usize| &rows[quarter * n / 4..(quarter + 1) * n / 4];
                Ok((0..4)
                    .map(|quarter| {
                        (
                            format!("{column} quarter {}", quarter + 1),
                            mark(part(quarter)),
                        )
                    })
                    .collect())
            }
        }
    }
}
