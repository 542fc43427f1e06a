//! `t3s score`: a token store without a plan.

use t3s_core::plan::GraderPlan;
use t3s_engine::{Columns, Scoring, head::SketchSpec};
use t3s_pipeline::offline::{Session, score_file};

use crate::{
    args::ScoreArgs,
    display::{Display, duration},
    failure::Failure,
    interrupt::on_ctrl_c,
};

/// Scores a data file.
pub fn run(args: &ScoreArgs, display: &Display) -> Result<(), Failure> {
    let subject = super::subject(&args.model, &args.data, GraderPlan::default())?;
    let how = Scoring {
        columns: Columns {
            sketch: (args.sketch_width > 0).then_some(SketchSpec {
                width: args.sketch_width,
                seed: args.seed,
            }),
            ..Columns::SCALARS
        },
        batch_tokens: args.batch_tokens,
        estimator: args.estimator,
        draws: args.draws,
        seed: args.seed,
    };
    let session = Session {
        registry: &super::registry(&args.model.plugins)?,
        observer: display,
        interrupt: &on_ctrl_c()?,
    };
    let report = score_file(&subject, &how, &args.out, session)?;
    display.result(&report, || {
        println!(
            "{} response tokens of {} examples, mean log-probability {:.4} nats, {}",
            report.tokens,
            report.examples,
            report.mean_logp,
            duration(report.seconds)
        );
        println!("store: {}", report.out.display());
    });
    Ok(())
}
