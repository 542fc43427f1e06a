//! Nanoseconds per token of every signal and selection strategy, one JSON line each; of a strategy
//! also with the signals that it reads. Strategies run on one thread, signals over sketches on all.
//!
//!     cargo bench -p t3s-benches --bench select -- [--tokens N] [--examples N] [--rounds N]
//!         [--sketch-width N]

use std::time::Instant;

use serde_json::json;
use t3s_benches::number;
use t3s_core::{
    CheckpointRef, CounterRng, Observable, ObservableRef, SelectContext, TokenTable, When,
    plan::{SelectionPlan, selection_components},
    registry::{Kind, Registry},
    table::Sketch,
    toml,
};
use t3s_pipeline::bench::machine::Machine;
// Linked for its registrations.
use t3s_strategies as _;

/// Further options worth a figure of their own.
const OTHERS: [(&str, &str); 6] = [
    ("t3s", "share = 0.2"),
    ("t3s", "share = 0.2\nscope = 'example'"),
    ("static-confidence", "scope = 'example'"),
    ("random", "scope = 'example'"),
    ("entropy", "scope = 'example'"),
    ("gradient-sketch", "signal = 'anchor-alignment'"),
];

/// Checkpoints of the trajectory.
const STEPS: [u64; 5] = [0, 5, 10, 15, 20];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (tokens, examples) = (number("tokens", 1_000_000), number("examples", 200));
    let (rounds, width) = (number("rounds", 9), number("sketch-width", 64));
    let machine = Machine::now(None);
    let recorded = table(tokens, examples, width)?;
    let registry = Registry::linked()?;
    let mut named: Vec<(&str, &str)> = registry
        .of_kind(Kind::Strategy)
        .map(|entry| (entry.name, ""))
        .collect();
    named.extend(OTHERS);

    for entry in registry.of_kind(Kind::Signal) {
        let signal = registry.signal(entry.name, &toml::Table::new())?;
        let mut out = vec![0.0; tokens];
        let view = recorded.view();
        let seconds = timed(rounds, || signal.compute(&view, &mut out))?;
        report(
            "signal",
            (entry.name, ""),
            (&seconds, tokens),
            json!({}),
            &machine,
        );
    }
    let current = random(tokens, "current", |u| u.ln());
    for (name, options) in named {
        let selection = SelectionPlan::new(name, options.parse()?);
        let components = selection_components(&selection, &Default::default(), &registry)?;
        let mut input = bare(tokens, examples)?;
        let mut scores = vec![0.0; tokens];
        let view = recorded.view();
        let signals = timed(rounds, || {
            let mut all = components.signals.iter();
            all.try_for_each(|(_, signal)| signal.compute(&view, &mut scores))
        })?;
        for (id, signal) in &components.signals {
            signal.compute(&view, &mut scores)?;
            input.insert(id.as_str(), scores.clone())?;
        }
        let view = input.view();
        let cx = match components.strategy.when() {
            When::Online => SelectContext::online(1, 1, &current),
            _ => SelectContext::recorded(1),
        };
        let mut out = vec![0.0; tokens];
        let seconds = timed(rounds, || components.strategy.select(&view, &cx, &mut out))?;
        let kept = out.iter().filter(|w| **w > 0.0).count();
        let more = json!({
            "kept": kept,
            "its_signals_ns_per_token_median": nanoseconds(signals[signals.len() / 2], tokens),
        });
        report(
            "strategy",
            (name, options),
            (&seconds, tokens),
            more,
            &machine,
        );
    }
    Ok(())
}

/// Seconds of each round, ascending; one more goes before them.
fn timed<E>(rounds: usize, mut run: impl FnMut() -> Result<(), E>) -> Result<Vec<f64>, E> {
    run()?;
    let mut seconds = Vec::new();
    for _ in 0..rounds.max(1) {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

/// Per token.
fn nanoseconds(seconds: f64, tokens: usize) -> f64 {
    seconds * 1e9 / tokens as f64
}

/// Prints a line, with `more` beside what every line has.
fn report(
    kind: &str,
    (name, options): (&str, &str),
    (seconds, tokens): (&[f64], usize),
    more: serde_json::Value,
    machine: &Machine,
) {
    let ns = |seconds: f64| nanoseconds(seconds, tokens);
    let mut line = json!({
        "what": "select",
        "kind": kind,
        "name": name,
        "options": options,
        "tokens": tokens,
        "rounds": seconds.len(),
        "ns_per_token_median": ns(seconds[seconds.len() / 2]),
        "ns_per_token_min": ns(seconds[0]),
        "ns_per_token_max": ns(seconds[seconds.len() - 1]),
        "machine": machine,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        line[key] = value.clone();
    }
    println!("{line}");
}

fn bare(tokens: usize, examples: usize) -> Result<TokenTable, Box<dyn std::error::Error>> {
    let ends = (0..=examples).map(|e| (e * tokens / examples) as u32);
    let offsets: Vec<u32> = ends.collect();
    let positions = offsets
        .windows(2)
        .flat_map(|rows| 0..rows[1] - rows[0])
        .map(|p| p + 80);
    Ok(TokenTable::new(
        (0..examples as u64).collect(),
        offsets.clone(),
        vec![1; tokens],
        positions.collect(),
        vec![true; tokens],
    )?)
}

/// Every observable at every checkpoint that a default names.
fn table(
    tokens: usize,
    examples: usize,
    width: usize,
) -> Result<TokenTable, Box<dyn std::error::Error>> {
    let mut table = bare(tokens, examples)?;
    let named = [
        CheckpointRef::Base,
        CheckpointRef::Bottleneck,
        CheckpointRef::Reference,
    ];
    for at in named.into_iter().chain(STEPS.map(CheckpointRef::Step)) {
        let name = ObservableRef::logp(at).to_string();
        let values = random(tokens, &name, |u| u.ln());
        table.insert(name, values)?;
    }
    let at_base = |observable| ObservableRef::new(observable, CheckpointRef::Base).to_string();
    for (observable, of) in [
        (Observable::Entropy, (|u| 3.0 * u) as fn(f64) -> f64),
        (Observable::GradNorm, |u| -u.ln()),
        (Observable::Rank, |u| (1.0 / u).floor().min(4095.0)),
    ] {
        let name = at_base(observable);
        let values = random(tokens, &name, of);
        table.insert(name, values)?;
    }
    let values = random(tokens * width, "sketch", |u| u - 0.5);
    table.insert_sketch(at_base(Observable::Sketch), Sketch { width, values })?;
    Ok(table)
}

/// `of` a uniform number above 0 and below 1, `n` times.
fn random(n: usize, stream: &str, of: impl Fn(f64) -> f64) -> Vec<f32> {
    let rng = CounterRng::new(1, stream);
    (0..n as u64)
        .map(|i| of(rng.uniform(i, 0).max(1e-9)) as f32)
        .collect()
}
