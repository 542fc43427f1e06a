//! `t3s merge`: arithmetic on weights.

use t3s_pipeline::merge::{MergeError, merge, parse};

use crate::{args::MergeArgs, display::Display, failure::Failure};

/// Writes the signed sum of models.
pub fn run(args: &MergeArgs, display: &Display) -> Result<(), Failure> {
    let failure = |error: MergeError| match error {
        MergeError::Expression(_) | MergeError::Exists(_) => Failure::usage(error),
        error => Failure::failed(error),
    };
    let terms = parse(&args.expression).map_err(failure)?;
    let merged = merge(&terms, &args.out).map_err(failure)?;
    display.result(&merged, || {
        println!(
            "{} tensors, {} weights: {}",
            merged.tensors,
            merged.weights,
            merged.out.display()
        );
    });
    Ok(())
}
