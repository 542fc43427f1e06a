//! The page's tables: results, kept shares by kind of token, costs.

use std::collections::BTreeMap;

use serde::Serialize;
use t3s_pipeline::beside::Variant;

use crate::{classes::Class, error::ReportError, facts::Facts, tokens::Tokens};

/// One model's examination, as the results table shows it. Numbers are per cent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    model: String,
    share: f64,
    low: f64,
    high: f64,
    width: f64,
    answers: String,
    truncated: f64,
    unparsed: f64,
    tokens: f64,
}

/// The results, in the order of the run.
pub fn results(facts: &Facts) -> Vec<Outcome> {
    let row = |examined: &crate::facts::Examined| {
        let a = &examined.accuracy;
        let percent = |share: f64| (1000.0 * share).round() / 10.0;
        Outcome {
            model: examined.model.clone(),
            share: percent(a.share),
            low: percent(a.interval.low),
            high: percent(a.interval.high),
            width: percent(a.interval.high - a.interval.low),
            answers: match a.samples {
                1 => a.problems.to_string(),
                samples => format!("{} × {samples}", a.problems),
            },
            truncated: percent(a.truncated_share()),
            unparsed: percent(a.unparsed_share()),
            tokens: a.mean_tokens.round(),
        }
    };
    facts.evaluations.iter().map(row).collect()
}

/// A run of the table of variants. Numbers are per cent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Beside {
    name: String,
    own: bool,
    strategy: String,
    seed: u64,
    kept: String,
    share: f64,
    low: f64,
    high: f64,
    width: f64,
    difference: String,
    interval: String,
}

/// Most runs in the table of variants; an ablation may have many more.
const VARIANTS: usize = 100;

/// This run and those beside it, the best first, and how many more there are.
pub fn variants(facts: &Facts) -> (Vec<Beside>, usize) {
    let percent = |share: f64| (1000.0 * share).round() / 10.0;
    let signed = |share: f64| match format!("{:+.1}", 100.0 * share).as_str() {
        "+0.0" | "-0.0" => "0.0".to_owned(),
        text => text.to_owned(),
    };
    let mut all: Vec<_> = facts.variants.iter().collect();
    all.sort_by(|a, b| b.accuracy.share.total_cmp(&a.accuracy.share));
    let row = |variant: &&Variant| {
        let interval = variant.accuracy.interval;
        Beside {
            name: variant.name.clone(),
            own: variant.own,
            strategy: variant.strategy.clone(),
            seed: variant.seed,
            kept: format!("{:.1} %", 100.0 * variant.kept_share),
            share: percent(variant.accuracy.share),
            low: percent(interval.low),
            high: percent(interval.high),
            width: percent(interval.high - interval.low),
            difference: variant.difference.map_or(String::new(), |(d, _)| signed(d)),
            interval: variant.difference.map_or(String::new(), |(_, i)| {
                format!("{} to {}", signed(i.low), signed(i.high))
            }),
        }
    };
    // This run is there whatever its place.
    let mut place = 0;
    all.retain(|variant| {
        place += 1;
        variant.own || place < VARIANTS
    });
    (
        all.iter().map(row).collect(),
        facts.variants.len() - all.len(),
    )
}

/// How many tokens of a kind there are, and how many are kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    name: String,
    tokens: usize,
    /// Per cent.
    kept: f64,
    /// Mean, where it is known.
    delta: Option<String>,
}

#[derive(Default)]
struct Count {
    tokens: usize,
    kept: usize,
    delta: f64,
}

impl Count {
    fn group(&self, name: String, delta: bool) -> Group {
        let n = self.tokens.max(1) as f64;
        Group {
            name,
            tokens: self.tokens,
            kept: (1000.0 * self.kept as f64 / n).round() / 10.0,
            delta: delta.then(|| match format!("{:.3}", self.delta / n) {
                zero if zero == "-0.000" => "0.000".to_owned(),
                text => text,
            }),
        }
    }
}

