//! One file per command.

mod ablate;
mod check;
mod eval;
mod explain;
mod grads;
mod init;
mod list;
mod merge;
mod plugin;
mod run;
mod score;
mod select;
mod task;
mod tokenizer;

use std::path::PathBuf;

use t3s_core::{
    plan::{self, DataPlan, GraderPlan, Loaded},
    plugin as loader,
    registry::Registry,
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
        Command::Merge(merge) => merge::run(&merge, &display),
        Command::Init(init) => init::run(&init),
        Command::Tokenizer(tokenizer) => tokenizer::run(&tokenizer),
        Command::Task(task) => task::run(&task),
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

fn subject(model: &ModelArgs, data: &DataArgs, grader: GraderPlan) -> Subject {
    Subject {
        model: model.model.clone(),
        base: model.base.clone(),
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
    }
}
