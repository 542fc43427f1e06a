//! The comparison: what every row came to, with intervals, and how it differs from the baseline.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde::{Deserialize, Serialize};
use t3s_data::store;

use super::{AblateError, Ablation, PlannedCell, PlannedRun, execute::Outcome, graded::Graded};
use crate::{
    Summary,
    error::PipelineError,
    evaluate::Accuracy,
    statistics::{Interval, RESAMPLES, RESAMPLING_SEED, of_accuracy, of_difference},
    summary::Role,
};

/// The comparison of an ablation: `table.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The plan's name.
    pub name: String,
    /// Version of this program.
    pub version: String,
    /// The row that the others are compared with.
    pub baseline: String,
    /// Problems of the evaluation; absent before the first result.
    pub problems: Option<u64>,
    /// Answers to each.
    pub samples: Option<u32>,
    /// How intervals are made.
    pub intervals: Resampling,
    /// Models that cells share, once each, then the cells.
    pub rows: Vec<Row>,
    /// How much the masks of cells have in common.
    pub overlap: Overlap,
}

/// How intervals are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resampling {
    /// How often seeds and prompts are drawn.
    pub resamples: u64,
    /// Seed of these draws.
    pub seed: u64,
}

/// One line of the table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The cell's name, or which model it is.
    pub model: String,
    /// Whether cells share it: it does not depend on what they select.
    pub shared: bool,
    /// What the cell overrides.
    pub overrides: Vec<String>,
    /// Its strategy.
    pub strategy: Option<String>,
    /// The seeds whose results are in; of a shared row one for each model that differs.
    pub seeds: Vec<u64>,
    /// Share of right answers, the mean over seeds and prompts.
    pub accuracy: Option<f64>,
    /// Its 95 % interval over seeds and prompts.
    pub interval: Option<Interval>,
    /// The same by seed.
    pub by_seed: Vec<f64>,
    /// Accuracy less the baseline's, on the seeds and prompts of both.
    pub difference: Option<f64>,
    /// Its 95 % interval, of pairs.
    pub difference_interval: Option<Interval>,
    /// Share of the response tokens with a weight above zero, the mean over seeds; of an online
    /// strategy of those that it was asked about in training.
    pub kept_share: Option<f64>,
    /// Share of answers that were cut off.
    pub truncated: Option<f64>,
    /// Share of answers without an answer.
    pub unparsed: Option<f64>,
    /// Generated tokens per answer.
    pub mean_tokens: Option<f64>,
    /// Seconds of the training steps, the mean over seeds.
    pub train_seconds: Option<f64>,
    /// Runs without a result.
    pub failures: Vec<Failure>,
}

/// A run without a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// Why.
    pub message: String,
}

/// Overlap, `[jaccard]` in docs/equations.md, of the tokens that pairs of cells keep, the mean over
/// their common seeds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// The cells, without online ones, whose masks change from step to step.
    pub cells: Vec<String>,
    /// `[cells, cells]`; absent where two have no seed in common or chose among other tokens.
    pub jaccard: Vec<Vec<Option<f64>>>,
}

/// Results of one row by seed.
#[derive(Debug, Default)]
struct Results {
    /// Stage, so that the same model is known as such.
    by_seed: BTreeMap<u64, Graded>,
}

