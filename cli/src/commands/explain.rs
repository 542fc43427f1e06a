//! `t3s explain`: which file and line a value comes from.

use t3s_core::plan;

use crate::{args::ExplainArgs, failure::Failure};

/// Explains a key.
pub fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let registry = super::registry(&[])?;
    let loaded = plan::load(&args.plan, &args.overrides, &registry)?;
    for explanation in loaded.explain(&args.key).map_err(Failure::usage)? {
        println!("{explanation}");
    }
    Ok(())
}
