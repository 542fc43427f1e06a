//! Token tables: the columns that signals and strategies read, and the weights they give back.

use std::{collections::BTreeMap, ops::Range};

use crate::ComponentError;

/// Why a table was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// A column has the wrong length.
    #[error("column {column:?} has {found} values for {expected} tokens")]
    Length {
        /// The column.
        column: String,
        /// Its length.
        found: usize,
        /// The number of tokens.
        expected: usize,
    },
    /// Offsets must start at 0, never fall, and end at the number of tokens.
    #[error("example offsets are not an ascending cover of {tokens} tokens")]
    Offsets {
        /// The number of tokens.
        tokens: usize,
    },
    /// A weight is not a number in [0, 1].
    #[error("weight {weight} at example {example}, position {position}; weights must lie in 0..=1")]
    Weight {
        /// The weight.
        weight: f32,
        /// Id of the example.
        example: u64,
        /// Index of the token in the example.
        position: u32,
    },
    /// A token outside the mask was given a weight.
    #[error(
        "weight {weight} at example {example}, position {position}, which is a prompt or padding \
         token"
    )]
    Ineligible {
        /// The weight.
        weight: f32,
        /// Id of the example.
        example: u64,
        /// Index of the token in the example.
        position: u32,
    },
    /// More tokens than 32-bit offsets can name.
    #[error("{tokens} tokens in one table; at most 4294967295 fit")]
    TooMany {
        /// The number of tokens.
        tokens: usize,
    },
}

/// Rows `k` floats wide, one per token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketch {
    /// Floats per token.
    pub width: usize,
    /// `[tokens, width]`, row-major.
    pub values: Vec<f32>,
}

/// Per-token columns of a set of examples, owned. Rows are tokens, grouped by example.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenTable {
    example_ids: Vec<u64>,
    offsets: Vec<u32>,
    token_ids: Vec<u32>,
    positions: Vec<u32>,
    eligible: Vec<bool>,
    columns: BTreeMap<String, Vec<f32>>,
    sketches: BTreeMap<String, Sketch>,
}

impl TokenTable {
    /// A table without columns. `offsets` (`[examples + 1]`) says which rows are whose; the other
    /// three are `[tokens]`. `positions` are indices in the example, `eligible` is the mask.
    ///
    /// # Errors
    /// When lengths disagree or the offsets do not cover the tokens in order.
    pub fn new(
        example_ids: Vec<u64>,
        offsets: Vec<u32>,
        token_ids: Vec<u32>,
        positions: Vec<u32>,
        eligible: Vec<bool>,
    ) -> Result<Self, TableError> {
        let tokens = token_ids.len();
        u32::try_from(tokens).map_err(|_| TableError::TooMany { tokens })?;
        for (column, found) in [("position", positions.len()), ("eligible", eligible.len())] {
            check_length(column, found, tokens)?;
        }
        check_offsets(example_ids.len(), &offsets, tokens)?;
        Ok(Self {
            example_ids,
            offsets,
            token_ids,
            positions,
            eligible,
            columns: BTreeMap::new(),
            sketches: BTreeMap::new(),
        })
    }

    /// Adds or replaces the column `name`, `[tokens]`.
    ///
    /// # Errors
    /// When its length is not the number of tokens.
    pub fn insert(&mut self, name: impl Into<String>, values: Vec<f32>) -> Result<(), TableError> {
        let name = name.into();
        check_length(&name, values.len(), self.token_ids.len())?;
        self.columns.insert(name, values);
        Ok(())
    }

    /// Adds or replaces the sketch column `name`, `[tokens, width]`.
    ///
    /// # Errors
    /// When its length is not tokens x width.
    pub fn insert_sketch(
        &mut self,
        name: impl Into<String>,
        sketch: Sketch,
    ) -> Result<(), TableError> {
        let name = name.into();
        check_length(
            &name,
            sketch.values.len(),
            self.token_ids.len() * sketch.width,
        )?;
        self.sketches.insert(name, sketch);
        Ok(())
    }