/// Compares what `outcomes` and the run folders of `ablation` hold.
///
/// `baseline` is a cell's name, `base`, `bottleneck`, `sft`, or a name of `[merge]`.
///
/// # Errors
/// When `baseline` is no row, or results cannot be read.
pub fn compare(
    ablation: &Ablation,
    outcomes: &BTreeMap<String, Outcome>,
    baseline: &str,
) -> Result<Comparison, AblateError> {
    let position = find_baseline(ablation, baseline)?;
    let mut shared: Vec<(String, Row, Results)> = Vec::new();
    let mut cells: Vec<(Row, Results)> = Vec::new();
    // Of each cell the shared rows that it stands beside, by name.
    let mut beside: Vec<BTreeMap<String, usize>> = Vec::new();
    let mut masks = Vec::new();
    for cell in &ablation.cells {
        let mut row = Row {
            model: cell.name.clone(),
            overrides: cell.overrides.clone(),
            strategy: cell.runs.first().map(|r| r.plan.selection.strategy.clone()),
            ..Row::default()
        };
        let mut results = Results::default();
        let mut others: Vec<(String, String, Results)> = Vec::new();
        let mut kept = BTreeMap::new();
        let (mut kept_shares, mut seconds) = (Vec::new(), Vec::new());
        for run in &cell.runs {
            let summary = match outcome(run, outcomes) {
                Outcome::Done(summary) => summary,
                Outcome::Failed(message) => {
                    row.failures.push(Failure {
                        seed: run.plan.seed,
                        message,
                    });
                    continue;
                }
                Outcome::Unfinished => {
                    row.failures.push(Failure {
                        seed: run.plan.seed,
                        message: "not done yet".to_owned(),
                    });
                    continue;
                }
            };
            for evaluation in &summary.evaluation {
                let graded = Graded::read(evaluation)?;
                let place = others.iter().position(|(n, _, _)| *n == evaluation.name);
                let to = match (evaluation.model, place) {
                    (Role::Student, _) => &mut results,
                    (role, Some(place)) => {
                        if others[place].1 != evaluation.label() {
                            // E.g. the bottleneck, at another step under each seed.
                            others[place].1 = role.label().to_owned();
                        }
                        &mut others[place].2
                    }
                    (_, None) => {
                        let (name, label) = (evaluation.name.clone(), evaluation.label());
                        others.push((name, label, Results::default()));
                        &mut others.last_mut().expect("just pushed").2
                    }
                };
                to.by_seed.insert(run.plan.seed, graded);
            }
            kept_shares.push(summary.kept_share());
            seconds.push(summary.train.seconds);
            if !summary.selection.online {
                kept.insert(run.plan.seed, Mask::read(&summary.selection_file)?);
            }
        }
        row.kept_share = mean(&kept_shares);
        row.train_seconds = mean(&seconds);
        beside.push(share(cell, others, &mut shared));
        cells.push((row, results));
        masks.push((cell.name.clone(), kept));
    }

    let mut rows = Vec::new();
    for (own, row, results) in &shared {
        // A cell belongs to several shared rows; two of these are compared where one cell has both.
        let with = position.map(|at| &cells[at].1).or_else(|| {
            let both = beside.iter().find(|of| {
                let same = of.get(own).map(|at| &shared[*at].1.model);
                same == Some(&row.model)
            });
            both?.get(baseline).map(|at| &shared[*at].2)
        });
        let is_baseline = position.is_none() && own == baseline;
        rows.push(results.fill(row.clone(), with, is_baseline));
    }
    for (index, (row, results)) in cells.iter().enumerate() {
        let with = match position {
            Some(at) => Some(&cells[at].1),
            None => beside[index].get(baseline).map(|at| &shared[*at].2),
        };
        rows.push(results.fill(row.clone(), with, position == Some(index)));
    }
    let any = shared
        .iter()
        .map(|(_, _, r)| r)
        .chain(cells.iter().map(|(_, r)| r));
    let accuracy = any
        .flat_map(|results| results.by_seed.values())
        .map(|graded| &graded.accuracy)
        .next();
    Ok(Comparison {
        name: ablation.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        baseline: baseline.to_owned(),
        problems: accuracy.map(|a| a.problems),
        samples: accuracy.map(|a| a.samples),
        intervals: Resampling {
            resamples: RESAMPLES,
            seed: RESAMPLING_SEED,
        },
        rows,
        overlap: overlap(&masks),
    })
}

