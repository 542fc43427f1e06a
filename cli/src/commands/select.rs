//! `t3s select`: a selection on stores that lie there.

use std::{collections::BTreeMap, path::PathBuf};

use t3s_core::{
    CheckpointRef,
    plan::{SelectionPlan, SignalPlan},
    toml::{Table, Value},
};
use t3s_pipeline::select::select_offline;

use crate::{args::SelectArgs, display::Display, failure::Failure};

/// Selects tokens.
pub fn run(args: &SelectArgs, display: &Display) -> Result<(), Failure> {
    let stores = args
        .stores
        .iter()
        .map(|text| store(text))
        .collect::<Result<Vec<_>, _>>()?;
    let mut selection = SelectionPlan::new(&args.strategy, Table::new());
    let mut signals: BTreeMap<String, SignalPlan> = BTreeMap::new();
    for text in &args.overrides {
        set(text, &mut selection.options, &mut signals)?;
    }
    let registry = super::registry(&args.plugins)?;
    let chosen = select_offline(
        &stores, &selection, &signals, args.seed, &registry, &args.out,
    )?;
    display.result(&chosen, || {
        println!(
            "{} keeps {} of {} response tokens ({:.1} %)",
            chosen.strategy,
            chosen.kept,
            chosen.tokens,
            100.0 * chosen.kept_share
        );
        println!("selection: {}", args.out.display());
    });
    Ok(())
}

/// `base=base.parquet`.
fn store(text: &str) -> Result<(CheckpointRef, PathBuf), Failure> {
    let (at, path) = text.split_once('=').ok_or_else(|| {
        Failure::usage(format!(
            "--store {text}: write CHECKPOINT=FILE, e.g. base=base.parquet"
        ))
    })?;
    let at = at
        .parse()
        .map_err(|e| Failure::usage(format!("--store {text}: {e}")))?;
    Ok((at, PathBuf::from(path)))
}

/// `threshold=0.1`, or `signals.ID.kind=entropy`.
fn set(
    text: &str,
    options: &mut Table,
    signals: &mut BTreeMap<String, SignalPlan>,
) -> Result<(), Failure> {
    let (key, value) = super::key_value(text).ok_or_else(|| {
        Failure::usage(format!("--set {text}: write KEY=VALUE, e.g. threshold=0.1"))
    })?;
    match key.split('.').collect::<Vec<_>>().as_slice() {
        [option] => {
            options.insert((*option).to_owned(), value);
        }
        ["signals", id, option] => {
            let signal = signals.entry((*id).to_owned()).or_insert(SignalPlan {
                kind: String::new(),
                options: Table::new(),
            });
            match (*option, &value) {
                ("kind", Value::String(kind)) => signal.kind = kind.clone(),
                _ => {
                    signal.options.insert((*option).to_owned(), value);
                }
            }
        }
        _ => {
            return Err(Failure::usage(format!(
                "--set {text}: write an option of the strategy, or signals.ID.KEY=VALUE"
            )));
        }
    }
    Ok(())
}