/// Kept shares by kind of token, and of the spellings that are dropped and kept most.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Groups {
    classes: Vec<Group>,
    dropped: Vec<Group>,
    kept: Vec<Group>,
}

/// Spellings in each list.
const LISTED: usize = 12;

/// Counts kept tokens of `tokens` by kind and by spelling; `None` without weights or tokenizer.
///
/// # Errors
/// When tokens cannot be decoded.
pub fn groups(tokens: &Tokens) -> Result<Option<Groups>, ReportError> {
    let (Some(weights), Some(_)) = (&tokens.weights, &tokens.tokenizer) else {
        return Ok(None);
    };
    let vocabulary = tokens.vocabulary()?;
    let delta = tokens.column("delta-c");
    let mut by_class: BTreeMap<Class, Count> = BTreeMap::new();
    let mut by_id: BTreeMap<u32, Count> = BTreeMap::new();
    let class_of: BTreeMap<u32, Class> = vocabulary
        .iter()
        .map(|(id, (text, special))| (*id, Class::of(text, *special)))
        .collect();
    for (row, id) in tokens.view().token_ids().iter().enumerate() {
        let class = class_of.get(id).copied().unwrap_or(Class::Other);
        for count in [
            by_class.entry(class).or_default(),
            by_id.entry(*id).or_default(),
        ] {
            count.tokens += 1;
            count.kept += usize::from(weights[row] > 0.0);
            count.delta += delta.map_or(0.0, |column| f64::from(column.values[row]));
        }
    }
    let known = delta.is_some();
    let classes = Class::ALL
        .iter()
        .filter_map(|class| Some(by_class.get(class)?.group(class.name().to_owned(), known)))
        .collect();
    // Only what is there often enough to say something.
    let total = tokens.view().n_tokens();
    let least = (total / 500).clamp(5, 200);
    let mut spellings: Vec<Group> = by_id
        .iter()
        .filter(|(_, count)| count.tokens >= least)
        .map(|(id, count)| {
            let text = vocabulary.get(id).map_or("", |(text, _)| text.as_str());
            count.group(visible(text), known)
        })
        .collect();
    spellings.sort_by(|a, b| {
        let kept = a.kept.total_cmp(&b.kept);
        kept.then(b.tokens.cmp(&a.tokens)).then(a.name.cmp(&b.name))
    });
    let dropped = spellings.iter().take(LISTED).filter(|g| g.kept < 50.0);
    let kept = spellings
        .iter()
        .rev()
        .take(LISTED)
        .filter(|g| g.kept >= 50.0);
    Ok(Some(Groups {
        classes,
        dropped: dropped.cloned().collect(),
        kept: kept.cloned().collect(),
    }))
}

/// Text with its spaces and line breaks in sight.
fn visible(text: &str) -> String {
    text.replace(' ', "·").replace('\n', "↵").replace('\t', "⇥")
}

/// What a stage cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    stage: String,
    seconds: f64,
    /// Per cent of the whole run.
    share: f64,
    state: &'static str,
}

/// The stages with their seconds.
pub fn costs(facts: &Facts) -> Vec<Cost> {
    let stages: Vec<(&str, Option<f64>, bool)> = facts
        .run
        .stages
        .iter()
        .map(|stage| (stage.name.as_str(), facts.run.cost(stage), stage.done))
        .collect();
    let total: f64 = stages.iter().filter_map(|(_, seconds, _)| *seconds).sum();
    stages
        .into_iter()
        .map(|(stage, seconds, done)| Cost {
            stage: stage.to_owned(),
            seconds: (10.0 * seconds.unwrap_or(0.0)).round() / 10.0,
            share: (1000.0 * seconds.unwrap_or(0.0) / total.max(1e-9)).round() / 10.0,
            state: if done { "done" } else { "unfinished" },
        })
        .collect()
}