    /// The columns, borrowed.
    pub fn view(&self) -> TokenView<'_> {
        TokenView {
            example_ids: &self.example_ids,
            offsets: &self.offsets,
            token_ids: &self.token_ids,
            positions: &self.positions,
            eligible: &self.eligible,
            columns: self
                .columns
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_slice()))
                .collect(),
            sketches: self
                .sketches
                .iter()
                .map(|(k, s)| {
                    (
                        k.as_str(),
                        SketchView {
                            width: s.width,
                            values: &s.values,
                        },
                    )
                })
                .collect(),
        }
    }
}

fn check_length(column: &str, found: usize, expected: usize) -> Result<(), TableError> {
    if found == expected {
        Ok(())
    } else {
        Err(TableError::Length {
            column: column.to_owned(),
            found,
            expected,
        })
    }
}

fn check_offsets(examples: usize, offsets: &[u32], tokens: usize) -> Result<(), TableError> {
    let covers = offsets.len() == examples + 1
        && offsets.first() == Some(&0)
        && offsets.last().is_some_and(|last| *last as usize == tokens)
        && offsets.is_sorted();
    if covers {
        Ok(())
    } else {
        Err(TableError::Offsets { tokens })
    }
}

/// Rows `width` floats wide, one per token, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SketchView<'a> {
    /// Floats per token.
    pub width: usize,
    /// `[tokens, width]`, row-major.
    pub values: &'a [f32],
}

/// Per-token columns of a set of examples, borrowed: nothing is copied across the plugin boundary.
#[derive(Debug, Clone)]
pub struct TokenView<'a> {
    example_ids: &'a [u64],
    offsets: &'a [u32],
    token_ids: &'a [u32],
    positions: &'a [u32],
    eligible: &'a [bool],
    columns: Vec<(&'a str, &'a [f32])>,
    sketches: Vec<(&'a str, SketchView<'a>)>,
}

impl<'a> TokenView<'a> {
    /// A view of columns that lie elsewhere, as [`TokenTable::new`] takes them, without named ones.
    ///
    /// # Errors
    /// When lengths disagree or the offsets do not cover the tokens in order.
    pub fn new(
        example_ids: &'a [u64],
        offsets: &'a [u32],
        token_ids: &'a [u32],
        positions: &'a [u32],
        eligible: &'a [bool],
    ) -> Result<Self, TableError> {
        let tokens = token_ids.len();
        check_length("position", positions.len(), tokens)?;
        check_length("eligible", eligible.len(), tokens)?;
        check_offsets(example_ids.len(), offsets, tokens)?;
        Ok(Self {
            example_ids,
            offsets,
            token_ids,
            positions,
            eligible,
            columns: Vec::new(),
            sketches: Vec::new(),
        })
    }

    /// Adds the column `name`, `[tokens]`.
    ///
    /// # Errors
    /// When its length is not the number of tokens.
    pub fn push(&mut self, name: &'a str, values: &'a [f32]) -> Result<(), TableError> {
        check_length(name, values.len(), self.n_tokens())?;
        self.columns.push((name, values));
        Ok(())
    }

    /// Adds the sketch column `name`, `[tokens, width]`.
    ///
    /// # Errors
    /// When its length is not tokens x width.
    pub fn push_sketch(&mut self, name: &'a str, sketch: SketchView<'a>) -> Result<(), TableError> {
        check_length(name, sketch.values.len(), self.n_tokens() * sketch.width)?;
        self.sketches.push((name, sketch));
        Ok(())
    }

    /// The number of tokens (rows).
    pub fn n_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// The number of examples.
    pub fn n_examples(&self) -> usize {
        self.example_ids.len()
    }

