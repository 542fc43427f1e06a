//! `t3s report`: the page of a run.

use serde_json::json;
use t3s_report::Budget;

use crate::{args::ReportArgs, display::Display, failure::Failure};

/// Writes the page.
pub fn run(args: &ReportArgs, display: &Display) -> Result<(), Failure> {
    let budget = Budget {
        traces: args.traces,
        ..Budget::default()
    };
    let out = t3s_report::write(&args.run, args.out.as_deref(), budget)?;
    display.result(&json!({ "report": out }), || {
        println!("report: {}", out.display());
    });
    Ok(())
}
