//! The inputs that laws are tried on.

use std::fmt::Write as _;

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    strategy::BoxedStrategy,
};
use serde::{Deserialize, Serialize};

use crate::{
    CheckpointRef, ComponentError, CounterRng, Observable, ObservableRef, TokenTable, table::Sketch,
};

/// Floats per token of a sketch column.
const SKETCH_WIDTH: usize = 4;

/// A column of the tables that a component is tried on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    pub name: String,
    kind: ColumnKind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum ColumnKind {
    /// Any finite number.
    Number,
    /// At most 0.
    Logp,
    /// At least 0.
    Positive,
    /// 0, 1, 2, ...
    Rank,
    /// [`SKETCH_WIDTH`] floats made of one.
    Sketch,
    /// The log-probabilities of an online context: not in the table.
    Current,
}

impl Column {
    /// A column that a strategy names: the values are those of an observable where the name is one.
    pub fn of_strategy(name: &str) -> Self {
        let kind = match name.parse::<ObservableRef>() {
            Ok(column) => kind_of(column.observable),
            Err(_) => ColumnKind::Number,
        };
        Self {
            name: name.to_owned(),
            // A strategy's view has scalar columns only: one score per token.
            kind: if kind == ColumnKind::Sketch {
                ColumnKind::Number
            } else {
                kind
            },
        }
    }

    /// The current step's log-probabilities.
    pub fn current() -> Self {
        Self {
            name: "current logp".to_owned(),
            kind: ColumnKind::Current,
        }
    }

    /// The columns that a signal's need stands for: three of them for every checkpoint.
    pub fn of_signal(need: &ObservableRef) -> Vec<Self> {
        let at = match &need.at {
            CheckpointRef::EveryStep => (0..3).map(CheckpointRef::Step).collect(),
            at => vec![at.clone()],
        };
        at.into_iter()
            .map(|at| Self {
                name: ObservableRef::new(need.observable, at).to_string(),
                kind: kind_of(need.observable),
            })
            .collect()
    }

    /// Whether it is a column of the table.
    pub fn is_recorded(&self) -> bool {
        self.kind != ColumnKind::Current
    }

    /// `value` where this column may have it, else the nearest such value.
    pub fn clamp(&self, value: f32) -> f32 {
        match self.kind {
            ColumnKind::Number | ColumnKind::Sketch => value,
            ColumnKind::Logp | ColumnKind::Current => value.min(0.0),
            ColumnKind::Positive | ColumnKind::Rank => value.max(0.0),
        }
    }

    fn values(&self) -> BoxedStrategy<f32> {
        // Few whole numbers beside the rest, so that ties are common, and both zeros.
        let number = prop_oneof![
            4 => (-3i8..=3).prop_map(f32::from),
            1 => Just(-0.0f32),
            4 => -6.0f32..6.0,
        ];
        match self.kind {
            ColumnKind::Number | ColumnKind::Sketch => number.boxed(),
            ColumnKind::Logp | ColumnKind::Current => number.prop_map(|v| -v.abs()).boxed(),
            ColumnKind::Positive => number.prop_map(f32::abs).boxed(),
            ColumnKind::Rank => (0u8..6).prop_map(f32::from).boxed(),
        }
    }
}

fn kind_of(observable: Observable) -> ColumnKind {
    match observable {
        Observable::Logp => ColumnKind::Logp,
        Observable::Entropy | Observable::GradNorm => ColumnKind::Positive,
        Observable::Rank => ColumnKind::Rank,
        Observable::Sketch => ColumnKind::Sketch,
    }
}

/// One token: its mask bit and one value per column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Token {
    pub eligible: bool,
    pub values: Vec<f32>,
}

/// One example: its id, the index of its first token, and its tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Text {
    pub id: u64,
    pub first: u32,
    pub tokens: Vec<Token>,
}

/// One input of a law.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Case {
    pub texts: Vec<Text>,
    /// Seed of the context.
    pub seed: u64,
    /// Whatever else the law has to choose: a token, an order.
    pub pick: u64,
}