    /// `[examples]`: what the data calls each example (its row number).
    pub fn example_ids(&self) -> &'a [u64] {
        self.example_ids
    }

    /// `[examples + 1]`: rows `offsets[e]..offsets[e + 1]` are example `e`'s.
    pub fn offsets(&self) -> &'a [u32] {
        self.offsets
    }

    /// The rows of each example, with its id.
    pub fn examples(&self) -> impl Iterator<Item = (u64, Range<usize>)> + 'a {
        let (ids, offsets) = (self.example_ids, self.offsets);
        ids.iter()
            .zip(offsets.windows(2))
            .map(|(id, w)| (*id, w[0] as usize..w[1] as usize))
    }

    /// `[tokens]`: vocabulary ids.
    pub fn token_ids(&self) -> &'a [u32] {
        self.token_ids
    }

    /// `[tokens]`: index of each token in its example, prompt included.
    pub fn positions(&self) -> &'a [u32] {
        self.positions
    }

    /// `[tokens]`: the mask; only these tokens may be trained on.
    pub fn eligible(&self) -> &'a [bool] {
        self.eligible
    }

    /// `[tokens]`: the column `name`. Values of ineligible tokens mean nothing and may be NaN.
    ///
    /// # Errors
    /// When there is no such column; the message lists those there are.
    pub fn column(&self, name: &str) -> Result<&'a [f32], ComponentError> {
        self.columns
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, values)| *values)
            .ok_or_else(|| ComponentError::MissingColumn {
                column: name.to_owned(),
                available: self.column_names().map(str::to_owned).collect(),
            })
    }

    /// `[tokens]`: the column `name`, in which every eligible token has a number.
    ///
    /// # Errors
    /// When there is no such column, or an eligible token's value is NaN; names the token.
    pub fn numbers(&self, name: &str) -> Result<&'a [f32], ComponentError> {
        let values = self.column(name)?;
        for (example, rows) in self.examples() {
            for row in rows {
                if self.eligible[row] && values[row].is_nan() {
                    let position = self.positions[row];
                    return Err(ComponentError::Failed(format!(
                        "column {name:?} is NaN at example {example}, position {position}; \
                         it has no place in any order"
                    )));
                }
            }
        }
        Ok(values)
    }

    /// `[tokens, width]`: the sketch column `name`.
    ///
    /// # Errors
    /// When there is no such column; the message lists those there are.
    pub fn sketch(&self, name: &str) -> Result<SketchView<'a>, ComponentError> {
        self.sketches
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, sketch)| *sketch)
            .ok_or_else(|| ComponentError::MissingColumn {
                column: name.to_owned(),
                available: self.sketches.iter().map(|(n, _)| (*n).to_owned()).collect(),
            })
    }

    /// The sketch columns, by name.
    pub fn sketches(&self) -> &[(&'a str, SketchView<'a>)] {
        &self.sketches
    }

    /// The scalar columns, `[tokens]` each, by name.
    pub fn columns(&self) -> &[(&'a str, &'a [f32])] {
        &self.columns
    }

    /// The names of the scalar columns.
    pub fn column_names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.columns.iter().map(|(name, _)| *name)
    }
}

/// One weight per token of a view: finite, in `[0, 1]`, zero outside the mask.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenWeights(Vec<f32>);

impl TokenWeights {
    /// Checks `weights` (`[tokens]`) against `tokens`.
    ///
    /// # Errors
    /// Names the first token whose weight is not a number in `[0, 1]` or that is outside the mask
    /// with a weight above zero.
    pub fn new(tokens: &TokenView<'_>, weights: Vec<f32>) -> Result<Self, TableError> {
        check_length("weight", weights.len(), tokens.n_tokens())?;
        for (id, rows) in tokens.examples() {
            for row in rows {
                let (weight, position) = (weights[row], tokens.positions[row]);
                if !(0.0..=1.0).contains(&weight) {
                    return Err(TableError::Weight {
                        weight,
                        example: id,
                        position,
                    });
                }
                if weight > 0.0 && !tokens.eligible[row] {
                    return Err(TableError::Ineligible {
                        weight,
                        example: id,
                        position,
                    });
                }
            }
        }
        Ok(Self(weights))
    }

