//! From token stores to weights: join, signals, strategy, and the weights back into the examples.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use t3s_core::{
    CheckpointRef, Corpus, Example, Observable, ObservableRef, SelectContext, TokenTable,
    TokenView, TokenWeights, Weighting, When,
    plan::{self, Resolved, SelectionPlan, SignalPlan},
    registry::Registry,
    table::Sketch,
};
use t3s_data::store::{self, StoreMeta};

use crate::error::PipelineError;

/// What a selection came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// Name of the strategy.
    pub strategy: String,
    /// Whether it is asked in every training step: then every token is kept here, and what was kept
    /// stands in the training run.
    pub online: bool,
    /// Response tokens it could choose from.
    pub tokens: u64,
    /// Tokens with a weight above zero.
    pub kept: u64,
    /// `kept / tokens`.
    pub kept_share: f64,
    /// Sum of the weights.
    pub weight_sum: f64,
    /// Tokens whose log-probability rose from the base to the bottleneck (`Delta c > 0`), whatever
    /// the strategy made of it; absent where the bottleneck was not scored.
    pub rising: Option<u64>,
    /// `rising / tokens`. The paper's is 0.15 to 0.25.
    pub rising_share: Option<f64>,
}

/// One checkpoint's columns, under every name that signals may ask for them by.
pub struct Scored<'t> {
    /// E.g. `base` and `step:0`.
    pub names: Vec<CheckpointRef>,
    /// Columns named after [`Observable::name`].
    pub table: &'t TokenTable,
}