/// Which cell `baseline` is; `None` for a model that cells share.
///
/// # Errors
/// When it is neither.
pub fn find_baseline(ablation: &Ablation, baseline: &str) -> Result<Option<usize>, AblateError> {
    let names = || ablation.cells.iter().map(|cell| cell.name.as_str());
    if let Some(cell) = names().position(|name| name == baseline) {
        return Ok(Some(cell));
    }
    let plans = ablation.runs().into_iter().map(|(_, run)| &run.plan);
    let merged: BTreeSet<&str> = plans
        .flat_map(|plan| plan.merge.keys().map(String::as_str))
        .collect();
    let words: Vec<&str> = Role::COMPARED
        .iter()
        .map(|r| r.word())
        .chain(merged)
        .collect();
    if words.contains(&baseline) {
        return Ok(None);
    }
    let known: Vec<&str> = words.into_iter().chain(names()).collect();
    Err(AblateError::Baseline {
        given: baseline.to_owned(),
        known: known.join(", "),
    })
}

/// Whether the table has to be taken with care: runs without a result.
pub fn missing(comparison: &Comparison) -> usize {
    comparison.rows.iter().map(|row| row.failures.len()).sum()
}

/// Puts a cell's shared models where the same ones are, or into new rows; says where.
fn share(
    cell: &PlannedCell,
    others: Vec<(String, String, Results)>,
    shared: &mut Vec<(String, Row, Results)>,
) -> BTreeMap<String, usize> {
    let mut places = BTreeMap::new();
    for (name, label, results) in others {
        let same = |known: &Results| {
            let mut common = results
                .by_seed
                .iter()
                .filter_map(|(seed, graded)| Some((graded, known.by_seed.get(seed)?)))
                .peekable();
            common.peek().is_some() && common.all(|(a, b)| a.stage == b.stage)
        };
        let found = shared
            .iter()
            .position(|(other, _, known)| *other == name && same(known));
        let place = match found {
            Some(place) => {
                let known = &mut shared[place].2.by_seed;
                for (seed, graded) in results.by_seed {
                    known.entry(seed).or_insert(graded);
                }
                place
            }
            None => {
                let first = !shared.iter().any(|(other, _, _)| *other == name);
                let row = Row {
                    model: match first {
                        true => label,
                        false => format!("{label} of {}", cell.name),
                    },
                    shared: true,
                    ..Row::default()
                };
                shared.push((name.clone(), row, results));
                shared.len() - 1
            }
        };
        places.insert(name, place);
    }
    places
}

/// What the run came to: as it said, or as it lies there.
fn outcome(run: &PlannedRun, outcomes: &BTreeMap<String, Outcome>) -> Outcome {
    match outcomes.get(&run.id) {
        Some(Outcome::Unfinished) | None => {}
        Some(outcome) => return outcome.clone(),
    }
    let read = |name: &str| fs::read_to_string(run.plan.out.join(name)).ok();
    let summary = read("summary.json").and_then(|text| serde_json::from_str(&text).ok());
    if let Some(summary) = summary.filter(|s: &Summary| s.plan == run.plan.fingerprint().as_str()) {
        return Outcome::Done(Box::new(summary));
    }
    let last = read("events.jsonl").and_then(|text| {
        let line = text.lines().last()?.to_owned();
        serde_json::from_str::<serde_json::Value>(&line).ok()
    });
    match last {
        Some(event) if event["event"] == "stopped" && event["interrupted"] == false => {
            Outcome::Failed(event["message"].as_str().unwrap_or("stopped").to_owned())
        }
        _ => Outcome::Unfinished,
    }
}

impl Results {
    /// One result for each model that differs, with the first seed that has it.
    fn distinct(&self) -> Vec<(u64, &Graded)> {
        let mut stages = BTreeSet::new();
        self.by_seed
            .iter()
            .filter(|(_, graded)| stages.insert(graded.stage.as_str()))
            .map(|(seed, graded)| (*seed, graded))
            .collect()
    }

