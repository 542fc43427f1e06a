//! What can be done with a model folder and a data file, without a plan and a run folder: score,
//! differentiate, examine.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use t3s_core::{
    Corpus, Fingerprint,
    corpus::CorpusHashes,
    plan::{DataPlan, DeviceChoice, EvalPlan, GraderPlan, Normaliser, Recompute, StudentPlan},
    registry::Registry,
};
use t3s_data::{
    Tokenizer,
    store::{self, StoreMeta},
};
use t3s_engine::{
    Accumulation, Grads, Part, Scoring, checkpoint::save_tensors, loss_and_gradients, score,
    tokens_read,
};

use crate::{
    corpus,
    error::PipelineError,
    evaluate::{Accuracy, Examination, questions},
    events::{Event, Observer, Recorder},
    grader::Grader,
    interrupt::Interrupt,
    student::Student,
};

/// What a token store is made under.
pub fn store_meta(
    student: &Student,
    hashes: CorpusHashes,
    weights: Fingerprint,
    estimator: String,
) -> StoreMeta {
    StoreMeta {
        estimator,
        hashes,
        weights,
        adapter: student.adapter_name.clone(),
        adapter_options: student.options().to_string(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Who is told, and who may stop it.
#[derive(Clone, Copy)]
pub struct Session<'s> {
    /// Every component.
    pub registry: &'s Registry,
    /// Who is told.
    pub observer: &'s dyn Observer,
    /// Who may stop it.
    pub interrupt: &'s Interrupt,
}

/// A model and a data file.
#[derive(Debug, Clone)]
pub struct Subject {
    /// A Hugging Face folder, or a PEFT adapter of the model in `student.path`.
    pub model: PathBuf,
    /// The family's options; its `path` is `model`, or what `model` adapts where it is an adapter.
    pub student: StudentPlan,
    /// The rows.
    pub data: DataPlan,
    /// How answers are found in them.
    pub grader: GraderPlan,
    /// Where it computes.
    pub device: DeviceChoice,
}

/// A subject, opened.
struct Opened {
    student: Student,
    tokenizer: Tokenizer,
    grader: Grader,
}

impl Subject {
    fn open(&self, registry: &Registry) -> Result<Opened, PipelineError> {
        let student = Student::open(&self.student, &self.device, registry)?;
        Ok(Opened {
            tokenizer: student.tokenizer(&self.data)?,
            grader: Grader::new(&self.grader)?,
            student,
        })
    }

    fn corpus(&self, opened: &Opened) -> Result<Corpus, PipelineError> {
        corpus::load(
            &self.data,
            &opened.tokenizer,
            &opened.student,
            &opened.grader,
        )
    }
}

/// What was scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreReport {
    /// Examples.
    pub examples: u64,
    /// Rows of the store: response tokens.
    pub tokens: u64,
    /// Mean log-probability, nats.
    pub mean_logp: f64,
    /// What it took.
    pub seconds: f64,
    /// The store.
    pub out: PathBuf,
}

/// Scores the response tokens of `subject` and writes the token store `out`.
///
/// # Errors
/// When model or data cannot be read, a number is not finite, `out` cannot be written, or it was
/// asked to stop.
pub fn score_file(
    subject: &Subject,
    how: &Scoring,
    out: &Path,
    session: Session<'_>,
) -> Result<ScoreReport, PipelineError> {
    const STAGE: &str = "score";
    let started = Instant::now();
    let recorder = Recorder::unrecorded(session.observer);
    let opened = subject.open(session.registry)?;
    let corpus = subject.corpus(&opened)?;
    warn_of(&corpus, &recorder);
    let objective = opened.student.objective()?;
    let weighting = objective.weighting();
    let total = tokens_read(&corpus.examples, how, weighting);
    let decoder = opened.student.load(&subject.model, STAGE)?;
    let scoring = Instant::now();
    let mut progress = |done: usize| -> ControlFlow<()> {
        recorder.event(&Event::Progress {
            stage: STAGE.to_owned(),
            done: done as u64,
            total: total as u64,
            unit: "tokens".to_owned(),
            tokens_per_second: done as f64 / scoring.elapsed().as_secs_f64().max(1e-9),
        });
        session.interrupt.flow()
    };
    let table = score(
        &decoder,
        objective.as_ref(),
        &corpus.examples,
        how,
        &mut progress,
    )
    .map_err(PipelineError::engine(STAGE))?;
    let weights = opened.student.weights(&subject.model)?;
    let meta = store_meta(
        &opened.student,
        corpus.hashes.clone(),
        weights,
        how.method(weighting),
    );
    store::write_table(out, &table, &meta).map_err(PipelineError::data(STAGE))?;
    let view = table.view();
    let logp = view
        .column("logp")
        .map_err(|source| PipelineError::Component {
            component: STAGE.to_owned(),
            source,
        })?;
    let sum: f64 = logp.iter().map(|l| f64::from(*l)).sum();
    Ok(ScoreReport {
        examples: corpus.examples.len() as u64,
        tokens: logp.len() as u64,
        mean_logp: sum / logp.len().max(1) as f64,
        seconds: started.elapsed().as_secs_f64(),
        out: out.to_owned(),
    })
}

/// How [`gradients_file`] computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientsPlan {
    /// What the summed loss is divided by.
    pub normaliser: Normaliser,
    /// All examples in as few passes as `batch_tokens` allows; false: one each.
    pub packing: bool,
    /// Most tokens per pass.
    pub batch_tokens: usize,
    /// Which activations are recomputed.
    pub recompute: Recompute,
}

