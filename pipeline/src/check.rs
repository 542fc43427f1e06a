//! Everything about a plan that can be known before its model is loaded.

use t3s_core::{plan::RunPlan, registry::Registry};

use crate::{
    corpus,
    error::PipelineError,
    estimate::{Prediction, predict},
    evaluate::questions,
    grader::Grader,
    selector::Selector,
    student::Student,
    summary::CorpusSummary,
};

/// A plan that can be run, and what it will cost.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The model adapter.
    pub adapter: String,
    /// The data, counted.
    pub corpus: CorpusSummary,
    /// Problems of the evaluation.
    pub problems: u64,
    /// Memory and time.
    pub prediction: Prediction,
}

/// Opens everything that `plan` names, but no weights: config, tokenizer, data, grader.
///
/// # Errors
/// The first thing that a run would stop at.
pub fn check(plan: &RunPlan, registry: &Registry) -> Result<Checked, PipelineError> {
    let student = Student::open(&plan.student, &plan.device, registry)?;
    student.expect_weights()?;
    let tokenizer = student.tokenizer(&plan.data)?;
    let grader = Grader::new(&plan.grader)?;
    let corpus = corpus::load(&plan.data, &tokenizer, &student, &grader)?;
    if let Some(folder) = plan.selection.selector() {
        let selector = Selector::open(folder)?;
        let (table, meta) = selector.tokens()?;
        selector.agree((&table, &meta), &corpus, &tokenizer)?;
    }
    let corpus = corpus::summarise(&corpus);
    let problems = if plan.eval.data.as_os_str().is_empty() {
        match plan.eval.limit as u64 {
            0 => corpus.problems,
            limit => corpus.problems.min(limit),
        }
    } else {
        let system = &plan.data.system;
        questions(corpus::load_held_out(
            &plan.eval, system, &tokenizer, &grader,
        )?)
        .len() as u64
    };
    let prediction = predict(plan, &student, &corpus, problems)?;
    Ok(Checked {
        adapter: student.adapter_name,
        corpus,
        problems,
        prediction,
    })
}
