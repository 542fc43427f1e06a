//! The whole run: the stages in their order, each a function of the plan's sections it reads and of
//! what came before.

mod bottleneck_stage;
mod compared;
mod reference;
pub mod sft;
mod stages;
mod trajectory;
mod watched;

pub use trajectory::{Trajectory, evenly};
pub(crate) use watched::Watched;

use std::{
    cell::{OnceCell, RefCell},
    path::Path,
};

use self::{bottleneck_stage::Found, stages::Scores};

use serde_json::{Value, json};
use t3s_core::{
    CheckpointRef, Corpus, Fingerprint,
    plan::{self, Resolved, RunPlan},
    registry::{Kind, Registry},
};
use t3s_data::Tokenizer;

use crate::{
    corpus,
    error::PipelineError,
    events::{Event, Observer, Recorder},
    grader::Grader,
    interrupt::Interrupt,
    run_folder::RunFolder,
    selector::Selector,
    stage::{Done, StageKey, Stages, write_json},
    student::Student,
    summary::{CorpusSummary, Summary},
    training::{TrainLog, checkpoint_folder},
};

/// Runs `plan` in its run folder: does what is not done yet, and ends with the summary.
///
/// # Errors
/// What the first failing stage says. What was done until then stays, and the next run goes on from
/// there; after [`PipelineError::Interrupted`] bit for bit.
pub fn run(
    plan: &RunPlan,
    registry: &Registry,
    observer: &dyn Observer,
    interrupt: &Interrupt,
) -> Result<Summary, PipelineError> {
    in_folder(
        plan,
        registry,
        observer,
        interrupt,
        |run, folder, recorder| {
            let summary = run.summary(folder)?;
            write_json(&folder.path().join("summary.json"), &summary)?;
            recorder.event(&Event::Summary(Box::new(summary.clone())));
            Ok(summary)
        },
    )
}

/// Does the stages of `plan` that do not depend on what is selected: up to the scores, and the
/// examination of everything that the student is compared with. A run that differs in its selection
/// or in its training takes them over.
///
/// # Errors
/// As [`run`].
pub fn prepare(
    plan: &RunPlan,
    registry: &Registry,
    observer: &dyn Observer,
    interrupt: &Interrupt,
) -> Result<(), PipelineError> {
    in_folder(plan, registry, observer, interrupt, |run, _, _| {
        let before = run.before_selection()?;
        let models = run.compared(before.probe.as_ref(), &before.found.bottleneck)?;
        run.evaluate_models(&before.corpus, models).map(|_| ())
    })
}

/// Locks the plan's run folder, writes down what is run, and runs `body`.
fn in_folder<T>(
    plan: &RunPlan,
    registry: &Registry,
    observer: &dyn Observer,
    interrupt: &Interrupt,
    body: impl FnOnce(&Run<'_>, &RunFolder, &Recorder<'_>) -> Result<T, PipelineError>,
) -> Result<T, PipelineError> {
    let folder = RunFolder::open(&plan.out)?;
    let recorder = Recorder::new(folder.path(), observer)?;
    let fingerprint = plan.fingerprint();
    folder.save_plan(&plan.to_toml(), fingerprint.as_str())?;
    recorder.event(&Event::RunStarted {
        name: plan.name.clone(),
        plan: fingerprint.to_string(),
        out: plan.out.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
    });
    let result = Run::open(plan, registry, &folder, &recorder, interrupt)
        .and_then(|run| body(&run, &folder, &recorder))
        .and_then(|result| recorder.check().map(|()| result));
    if let Err(error) = &result {
        recorder.event(&Event::Stopped {
            message: error.to_string(),
            interrupted: matches!(error, PipelineError::Interrupted { .. }),
        });
    }
    result
}

/// Everything that the stages share.
struct Run<'r> {
    plan: &'r RunPlan,
    registry: &'r Registry,
    components: Resolved,
    student: Student,
    tokenizer: Tokenizer,
    grader: Grader,
    stages: Stages<'r>,
    recorder: &'r Recorder<'r>,
    interrupt: &'r Interrupt,
    /// The other student's run, where its trajectory is read.
    selector: Option<Selector>,
    /// Fingerprint of the student's weights.
    weights: Fingerprint,
    /// Loaded when the first stage that is not stored needs it.
    corpus: OnceCell<Corpus>,
    warnings: RefCell<Vec<String>>,
}

