//! `t3s run` and `t3s train`.

use std::path::PathBuf;

use t3s_core::plan::RunPlan;
use t3s_pipeline::PipelineError;
use t3s_report::{Budget, ReportError};

use crate::{
    args::PlanArgs,
    display::{Display, print_sft, print_summary},
    failure::Failure,
    interrupt::on_ctrl_c,
};

/// Runs a plan.
pub fn run(args: &PlanArgs, display: &Display) -> Result<(), Failure> {
    let loaded = super::load(args)?;
    let result = t3s_pipeline::run(&loaded.plan, &loaded.registry, display, &on_ctrl_c()?);
    let report = report(&loaded.plan, &result);
    let summary = result?;
    // In JSON the last event is the summary.
    display.result(&serde_json::json!({ "event": "done" }), || {
        print_summary(&summary);
        if let Some(report) = report {
            println!("report:    {}", report.display());
        }
    });
    Ok(())
}

/// Writes the page, of a run that stopped too: it says how far it came. The run is worth no less
/// when that fails, so the failure is a warning.
fn report<T>(plan: &RunPlan, result: &Result<T, PipelineError>) -> Option<PathBuf> {
    // The folder is another run's.
    if let Err(PipelineError::Locked { .. }) = result {
        return None;
    }
    match t3s_report::write(&plan.out, None, Budget::default()) {
        Ok(path) => Some(path),
        // A run that did not begin has nothing to report, and says itself why.
        Err(ReportError::Run(_)) if result.is_err() => None,
        Err(error) => {
            eprintln!(
                "warning: report.html was not written: {error}; t3s report {} tries again",
                plan.out.display()
            );
            None
        }
    }
}

/// Plain fine-tuning.
pub fn train(args: &PlanArgs, display: &Display) -> Result<(), Failure> {
    let loaded = super::load(args)?;
    let result = t3s_pipeline::train(&loaded.plan, &loaded.registry, display, &on_ctrl_c()?);
    report(&loaded.plan, &result);
    let summary = result?;
    display.result(&summary, || print_sft(&summary));
    Ok(())
}
