//! `t3s run` and `t3s train`.

use crate::{
    args::PlanArgs,
    display::{Display, print_sft, print_summary},
    failure::Failure,
    interrupt::on_ctrl_c,
};

/// Runs a plan.
pub fn run(args: &PlanArgs, display: &Display) -> Result<(), Failure> {
    let loaded = super::load(args)?;
    let summary = t3s_pipeline::run(&loaded.plan, &loaded.registry, display, &on_ctrl_c()?)?;
    // In JSON the last event is the summary.
    display.result(&serde_json::json!({ "event": "done" }), || {
        print_summary(&summary);
    });
    Ok(())
}

/// Plain fine-tuning.
pub fn train(args: &PlanArgs, display: &Display) -> Result<(), Failure> {
    let loaded = super::load(args)?;
    let summary = t3s_pipeline::train(&loaded.plan, &loaded.registry, display, &on_ctrl_c()?)?;
    display.result(&summary, || print_sft(&summary));
    Ok(())
}