/// What was differentiated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GradientsReport {
    /// The normalised loss, nats.
    pub loss: f64,
    /// Examples.
    pub examples: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Tokens with a weight above zero.
    pub kept_tokens: u64,
    /// Global 2-norm of the gradient.
    pub grad_norm: f64,
    /// Tensors written, `loss` aside.
    pub tensors: u64,
    /// The file.
    pub out: PathBuf,
}

/// Writes the gradient of every parameter for `subject`'s rows as one batch into the safetensors
/// file `out`, by Hugging Face tensor name, and the scalar `loss`.
///
/// # Errors
/// When model or data cannot be read, nothing is kept, a number is not finite, or `out` cannot be
/// written.
pub fn gradients_file(
    subject: &Subject,
    plan: &GradientsPlan,
    out: &Path,
    session: Session<'_>,
) -> Result<GradientsReport, PipelineError> {
    const STAGE: &str = "grads";
    let recorder = Recorder::unrecorded(session.observer);
    let opened = subject.open(session.registry)?;
    let corpus = subject.corpus(&opened)?;
    warn_of(&corpus, &recorder);
    let decoder = opened.student.load(&subject.model, STAGE)?;
    let how = Accumulation {
        normaliser: plan.normaliser,
        micro_batch_tokens: plan.batch_tokens,
        packing: plan.packing,
        recompute: plan.recompute,
        seed: 0,
        dropped_loss: false,
    };
    let part = Part {
        examples: corpus.examples.iter().collect(),
        draw: 0,
    };
    let mut grads = Grads::new(&decoder.params);
    let objective = opened.student.objective()?;
    let error = PipelineError::engine(STAGE);
    let loss = loss_and_gradients(&decoder, objective.as_ref(), &[part], &how, &mut grads)
        .map_err(&error)?;
    if loss.kept_tokens == 0 {
        return Err(PipelineError::plan(
            "data",
            format!(
                "{}: every token has the weight 0, so there is no loss",
                subject.data.train.display()
            ),
        ));
    }
    let engine = |source: candle_core::Error| error(source.into());
    let scalar = Tensor::new(loss.loss as f32, &Device::Cpu).map_err(engine)?;
    let mut tensors = vec![("loss".to_owned(), scalar)];
    for (id, param) in decoder.params.iter().filter(|(_, p)| p.trainable) {
        // A tensor that no row reached has the gradient zero.
        if let Some(slot) = grads.slot(id, &decoder.params).map_err(engine)? {
            tensors.push((param.name.clone(), slot.clone()));
        }
    }
    let grad_norm = grads.global_norm().map_err(engine)?;
    save_tensors(out, tensors.iter().map(|(name, t)| (name.clone(), t))).map_err(&error)?;
    Ok(GradientsReport {
        loss: loss.loss,
        examples: corpus.examples.len() as u64,
        tokens: loss.tokens as u64,
        kept_tokens: loss.kept_tokens as u64,
        grad_norm,
        tensors: tensors.len() as u64 - 1,
        out: out.to_owned(),
    })
}

/// Examines `subject.model` on the problems of `plan`, and writes every answer into `answers`
/// (JSONL).
///
/// # Errors
/// When model or problems cannot be read, no problem has a gold answer, `answers` cannot be written,
/// or it was asked to stop.
pub fn evaluate_file(
    subject: &Subject,
    plan: &EvalPlan,
    answers: &Path,
    session: Session<'_>,
) -> Result<Accuracy, PipelineError> {
    const STAGE: &str = "evaluate";
    let recorder = Recorder::unrecorded(session.observer);
    let opened = subject.open(session.registry)?;
    let system = &subject.data.system;
    let problems = corpus::load_held_out(plan, system, &opened.tokenizer, &opened.grader)?;
    let questions = questions(problems);
    let decoder = opened.student.load(&subject.model, STAGE)?;
    Examination {
        questions: &questions,
        samples: plan.samples,
        generate: &plan.generate,
        rule: &opened.student.decode,
        grader: &opened.grader,
        tokenizer: &opened.tokenizer,
        seed: plan.seed,
        stage: STAGE,
        recorder: &recorder,
        interrupt: session.interrupt,
    }
    .run(&decoder, answers)
}

fn warn_of(corpus: &Corpus, recorder: &Recorder<'_>) {
    for warning in corpus::summarise(corpus).warnings {
        recorder.warn("corpus", warning);
    }
}