    /// `[tokens]`.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// How many tokens have a weight above zero.
    pub fn kept(&self) -> usize {
        self.0.iter().filter(|w| **w > 0.0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples 7 (2 tokens) and 3 (1 token); the first token is a prompt's.
    fn table() -> TokenTable {
        TokenTable::new(
            vec![7, 3],
            vec![0, 2, 3],
            vec![10, 11, 20],
            vec![4, 5, 9],
            vec![false, true, true],
        )
        .expect("a good table")
    }

    #[test]
    fn offsets_must_cover_the_tokens_in_order() {
        let make = |ids: Vec<u64>, offsets: Vec<u32>| {
            TokenTable::new(ids, offsets, vec![1, 2, 3], vec![0, 1, 2], vec![true; 3])
        };
        assert!(make(vec![0, 1], vec![0, 2, 3]).is_ok());
        assert!(make(vec![0, 1], vec![0, 0, 3]).is_ok(), "an empty example");
        for offsets in [
            vec![0, 3],
            vec![0, 2, 3, 3],
            vec![1, 2, 3],
            vec![0, 2, 2],
            vec![0, 4, 3],
            vec![],
        ] {
            let found = make(vec![0, 1], offsets.clone());
            assert_eq!(found, Err(TableError::Offsets { tokens: 3 }), "{offsets:?}");
        }
        assert!(TokenTable::new(vec![], vec![0], vec![], vec![], vec![]).is_ok());
    }

    #[test]
    fn columns_have_one_value_per_token() {
        let mut table = table();
        let short = |column: &str, found, expected| {
            Err(TableError::Length {
                column: column.to_owned(),
                found,
                expected,
            })
        };
        assert_eq!(table.insert("logp", vec![0.0; 2]), short("logp", 2, 3));
        let sketch = |n| Sketch {
            width: 2,
            values: vec![0.0; n],
        };
        assert_eq!(
            table.insert_sketch("sketch", sketch(5)),
            short("sketch", 5, 6)
        );
        assert_eq!(table.insert_sketch("sketch", sketch(6)), Ok(()));
        let made = TokenTable::new(vec![0], vec![0, 2], vec![1, 2], vec![0], vec![true; 2]);
        assert_eq!(made.map(|_| ()), short("position", 1, 2));
    }

    #[test]
    fn views_show_columns_by_name_and_rows_by_example() {
        let mut table = table();
        table.insert("logp@base", vec![-1.0, -2.0, -3.0]).unwrap();
        let view = table.view();
        assert_eq!(view.column("logp@base"), Ok(&[-1.0, -2.0, -3.0][..]));
        let rows: Vec<_> = view.examples().collect();
        assert_eq!(rows, [(7, 0..2), (3, 2..3)]);
        assert_eq!((view.n_tokens(), view.n_examples()), (3, 2));
        assert_eq!(
            view.column("logp").unwrap_err().to_string(),
            "column \"logp\" was not recorded; available: logp@base"
        );
        assert!(view.sketch("logp@base").is_err());
    }

    #[test]
    fn numbers_are_asked_of_tokens_that_may_be_trained_on() {
        let mut table = table();
        table.insert("x", vec![f32::NAN, -2.0, -3.0]).unwrap();
        assert!(table.view().numbers("x").is_ok());
        table.insert("x", vec![0.0, -2.0, f32::NAN]).unwrap();
        assert_eq!(
            table.view().numbers("x").unwrap_err().to_string(),
            "column \"x\" is NaN at example 3, position 9; it has no place in any order"
        );
        assert!(table.view().numbers("y").is_err());
    }

    #[test]
    fn weights_are_shares_of_tokens_that_may_be_trained_on() {
        let table = table();
        let view = table.view();
        let weights = |w: [f32; 3]| TokenWeights::new(&view, w.to_vec());
        let good = weights([0.0, 1.0, 0.5]).unwrap();
        assert_eq!((good.as_slice(), good.kept()), (&[0.0, 1.0, 0.5][..], 2));
        for bad in [f32::NAN, f32::INFINITY, -0.1, 1.1] {
            let error = weights([0.0, 0.0, bad]).unwrap_err();
            let TableError::Weight {
                example, position, ..
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!((example, position), (3, 9));
        }
        assert_eq!(
            weights([0.5, 0.0, 0.0]).unwrap_err(),
            TableError::Ineligible {
                weight: 0.5,
                example: 7,
                position: 4
            }
        );
        let short = TokenWeights::new(&view, vec![0.0; 2]);
        assert!(matches!(short, Err(TableError::Length { found: 2, .. })));
    }
}
