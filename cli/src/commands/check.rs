//! `t3s check`: everything that can be wrong before a model is loaded, and what the run will cost.

use serde_json::json;
use t3s_pipeline::{check, estimate::count};

use crate::{
    args::PlanArgs,
    display::{Display, bytes, duration},
    failure::Failure,
};

/// Validates a plan.
pub fn run(args: &PlanArgs, display: &Display) -> Result<(), Failure> {
    let loaded = super::load(args)?;
    let plan = loaded.plan;
    let checked = check(&plan, &loaded.registry)?;
    let (corpus, prediction) = (&checked.corpus, &checked.prediction);
    let result = json!({
        "plan": plan,
        "fingerprint": plan.fingerprint(),
        "adapter": checked.adapter,
        "corpus": corpus,
        "problems": checked.problems,
        "prediction": prediction,
    });
    display.result(&result, || {
        println!("{}", plan.to_toml());
        println!("plan {}: good", plan.fingerprint().short());
        println!(
            "student: {} with {} parameters, {} of them learn",
            checked.adapter,
            count(prediction.parameters as f64),
            count(prediction.trainable as f64)
        );
        println!(
            "data: {} examples, {} tokens, {} of them response tokens, the longest {}; {} prompts \
             with a gold answer",
            corpus.examples, corpus.tokens, corpus.response_tokens, corpus.longest, corpus.problems
        );
        println!("evaluation: {} problems", checked.problems);
        for warning in &corpus.warnings {
            println!("warning: {warning}");
        }
        for stage in &prediction.stages {
            println!(
                "{:>12}: about {} ({})",
                stage.stage,
                duration(stage.seconds),
                stage.work
            );
        }
        println!(
            "{:>12}: about {} on this machine, {} of memory at most",
            "whole run",
            duration(prediction.seconds()),
            bytes(prediction.peak_memory)
        );
    });
    Ok(())
}