/// A model that stages load: one of the probe's checkpoints, or the trained student.
#[derive(Debug, Clone)]
struct Model {
    /// `base`, `step-000005`, `student`.
    name: String,
    /// The probe's step, where it is one of its checkpoints.
    step: Option<u64>,
    /// Where its weights are.
    folder: std::path::PathBuf,
    /// What identifies its weights.
    key: Value,
}

/// What stands before the selection.
struct Before {
    corpus: Done<CorpusSummary>,
    /// None where another student's trajectory is read.
    probe: Option<Done<TrainLog>>,
    /// The run that laid down the trajectory.
    log: TrainLog,
    found: Found,
    scores: Scores,
}

impl<'r> Run<'r> {
    fn open(
        plan: &'r RunPlan,
        registry: &'r Registry,
        folder: &'r RunFolder,
        recorder: &'r Recorder<'r>,
        interrupt: &'r Interrupt,
    ) -> Result<Self, PipelineError> {
        let components = plan::components(plan, registry)?;
        let student = Student::open(&plan.student, &plan.device, registry)?;
        let tokenizer = student.tokenizer(&plan.data)?;
        let weights = student.weights(&plan.student.path)?;
        let grader = Grader::new(&plan.grader)?;
        if !plan.eval.data.as_os_str().is_empty() {
            // They are asked last: what is wrong with them should not be found after the training.
            corpus::load_held_out(&plan.eval, &plan.data.system, &tokenizer, &grader)?;
        }
        Ok(Self {
            plan,
            registry,
            components,
            grader,
            stages: Stages::new(folder, recorder, interrupt),
            recorder,
            interrupt,
            weights,
            selector: plan.selection.selector().map(Selector::open).transpose()?,
            student,
            tokenizer,
            corpus: OnceCell::new(),
            warnings: RefCell::default(),
        })
    }

    fn before_selection(&self) -> Result<Before, PipelineError> {
        let corpus = self.corpus_stage()?;
        if let Some(selector) = &self.selector {
            let scores = self.selector_scores(selector)?;
            let summary = &selector.summary;
            let found = Found {
                bottleneck: summary.bottleneck.clone(),
                accuracy: summary.train_accuracy.clone(),
                logp: summary.answer_logp.clone(),
            };
            self.recorder
                .event(&Event::Bottleneck(found.bottleneck.clone()));
            return Ok(Before {
                corpus,
                probe: None,
                log: summary.probe.clone(),
                found,
                scores,
            });
        }
        let (probe, found) = match self.watched_probe(&corpus)? {
            Some(watched) => watched,
            None => {
                let probe = self.probe_stage(&corpus.key)?;
                let found = self.find_bottleneck(&corpus, &probe)?;
                (probe, found)
            }
        };
        self.recorder
            .event(&Event::Bottleneck(found.bottleneck.clone()));
        let scores = self.score_stages(&corpus, &probe, found.bottleneck.step)?;
        self.trajectory_stage(&corpus, &probe)?;
        Ok(Before {
            corpus,
            log: probe.output.clone(),
            probe: Some(probe),
            found,
            scores,
        })
    }

    fn summary(&self, folder: &RunFolder) -> Result<Summary, PipelineError> {
        let Before {
            corpus,
            probe,
            log,
            found,
            scores,
        } = self.before_selection()?;
        let selection = self.select_stage(&corpus, &scores)?;
        self.recorder
            .event(&Event::Selection(selection.output.clone()));
        let selection_file = selection.folder.join("selection.parquet");
        folder.link("selection.parquet", &selection_file);
        let train = self.train_stage(&corpus, &scores, &selection, probe.as_ref())?;
        if train.output.kept_tokens == 0 {
            let strategy = &self.plan.selection.strategy;
            self.warn(
                "train",
                format!(
                    "{strategy:?} kept no token in any step, so nothing was learnt; loosen its \
                     threshold or share in [selection]"
                ),
            );
        }
        let student = self.trained(&train);
        folder.link("student", &student.folder);
        let mut models = self.compared(probe.as_ref(), &found.bottleneck)?;
        models.extend(self.compared_of(&student, probe.as_ref(), &found.bottleneck)?);
        let evaluation = self.evaluate_models(&corpus, models)?;
        let stages = self.stages.costs();
        Ok(Summary {
            name: self.plan.name.clone(),
            plan: self.plan.fingerprint().to_string(),
            seed: self.plan.seed,
            version: env!("CARGO_PKG_VERSION").into(),
            out: self.plan.out.clone(),
            adapter: self.student.adapter_name.clone(),
            parameters: self.student.spec.n_parameters() as u64,
            corpus: corpus.output,
            selector: self.plan.selection.selector().map(Path::to_owned),
            probe: log,
            train_accuracy: found.accuracy,
            answer_logp: found.logp,
            bottleneck: found.bottleneck,
            selection: selection.output,
            train: train.output,
            evaluation,
            seconds: stages.iter().map(|stage| stage.seconds).sum(),
            stages,
            warnings: self.warnings.take(),
            student: student.folder,
            selection_file,
        })
    }

