//! One file per command.

mod ablate;
mod analyse;
mod bench;
mod check;
mod eval;
mod explain;
mod grads;
mod init;
mod lens;
mod list;
mod merge;
mod plugin;
mod report;
mod run;
mod score;
mod select;
mod task;
mod tokenizer;

use std::{
    io::{IsTerminal, stdout},
    path::PathBuf,
};

use t3s_core::{
    plan::{self, DataPlan, GraderPlan, Loaded, StudentPlan},
    plugin as loader,
    registry::Registry,
    toml::{Table, Value},
};
use t3s_pipeline::offline::Subject;

use crate::{
    args::{Args, Command, DataArgs, ModelArgs, PlanArgs},
    display::Display,
    failure::Failure,
};

/// Runs the command of `args`.
///
/// # Errors
/// What the command says.
pub fn run(args: Args) -> Result<(), Failure> {
    let display = Display::new(args.json);
    match args.command {
        Command::Run(plan) => run::run(&plan, &display),
        Command::Train(plan) => run::train(&plan, &display),
        Command::Ablate(ablate) => ablate::run(&ablate, &display),
        Command::Check(plan) => check::run(&plan, &display),
        Command::Explain(explain) => explain::run(&explain),
        Command::List(list) => list::run(&list, &display),
        Command::Grads(grads) => grads::run(&grads, &display),
        Command::Score(score) => score::run(&score, &display),
        Command::Select(select) => select::run(&select, &display),
        Command::Eval(eval) => eval::run(&eval, &display),
        Command::Analyse(analyse) => analyse::run(&analyse, &display),
        Command::Lens(lens) => lens::run(&lens, &display),
        Command::Report(report) => report::run(&report, &display),
        Command::Merge(merge) => merge::run(&merge, &display),
        Command::Init(init) => init::run(&init),
        Command::Tokenizer(tokenizer) => tokenizer::run(&tokenizer),
        Command::Task(task) => task::run(&task),
        Command::Bench(bench) => {
            // A figure that goes into a file is read by a program.
            let display = Display::new(args.json || !stdout().is_terminal());
            bench::run(&bench, &display)
        }
        Command::Plugin(args) => plugin::run(&args.command, &display),
    }
}

/// Every component that is linked in, and those of `plugins`.
fn registry(plugins: &[PathBuf]) -> Result<Registry, Failure> {
    let mut registry = Registry::linked()?;
    for path in plugins {
        registry = loader::load(path, None)
            .and_then(|plugin| plugin.add_to(registry))
            .map_err(Failure::usage)?;
    }
    Ok(registry)
}

/// Loads a plan and says what is odd about it.
fn load(args: &PlanArgs) -> Result<Loaded, Failure> {
    let loaded = plan::load(&args.plan, &args.overrides, &Registry::linked()?)?;
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(loaded)
}

/// `KEY=VALUE`; a bare word is a text, as on the command line of `t3s run`.
fn key_value(text: &str) -> Option<(&str, Value)> {
    let (key, value) = text.split_once('=')?;
    let value = format!("v = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(value.to_owned()));
    Some((key, value))
}

/// # Errors
/// When a `--student` is no option of the family.
fn subject(model: &ModelArgs, data: &DataArgs, grader: GraderPlan) -> Result<Subject, Failure> {
    let path = model.base.as_ref().unwrap_or(&model.model);
    let mut student = StudentPlan::new(path.clone());
    for text in &model.student {
        let split = key_value(text).and_then(|(key, value)| Some((key.split_once('.')?, value)));
        match split {
            Some((("objective", key), value)) => student.objective.insert(key.to_owned(), value),
            Some((("decode", key), value)) => student.decode.insert(key.to_owned(), value),
            _ => {
                return Err(Failure::usage(format!(
                    "--student {text}: write objective.KEY=VALUE or decode.KEY=VALUE, e.g. \
                     objective.block=8"
                )));
            }
        };
    }
    Ok(Subject {
        model: model.model.clone(),
        student,
        data: DataPlan {
            format: data.format,
            max_tokens: data.max_tokens,
            too_long: data.too_long,
            chat_template: data.chat_template.clone().unwrap_or_default(),
            limit: data.limit,
            ..DataPlan::new(data.data.clone())
        },
        grader,
        device: model.device.clone(),
    })
}