    /// The row with what these results and, unless they are the baseline's own, `baseline`'s say.
    fn fill(&self, mut row: Row, baseline: Option<&Self>, is_baseline: bool) -> Row {
        let all = self.distinct();
        let Some((_, first)) = all.first() else {
            return row;
        };
        row.seeds = all.iter().map(|(seed, _)| *seed).collect();
        row.by_seed = all.iter().map(|(_, g)| g.accuracy.share).collect();
        row.accuracy = mean(&row.by_seed);
        let over = |value: fn(&Accuracy) -> f64| {
            let values: Vec<f64> = all.iter().map(|(_, g)| value(&g.accuracy)).collect();
            mean(&values)
        };
        row.truncated = over(Accuracy::truncated_share);
        row.unparsed = over(Accuracy::unparsed_share);
        row.mean_tokens = over(|accuracy| accuracy.mean_tokens);
        if all.iter().all(|(_, g)| g.problems == first.problems) {
            let shares: Vec<Vec<f64>> = all.iter().map(|(_, g)| g.shares.clone()).collect();
            row.interval = Some(of_accuracy(&shares));
        }
        if let (Some(baseline), false) = (baseline, is_baseline) {
            let differences = self.less(baseline);
            let means: Vec<f64> = differences
                .iter()
                .filter_map(|of_problems| mean(of_problems))
                .collect();
            row.difference = mean(&means);
            row.difference_interval = of_difference(&differences);
        }
        row
    }

    /// `[seeds, problems]`: shares less those of `baseline`, on the problems of both under the seeds
    /// of both. A model that is the same under every seed is there under all.
    fn less(&self, baseline: &Self) -> Vec<Vec<f64>> {
        let (own, other) = (self.distinct(), baseline.distinct());
        let pairs: Vec<(&Graded, &Graded)> = match (&own[..], &other[..]) {
            ([(_, one)], others) => others.iter().map(|(_, g)| (*one, *g)).collect(),
            (own, [(_, one)]) => own.iter().map(|(_, g)| (*g, *one)).collect(),
            (own, _) => own
                .iter()
                .filter_map(|(seed, graded)| Some((*graded, baseline.by_seed.get(seed)?)))
                .collect(),
        };
        let less: Option<Vec<Vec<f64>>> = pairs.into_iter().map(|(a, b)| a.less(b)).collect();
        less.unwrap_or_default()
    }
}

/// Which tokens a selection keeps.
struct Mask {
    /// What the tokens are, so that masks of other data are not compared.
    tokens: (Vec<u64>, Vec<u32>, Vec<u32>),
    kept: Vec<bool>,
}

impl Mask {
    fn read(path: &Path) -> Result<Self, PipelineError> {
        let (table, weights, _) =
            store::read_selection(path).map_err(PipelineError::data("ablate"))?;
        let view = table.view();
        Ok(Self {
            tokens: (
                view.example_ids().to_vec(),
                view.offsets().to_vec(),
                view.positions().to_vec(),
            ),
            kept: weights.as_slice().iter().map(|w| *w > 0.0).collect(),
        })
    }

    fn jaccard(&self, other: &Self) -> Option<f64> {
        if self.tokens != other.tokens {
            return None;
        }
        let pairs = || self.kept.iter().zip(&other.kept);
        let both = pairs().filter(|(a, b)| **a && **b).count();
        let either = pairs().filter(|(a, b)| **a || **b).count();
        (either > 0).then(|| both as f64 / either as f64)
    }
}

fn overlap(masks: &[(String, BTreeMap<u64, Mask>)]) -> Overlap {
    let there: Vec<_> = masks
        .iter()
        .filter(|(_, by_seed)| !by_seed.is_empty())
        .collect();
    let of_pair = |a: &BTreeMap<u64, Mask>, b: &BTreeMap<u64, Mask>| {
        let values: Vec<f64> = a
            .iter()
            .filter_map(|(seed, mask)| mask.jaccard(b.get(seed)?))
            .collect();
        mean(&values)
    };
    Overlap {
        cells: there.iter().map(|(name, _)| name.clone()).collect(),
        jaccard: there
            .iter()
            .map(|(_, a)| there.iter().map(|(_, b)| of_pair(a, b)).collect())
            .collect(),
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests;