    /// The training data, read when first asked for.
    fn corpus(&self) -> Result<&Corpus, PipelineError> {
        if let Some(corpus) = self.corpus.get() {
            return Ok(corpus);
        }
        let corpus = corpus::load(
            &self.plan.data,
            &self.tokenizer,
            &self.student,
            &self.grader,
        )?;
        Ok(self.corpus.get_or_init(|| corpus))
    }

    fn corpus_stage(&self) -> Result<Done<CorpusSummary>, PipelineError> {
        let (data, extract) = (&self.plan.data, &self.plan.grader.extract);
        let inputs = corpus::inputs(data, extract, &self.tokenizer, &self.student)?;
        let key = StageKey::new("corpus", 2, inputs);
        let done = self.stages.run(&key, |work| {
            let corpus = self.corpus()?;
            corpus::write_prompts(&work.join(corpus::PROMPTS), corpus, &self.tokenizer)?;
            Ok(corpus::summarise(corpus))
        })?;
        for warning in &done.output.warnings {
            self.warn("corpus", warning);
        }
        Ok(done)
    }

    fn warn(&self, stage: &str, message: impl Into<String>) {
        let message = message.into();
        self.warnings
            .borrow_mut()
            .push(format!("{stage}: {message}"));
        self.recorder.warn(stage, message);
    }

    /// What every stage that computes with the model reads of `[student]`, and of the plugin that
    /// brings its adapter.
    fn family(&self) -> Value {
        self.family_of(&self.student)
    }

    fn family_of(&self, student: &Student) -> Value {
        let name = &student.adapter_name;
        let mut family = json!({ "adapter": name, "options": student.options() });
        let origin = self
            .registry
            .get(Kind::Adapter, name)
            .map(|entry| Path::new(entry.origin));
        let file = origin.ok().and_then(Path::file_name);
        let digest = file.and_then(|file| self.plan.plugins.sha256.get(file.to_str()?));
        if let Some(digest) = digest {
            family["plugin"] = json!(digest);
        }
        family
    }

    fn base(&self) -> Model {
        Model {
            name: "base".into(),
            step: Some(0),
            folder: self.student.path.clone(),
            key: json!({ "weights": self.weights }),
        }
    }

    /// The probe's checkpoint after `step` steps; step 0 is the base.
    fn checkpoint(&self, probe: &Done<TrainLog>, step: u64) -> Model {
        if step == 0 {
            return self.base();
        }
        Model {
            name: checkpoint_name(step),
            step: Some(step),
            folder: checkpoint_folder(&probe.folder, step),
            key: json!({ "run": probe.key, "step": step }),
        }
    }

    /// The base and every checkpoint of the probe.
    fn trajectory(&self, probe: &Done<TrainLog>) -> Vec<Model> {
        std::iter::once(0)
            .chain(probe.output.checkpoints.iter().copied())
            .map(|step| self.checkpoint(probe, step))
            .collect()
    }

    fn trained(&self, train: &Done<TrainLog>) -> Model {
        Model {
            name: "student".into(),
            step: None,
            folder: checkpoint_folder(&train.folder, train.output.steps),
            key: json!({ "run": train.key, "step": train.output.steps }),
        }
    }
}

/// What the probe's checkpoint after `step` steps is called; step 0 is the base.
fn checkpoint_name(step: u64) -> String {
    match step {
        0 => "base".to_owned(),
        step => format!("step-{step:06}"),
    }
}

/// The probe's step that `at` names, given where the bottleneck is and the probe's last step; all
/// of `checkpoints` (and the base) for `step:*`.
fn steps_of(at: &CheckpointRef, bottleneck: u64, checkpoints: &[u64]) -> Vec<u64> {
    match at {
        CheckpointRef::Base => vec![0],
        CheckpointRef::Bottleneck => vec![bottleneck],
        CheckpointRef::Final => checkpoints.last().copied().into_iter().collect(),
        CheckpointRef::Step(step) => vec![*step],
        CheckpointRef::EveryStep => std::iter::once(0)
            .chain(checkpoints.iter().copied())
            .collect(),
        // `core::plan` refuses what the run does not have before it starts.
        _ => Vec::new(),
    }
}