/// Up to four examples, some of them empty, of up to nine tokens.
pub(super) fn cases(columns: &[Column]) -> impl Strategy<Value = Case> {
    let values: Vec<_> = columns.iter().map(Column::values).collect();
    let token = (proptest::bool::weighted(0.8), values)
        .prop_map(|(eligible, values)| Token { eligible, values });
    let texts = vec((0u32..4, vec(token, 0..10)), 0..5).prop_map(|texts| {
        let numbered = texts.into_iter().enumerate();
        numbered
            .map(|(index, (first, tokens))| Text {
                // Distinct ids that are not in the order of the rows.
                id: (index as u64 * 5 + 3) % 7,
                first,
                tokens,
            })
            .collect()
    });
    (texts, 0u64..1000, any::<u64>()).prop_map(|(texts, seed, pick)| Case { texts, seed, pick })
}

impl Case {
    /// The table without the columns for which `leave_out` holds.
    pub fn table(&self, columns: &[Column], leave_out: impl Fn(usize) -> bool) -> TokenTable {
        let tokens: Vec<&Token> = self.tokens().collect();
        let mut offsets = vec![0u32];
        let mut positions = Vec::new();
        for text in &self.texts {
            positions.extend((text.first..).take(text.tokens.len()));
            offsets.push(positions.len() as u32);
        }
        let mut table = TokenTable::new(
            self.texts.iter().map(|text| text.id).collect(),
            offsets,
            positions.iter().map(|p| p % 5).collect(),
            positions,
            tokens.iter().map(|token| token.eligible).collect(),
        )
        .expect("offsets and lengths come from one list");
        for (index, column) in columns.iter().enumerate() {
            if leave_out(index) || !column.is_recorded() {
                continue;
            }
            let values = tokens.iter().map(|token| token.values[index]);
            let inserted = if column.kind == ColumnKind::Sketch {
                let rows = values.flat_map(|v| [v, 1.0 - v, v * v, 0.5]).collect();
                table.insert_sketch(
                    &column.name,
                    Sketch {
                        width: SKETCH_WIDTH,
                        values: rows,
                    },
                )
            } else {
                table.insert(&column.name, values.collect())
            };
            inserted.expect("one value per token");
        }
        table
    }

    /// The values of the online context, if there is such a column.
    pub fn current(&self, columns: &[Column]) -> Option<Vec<f32>> {
        let index = columns.iter().position(|column| !column.is_recorded())?;
        Some(self.tokens().map(|token| token.values[index]).collect())
    }