/// One table with the columns of all checkpoints, named like `logp@base`.
///
/// # Errors
/// When the tables are not about the same tokens.
pub fn join(stores: &[Scored<'_>]) -> Result<TokenTable, PipelineError> {
    let first = stores.first().ok_or_else(|| {
        PipelineError::plan(
            "select",
            "no token store to select from; score a checkpoint first",
        )
    })?;
    let tokens = first.table.view();
    let mut joined = bare(&tokens)?;
    for scored in stores {
        let view = scored.table.view();
        same_tokens(&tokens, &view, &scored.names)?;
        for at in &scored.names {
            for observable in Observable::ALL {
                let name = ObservableRef::new(observable, at.clone()).to_string();
                copy_column(&view, observable.name(), &mut joined, &name)?;
            }
        }
    }
    Ok(joined)
}

/// The tokens of `table` with these of its columns.
///
/// # Errors
/// Never of a table whose columns fit it.
pub fn only(table: &TokenTable, observables: &[Observable]) -> Result<TokenTable, PipelineError> {
    let view = table.view();
    let mut part = bare(&view)?;
    for observable in observables {
        copy_column(&view, observable.name(), &mut part, observable.name())?;
    }
    Ok(part)
}

/// Copies a column or a sketch, where there is one.
fn copy_column(
    from: &TokenView<'_>,
    name: &str,
    to: &mut TokenTable,
    new: &str,
) -> Result<(), PipelineError> {
    let table_error = |source| PipelineError::Table {
        component: format!("column {new}"),
        source,
    };
    if let Ok(values) = from.column(name) {
        to.insert(new, values.to_vec()).map_err(table_error)?;
    } else if let Ok(sketch) = from.sketch(name) {
        let owned = Sketch {
            width: sketch.width,
            values: sketch.values.to_vec(),
        };
        to.insert_sketch(new, owned).map_err(table_error)?;
    }
    Ok(())
}

/// The tokens of `view` without its columns.
fn bare(view: &TokenView<'_>) -> Result<TokenTable, PipelineError> {
    TokenTable::new(
        view.example_ids().to_vec(),
        view.offsets().to_vec(),
        view.token_ids().to_vec(),
        view.positions().to_vec(),
        view.eligible().to_vec(),
    )
    .map_err(|source| PipelineError::Table {
        component: "token store".into(),
        source,
    })
}

fn same_tokens(
    a: &TokenView<'_>,
    b: &TokenView<'_>,
    names: &[CheckpointRef],
) -> Result<(), PipelineError> {
    let same = a.example_ids() == b.example_ids()
        && a.offsets() == b.offsets()
        && a.positions() == b.positions()
        && a.token_ids() == b.token_ids();
    if same {
        return Ok(());
    }
    let name = names.first().map(ToString::to_string).unwrap_or_default();
    Err(PipelineError::plan(
        format!("token store of {name}"),
        "it is about other tokens than the first store; score both on the same data with the same \
         tokenizer, chat template and max_tokens",
    ))
}

/// The tokens of `table` with a column for every signal that the strategy of `components` reads.
///
/// # Errors
/// When a signal fails or gives back numbers that are none.
pub fn signals(table: &TokenTable, components: &Resolved) -> Result<TokenTable, PipelineError> {
    let view = table.view();
    let mut input = bare(&view)?;
    for (id, signal) in &components.signals {
        let component = format!("signal {:?}", id.as_str());
        // Not zeros: a score that was never written must not look like one.
        let mut scores = vec![f32::NAN; view.n_tokens()];
        signal
            .compute(&view, &mut scores)
            .map_err(|source| PipelineError::Component {
                component: component.clone(),
                source,
            })?;
        let bad = |row: &usize| view.eligible()[*row] && !scores[*row].is_finite();
        if let Some(row) = (0..scores.len()).find(bad) {
            let (example, position) = place(&view, row);
            return Err(PipelineError::plan(
                component,
                format!(
                    "its score of example {example}, position {position} is {}; scores must be \
                     finite",
                    scores[row]
                ),
            ));
        }
        input
            .insert(id.as_str(), scores)
            .map_err(|source| PipelineError::Table { component, source })?;
    }
    Ok(input)
}

/// Runs the signals and the strategy of `components` over `table`; gives back the signals (as
/// [`signals`] does) and the weights. A strategy that is asked in
/// every step is not asked here; every token that may be trained on gets `neutral`, the weight that
/// changes nothing.
///
/// # Errors
/// When a component fails or gives back numbers that are none.
pub fn weigh(
    table: &TokenTable,
    components: &Resolved,
    strategy_name: &str,
    neutral: f32,
    seed: u64,
) -> Result<(TokenTable, TokenWeights), PipelineError> {
    let strategy = format!("strategy {strategy_name:?}");
    let input = signals(table, components)?;
    let view = input.view();
    let mut weights = vec![f32::NAN; view.n_tokens()];
    if components.strategy.when() == When::Online {
        for (weight, eligible) in weights.iter_mut().zip(view.eligible()) {
            *weight = if *eligible { neutral } else { 0.0 };
        }
    } else {
        components
            .strategy
            .select(&view, &SelectContext::recorded(seed), &mut weights)
            .map_err(|source| PipelineError::Component {
                component: strategy.clone(),
                source,
            })?;
    }
    let weights = TokenWeights::new(&view, weights).map_err(|source| PipelineError::Table {
        component: strategy,
        source,
    })?;
    Ok((input, weights))
}

/// What is odd about a selection of nothing or of everything by a strategy that reads signals, where
/// a weight means `weighting`; `None` where nothing is.
///
/// # Errors
/// When nothing is left to train on.
pub fn extremes(
    selection: &Selection,
    components: &Resolved,
    weighting: Weighting,
) -> Result<Option<String>, PipelineError> {
    let Selection {
        strategy,
        tokens,
        kept,
        ..
    } = selection;
    let reads = !components.signals.is_empty() && components.strategy.when() == When::Recorded;
    let of_all =
        |share: &str| format!("{strategy:?} selects {kept} of {tokens} response tokens ({share})");
    Ok(match weighting {
        Weighting::Loss if *kept == 0 => {
            return Err(keeps_nothing(strategy, *tokens as usize));
        }
        Weighting::Loss if reads && kept == tokens => {
            Some(format!("{}: this is plain fine-tuning", of_all("100 %")))
        }
        Weighting::ForcedMask if reads && *kept == 0 => Some(format!(
            "{}: the mask is left to chance, and this is plain fine-tuning; look at the threshold \
             or share in [selection]",
            of_all("0 %")
        )),
        Weighting::ForcedMask if reads && kept == tokens => Some(format!(
            "{}: every one is always masked, so the student never sees a part of the response; \
             look at the threshold or share in [selection]",
            of_all("100 %")
        )),
        _ => None,
    })
}

fn keeps_nothing(strategy: &str, tokens: usize) -> PipelineError {
    let hint = match strategy {
        "t3s" => {
            "every token became likelier by the bottleneck: raise selection.threshold, or look at \
             the bottleneck (an earlier step, more probe steps)"
        }
        "inverse-t3s" => {
            "no token became likelier by the bottleneck: lower selection.threshold, or look at the \
             bottleneck (another step, more probe steps)"
        }
        _ => "loosen its threshold or share in [selection]",
    };
    PipelineError::KeepsNothing {
        strategy: strategy.to_owned(),
        tokens,
        hint: hint.to_owned(),
    }
}

fn place(view: &TokenView<'_>, row: usize) -> (u64, u32) {
    let example = view
        .examples()
        .find(|(_, rows)| rows.contains(&row))
        .map_or(0, |(id, _)| id);
    (example, view.positions()[row])
}

/// Counts of `weights`, and of tokens that rose from `logp@base` to `logp@bottleneck`.
pub fn describe(
    table: &TokenTable,
    weights: &TokenWeights,
    strategy: &str,
    when: When,
) -> Selection {
    let view = table.view();
    let tokens = view.eligible().iter().filter(|e| **e).count();
    let share = |n: usize| n as f64 / tokens.max(1) as f64;
    let columns = (view.column("logp@base"), view.column("logp@bottleneck"));
    let rising = match columns {
        (Ok(base), Ok(bottleneck)) => Some(
            (0..view.n_tokens())
                .filter(|row| view.eligible()[*row] && bottleneck[*row] > base[*row])
                .count(),
        ),
        _ => None,
    };
    Selection {
        strategy: strategy.to_owned(),
        online: when == When::Online,
        tokens: tokens as u64,
        kept: weights.kept() as u64,
        kept_share: share(weights.kept()),
        weight_sum: weights.as_slice().iter().map(|w| f64::from(*w)).sum(),
        rising: rising.map(|n| n as u64),
        rising_share: rising.map(share),
    }
}

/// The examples of `corpus` with the selection's weights combined with their own as `weighting`
/// says, matched by example id and position; the mask is untouched.
///
/// # Errors
/// When the selection names a token that the corpus does not have or that may not be trained on, a
/// trainable token has no row, or nothing is left.
pub fn apply(
    corpus: &Corpus,
    table: &TokenTable,
    weights: &TokenWeights,
    strategy: &str,
    weighting: Weighting,
) -> Result<Vec<Example>, PipelineError> {
    let view = table.view();
    let mut rows: BTreeMap<u64, std::ops::Range<usize>> = view.examples().collect();
    let mut examples = corpus.examples.clone();
    let stranger = |example: u64, what: &str| {
        PipelineError::plan(
            "select",
            format!("example {example}: {what}; the selection is of other data"),
        )
    };
    let mut total = 0.0_f64;
    for example in &mut examples {
        let rows = rows.remove(&example.id).unwrap_or(0..0);
        let mut chosen: Vec<Option<f32>> = vec![None; example.ids.len()];
        for row in rows {
            let position = view.positions()[row] as usize;
            let fits = example.ids.get(position) == Some(&view.token_ids()[row])
                && example.trainable[position];
            if !fits {
                let what = format!("position {position} is no trainable token of that id");
                return Err(stranger(example.id, &what));
            }
            chosen[position] = Some(weights.as_slice()[row]);
        }
        for (position, chosen) in chosen.iter().enumerate() {
            // The first token of a text has nothing before it that could predict it.
            let scored = example.trainable[position] && position > 0;
            match chosen {
                Some(chosen) => {
                    let weight = &mut example.weights[position];
                    *weight = weighting.combine(*weight, *chosen);
                }
                None if scored => {
                    return Err(stranger(
                        example.id,
                        &format!("position {position} has no row"),
                    ));
                }
                None => {}
            }
            if scored {
                total += f64::from(example.weights[position]);
            }
        }
    }
    if let Some((example, _)) = rows.pop_first() {
        return Err(stranger(example, "the data has no such row"));
    }
    if weighting == Weighting::Loss && total <= 0.0 {
        return Err(keeps_nothing(strategy, view.n_tokens()));
    }
    Ok(examples)
}

/// Selects on stores that lie there, without a plan or a model, and writes the selection to `out`.
///
/// # Errors
/// When a store cannot be read or does not fit the others, a component is unknown or fails, or the
/// selection cannot be written.
pub fn select_offline(
    stores: &[(CheckpointRef, PathBuf)],
    selection: &SelectionPlan,
    signals: &BTreeMap<String, SignalPlan>,
    seed: u64,
    registry: &Registry,
    out: &Path,
) -> Result<Selection, PipelineError> {
    let error = PipelineError::data("select");
    let mut tables: Vec<(CheckpointRef, TokenTable, StoreMeta)> = Vec::new();
    for (at, path) in stores {
        let (table, meta) = store::read_table(path).map_err(&error)?;
        if let Some((_, _, first)) = tables.first() {
            store::expect(path, &meta, first).map_err(&error)?;
        }
        tables.push((at.clone(), table, meta));
    }
    let components = plan::selection_components(selection, signals, registry)?;
    if components.strategy.when() != When::Recorded {
        return Err(PipelineError::plan(
            "select",
            format!(
                "{:?} wants the log-probabilities of the step under way, which only a training run \
                 has; use it in a plan, or give its options a recorded signal in their place \
                 (docs/strategies.md)",
                selection.strategy
            ),
        ));
    }
    let there: BTreeSet<&CheckpointRef> = tables.iter().map(|(at, _, _)| at).collect();
    for column in &components.observables {
        if column.at != CheckpointRef::EveryStep && !there.contains(&column.at) {
            return Err(PipelineError::plan(
                "select",
                format!(
                    "the strategy {:?} reads {column}, but no store of {} was given; add --store \
                     {}=FILE",
                    selection.strategy, column.at, column.at
                ),
            ));
        }
    }
    let scored: Vec<Scored<'_>> = tables
        .iter()
        .map(|(at, table, _)| Scored {
            names: vec![at.clone()],
            table,
        })
        .collect();
    let table = join(&scored)?;
    let (signals, weights) = weigh(&table, &components, &selection.strategy, 1.0, seed)?;
    if weights.kept() == 0 {
        return Err(keeps_nothing(&selection.strategy, table.view().n_tokens()));
    }
    let meta = tables.first().map(|(_, _, meta)| meta.clone());
    let meta = meta.expect("join has refused an empty list");
    store::write_selection(out, &signals, &weights, &meta).map_err(&error)?;
    Ok(describe(
        &table,
        &weights,
        &selection.strategy,
        When::Recorded,
    ))
}
