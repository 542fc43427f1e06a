//! `t3s grads`: the gradient of every parameter for one batch.

use t3s_core::plan::GraderPlan;
use t3s_pipeline::offline::{GradientsPlan, Session, gradients_file};

use crate::{args::GradsArgs, display::Display, failure::Failure, interrupt::on_ctrl_c};

/// Writes gradients.
pub fn run(args: &GradsArgs, display: &Display) -> Result<(), Failure> {
    let subject = super::subject(&args.model, &args.data, GraderPlan::default())?;
    let plan = GradientsPlan {
        normaliser: args.normaliser,
        packing: args.pack,
        batch_tokens: args.batch_tokens,
        recompute: args.recompute,
    };
    let session = Session {
        registry: &super::registry(&args.model.plugins)?,
        observer: display,
        interrupt: &on_ctrl_c()?,
    };
    let report = gradients_file(&subject, &plan, &args.out, session)?;
    display.result(&report, || {
        println!(
            "loss {:.6} nats over {} examples, {} tokens, {} of them kept; gradient norm {:.6e}",
            report.loss, report.examples, report.tokens, report.kept_tokens, report.grad_norm
        );
        println!(
            "{} tensors and `loss`: {}",
            report.tensors,
            report.out.display()
        );
    });
    Ok(())
}