    /// Every token, in the order of rows.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.texts.iter().flat_map(|text| &text.tokens)
    }

    /// Every token, to be changed.
    pub fn tokens_mut(&mut self) -> impl Iterator<Item = &mut Token> {
        self.texts.iter_mut().flat_map(|text| &mut text.tokens)
    }

    /// `values` (one per row) under (example, position), sorted.
    pub fn by_place(&self, values: &[f32]) -> Vec<((u64, u32), f32)> {
        let places = self
            .texts
            .iter()
            .flat_map(|text| (text.first..).take(text.tokens.len()).map(|p| (text.id, p)));
        let mut placed: Vec<_> = places.zip(values.iter().copied()).collect();
        placed.sort_by_key(|(place, _)| *place);
        placed
    }

    /// The row of one eligible token, picked.
    pub fn picked_row(&self) -> Option<usize> {
        let rows: Vec<usize> = self
            .tokens()
            .enumerate()
            .filter_map(|(row, token)| token.eligible.then_some(row))
            .collect();
        let index = self.pick.checked_rem(rows.len() as u64)?;
        Some(rows[index as usize])
    }

    /// The examples in another order.
    pub fn permuted(&self) -> Self {
        let rng = CounterRng::new(self.pick, "law-order");
        let mut case = self.clone();
        case.texts.sort_by_key(|text| rng.bits(text.id, 0));
        if case.texts == self.texts {
            case.texts.reverse();
        }
        case
    }

    /// Up to three tokens outside the mask after each example, and an example that has no others.
    pub fn padded(&self, columns: &[Column]) -> Self {
        let mut case = self.clone();
        let padding = Token {
            eligible: false,
            values: columns.iter().map(|column| column.clamp(100.0)).collect(),
        };
        for text in &mut case.texts {
            let count = (self.pick.wrapping_add(text.id) % 4) as usize;
            text.tokens.extend(vec![padding.clone(); count]);
        }
        case.texts.push(Text {
            id: 50,
            first: 0,
            tokens: vec![padding; (self.pick % 3) as usize],
        });
        case
    }

    /// Other values, numbers or not, wherever the token is outside the mask.
    pub fn garbled(&self) -> Self {
        let mut case = self.clone();
        let garbage = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e30, 1e30];
        let mut next = self.pick as usize % garbage.len();
        for token in case.tokens_mut().filter(|token| !token.eligible) {
            for value in &mut token.values {
                *value = garbage[next];
                next = (next + 1) % garbage.len();
            }
        }
        case
    }

    /// Cases a little smaller: without an example, without one or two tokens, with a lower first
    /// position, or with one value 0.
    pub fn smaller(&self) -> Vec<Self> {
        let mut cases = Vec::new();
        let mut push = |change: &dyn Fn(&mut Self)| {
            let mut case = self.clone();
            change(&mut case);
            if case != *self {
                cases.push(case);
            }
        };
        for index in 0..self.texts.len() {
            push(&|case| drop(case.texts.remove(index)));
        }
        let places: Vec<(usize, usize)> = self
            .texts
            .iter()
            .enumerate()
            .flat_map(|(text, t)| (0..t.tokens.len()).map(move |token| (text, token)))
            .collect();
        for (index, (text, token)) in places.iter().enumerate() {
            push(&|case| drop(case.texts[*text].tokens.remove(*token)));
            for (other_text, other_token) in &places[..index] {
                // The later one first: it does not move the other.
                push(&|case| {
                    case.texts[*text].tokens.remove(*token);
                    case.texts[*other_text].tokens.remove(*other_token);
                });
            }
        }
        for index in 0..self.texts.len() {
            push(&|case| case.texts[index].first = 0);
        }
        for (text, token) in places {
            for column in 0..self.texts[text].tokens[token].values.len() {
                push(&|case| case.texts[text].tokens[token].values[column] = 0.0);
            }
        }
        cases
    }

    /// One line per token.
    pub fn show(&self, columns: &[Column]) -> String {
        let mut text = format!("seed {}, pick {}", self.seed, self.pick);
        for example in &self.texts {
            if example.tokens.is_empty() {
                let _ = write!(text, "\nexample {}: no tokens", example.id);
            }
            for (position, token) in (example.first..).zip(&example.tokens) {
                let _ = write!(text, "\nexample {}, position {position}", example.id);
                if !token.eligible {
                    text.push_str(", outside the mask");
                }
                for (column, value) in columns.iter().zip(&token.values) {
                    let _ = write!(text, "; {} = {value:?}", column.name);
                }
            }
        }
        if self.texts.is_empty() {
            text.push_str("\nno examples");
        }
        text
    }
}

/// `values` of two runs are the same numbers, in the same places.
pub(super) fn same(
    what: &str,
    expected: &[((u64, u32), f32)],
    found: &[((u64, u32), f32)],
) -> Result<(), String> {
    // Sums over examples may be rounded in another order.
    let near = |a: f32, b: f32| a == b || (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0);
    for ((place, expected), (_, found)) in expected.iter().zip(found) {
        let both_nan = expected.is_nan() && found.is_nan();
        if !both_nan && !near(*expected, *found) {
            let (example, position) = place;
            return Err(format!(
                "{expected:?} became {found:?} at example {example}, position {position}, {what}"
            ));
        }
    }
    Ok(())
}

/// Turns a component's refusal of good input into a message.
pub(super) fn refused(error: &ComponentError) -> String {
    format!("good input was refused: {error}")
}
