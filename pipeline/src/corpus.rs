//! The training data: what identifies it, loaded when a stage needs it, counted.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use t3s_core::{
    ComponentError, Corpus, Draw, Example, Fingerprint, ModelBatch, atomic,
    plan::{DataPlan, EvalPlan},
};
use t3s_data::{Problem, Tokenizer, load_corpus, load_problems};
use t3s_engine::score::PackedExamples;

use crate::{
    error::PipelineError, evaluate::training_questions, grader::Grader, student::Student,
    summary::CorpusSummary,
};

/// Row numbers that a warning lists before it says "and more".
const ROWS_LISTED: usize = 8;

/// What identifies the corpus without reading it: the bytes it is made from and how.
///
/// # Errors
/// When the data file cannot be read.
pub fn inputs(
    plan: &DataPlan,
    extract: &str,
    tokenizer: &Tokenizer,
    student: &Student,
) -> Result<Value, PipelineError> {
    let mut options = plan.clone();
    // Where a file lies is not what is in it.
    options.train = PathBuf::new();
    options.chat_template = PathBuf::new();
    Ok(json!({
        "data": file_fingerprint(&plan.train, "data.train")?,
        "tokenizer": tokenizer.fingerprint(),
        "chat_template": tokenizer.template_fingerprint(),
        "vocab": student.spec.vocab,
        "neutral_weight": student.weighting()?.neutral(),
        "extract": extract,
        "options": options,
    }))
}

/// The same of held-out problems.
///
/// # Errors
/// When the file cannot be read.
pub fn problem_inputs(
    plan: &EvalPlan,
    system: &str,
    extract: &str,
    tokenizer: &Tokenizer,
) -> Result<Value, PipelineError> {
    Ok(json!({
        "data": file_fingerprint(&plan.data, "eval.data")?,
        "tokenizer": tokenizer.fingerprint(),
        "chat_template": tokenizer.template_fingerprint(),
        "system": system,
        "extract": extract,
        "format": plan.format,
        "fields": plan.fields,
        "limit": plan.limit,
    }))
}

fn file_fingerprint(path: &Path, key: &str) -> Result<Fingerprint, PipelineError> {
    Fingerprint::of_file(path)
        .map_err(|source| PipelineError::plan(key, format!("{}: {source}", path.display())))
}

/// Reads, templates, tokenises, masks and truncates the training data, and asks the student's
/// objective whether it can make rows of every example.
///
/// # Errors
/// Those of the data: each names file and line; and those of the objective: each names the example.
pub fn load(
    plan: &DataPlan,
    tokenizer: &Tokenizer,
    student: &Student,
    grader: &Grader,
) -> Result<Corpus, PipelineError> {
    let extract = |text: &str| grader.extract(text).map(str::to_owned);
    let neutral = student.weighting()?.neutral();
    let corpus = load_corpus(plan, tokenizer, student.spec.vocab, neutral, &extract)
        .map_err(PipelineError::data("corpus"))?;
    try_objective(&corpus, student).map_err(|refused| {
        PipelineError::plan(
            "student.objective",
            format!("{}: {refused}", plan.train.display()),
        )
    })?;
    Ok(corpus)
}

/// Has the objective make rows of every example once, as it will in training, so that what it
/// refuses is found before anything is computed.
fn try_objective(corpus: &Corpus, student: &Student) -> Result<(), ComponentError> {
    let objective = student.fresh_objective()?;
    let mut rows = ModelBatch::default();
    for example in &corpus.examples {
        let mut packed = PackedExamples::new([example]);
        objective.prepare(&packed.as_batch(), Draw::default(), &mut rows)?;
        // With the weight 1 nothing is left to chance: an id that the model lacks shows now.
        packed.weights.fill(1.0);
        objective.prepare(&packed.as_batch(), Draw::default(), &mut rows)?;
        let vocab = student.spec.vocab;
        if let Some(id) = rows.input_ids.iter().find(|id| **id as usize >= vocab) {
            return Err(ComponentError::Failed(format!(
                "example {}: the model is to read the id {id}, but its vocabulary ends at {vocab}; \
                 where that is the mask token, name the right one in mask_id",
                example.id
            )));
        }
    }
    Ok(())
}

/// Reads held-out problems.
///
/// # Errors
/// Those of the data, and when no problem has a gold answer.
pub fn load_held_out(
    plan: &EvalPlan,
    system: &str,
    tokenizer: &Tokenizer,
    grader: &Grader,
) -> Result<Vec<Problem>, PipelineError> {
    let extract = |text: &str| grader.extract(text).map(str::to_owned);
    let problems = load_problems(
        &plan.data,
        plan.format,
        &plan.fields,
        plan.limit,
        system,
        tokenizer,
        &extract,
    )
    .map_err(PipelineError::data("evaluate"))?;
    if problems.iter().all(|problem| problem.answer.is_none()) {
        return Err(PipelineError::plan(
            "eval.data",
            format!(
                "{}: none of its {} problems has a gold answer; name the field in \
                 eval.fields.answer, or the rule that finds it in the solution in grader.extract",
                plan.data.display(),
                problems.len()
            ),
        ));
    }
    Ok(problems)
}

/// The file beside the stage `corpus` that says in words what each example asks: a token store has
/// the response only.
pub const PROMPTS: &str = "prompts.jsonl";

/// One line of [`PROMPTS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// The example's id: its row number in the data.
    pub id: u64,
    /// What comes before the response, special tokens included.
    pub text: String,
    /// The gold answer.
    pub answer: Option<String>,
}

/// Writes what every example of `corpus` asks into `path`.
///
/// # Errors
/// When a prompt cannot be decoded or nothing can be written.
pub fn write_prompts(
    path: &Path,
    corpus: &Corpus,
    tokenizer: &Tokenizer,
) -> Result<(), PipelineError> {
    let mut lines = Vec::new();
    for example in &corpus.examples {
        let text = tokenizer
            .decode(&example.ids[..example.prompt_len], false)
            .map_err(PipelineError::data("corpus"))?;
        let prompt = Prompt {
            id: example.id,
            text,
            answer: example.answer.clone(),
        };
        serde_json::to_writer(&mut lines, &prompt).expect("texts and numbers are JSON");
        lines.push(b'\n');
    }
    Ok(atomic::write(path, |file| file.write_all(&lines))?)
}

/// The corpus, counted.
pub fn summarise(corpus: &Corpus) -> CorpusSummary {
    let sum = |count: fn(&Example) -> usize| -> u64 {
        corpus.examples.iter().map(|e| count(e) as u64).sum()
    };
    let most = |count: fn(&Example) -> usize| -> u64 {
        let counts = corpus.examples.iter().map(|e| count(e) as u64);
        counts.max().unwrap_or(0)
    };
    let warnings = corpus.warnings.iter().map(|warning| {
        let rows: Vec<String> = warning
            .rows
            .iter()
            .take(ROWS_LISTED)
            .map(u64::to_string)
            .collect();
        let more = if warning.rows.len() > ROWS_LISTED {
            ", ..."
        } else {
            ""
        };
        format!(
            "{} ({} rows: {}{more})",
            warning.what,
            warning.rows.len(),
            rows.join(", ")
        )
    });
    CorpusSummary {
        examples: corpus.examples.len() as u64,
        tokens: sum(Example::n_tokens),
        response_tokens: sum(Example::n_trainable),
        longest: most(Example::n_tokens),
        longest_prompt: most(|example| example.prompt_len),
        problems: training_questions(corpus, 0).len() as u64,
        hashes: corpus.hashes.clone(),
        warnings: warnings.collect(),
    }
}
