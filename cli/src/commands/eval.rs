//! `t3s eval`: generated and graded answers.

use t3s_core::plan::{EvalPlan, FieldNames, GeneratePlan, GraderPlan};
use t3s_pipeline::{
    evaluate::Accuracy,
    offline::{Session, evaluate_file},
};

use crate::{
    args::EvalArgs,
    display::{Display, accuracy_row, accuracy_table},
    failure::Failure,
    interrupt::on_ctrl_c,
};

/// Examines a model.
pub fn run(args: &EvalArgs, display: &Display) -> Result<(), Failure> {
    let grader = GraderPlan {
        extract: args.extract.clone(),
        compare: args.compare,
    };
    let subject = super::subject(&args.model, &args.data, grader)?;
    let plan = EvalPlan {
        data: args.data.data.clone(),
        format: args.data.format,
        fields: FieldNames::default(),
        limit: args.data.limit,
        samples: args.samples,
        seed: args.seed,
        generate: GeneratePlan {
            max_new_tokens: args.max_new_tokens,
            temperature: args.temperature,
            top_p: args.top_p,
            top_k: args.top_k,
            batch: args.batch,
        },
    };
    let session = Session {
        registry: &super::registry(&args.model.plugins)?,
        observer: display,
        interrupt: &on_ctrl_c()?,
    };
    let accuracy = evaluate_file(&subject, &plan, &args.out, session)?;
    display.result(&accuracy, || {
        let model = args.model.model.display().to_string();
        println!("{}", Accuracy::asked(accuracy.problems, accuracy.samples));
        println!("{}", accuracy_table(vec![accuracy_row(model, &accuracy)]));
        println!("answers: {}", args.out.display());
    });
    Ok(())
}
