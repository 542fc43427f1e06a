//! The stages from the probe to the evaluation. Each says in its key exactly what it reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use serde_json::{Value, json};
use t3s_core::{
    CheckpointRef, Fingerprint, Observable, ObservableRef, TokenTable, When,
    plan::{self, GeneratePlan, SelectionPlan, Then, TrainPlan},
};
use t3s_data::store::{self, StoreMeta};
use t3s_engine::{Columns, OnlineSelection, Scoring, head::SketchSpec, score, tokens_read};

use super::{Model, Run, checkpoint_name, steps_of};
use crate::{
    corpus,
    error::PipelineError,
    evaluate::{Accuracy, Examination, Question, questions, training_questions},
    events::Event,
    select::{Scored, Selection, apply, describe, extremes, join, only, signals, weigh},
    selector::Selector,
    stage::{Done, StageKey},
    student::Student,
    summary::{CorpusSummary, Evaluation, Role},
    training::{TrainLog, Training},
};

/// Where a stage that examines a model keeps the answers.
const ANSWERS: &str = "answers.jsonl";
/// Where a stage that scores a model keeps the columns.
pub(super) const TOKENS: &str = "tokens.parquet";
/// Width of the sketches when a signal asks for them and the plan names none.
const DEFAULT_SKETCH_WIDTH: usize = 64;

/// One checkpoint's columns. Sketches are a stage of their own, so that a selection that asks for
/// them shares all others with one that does not.
pub(super) struct ScoreStage {
    /// What columns know the checkpoint by.
    pub(super) names: Vec<CheckpointRef>,
    pub(super) scalars: Done<u64>,
    pub(super) sketches: Option<Done<u64>>,
}

impl ScoreStage {
    fn parts(&self) -> impl Iterator<Item = &Done<u64>> {
        std::iter::once(&self.scalars).chain(&self.sketches)
    }
}

/// All scored checkpoints.
pub(super) struct Scores {
    stages: Vec<ScoreStage>,
}

impl Run<'_> {
    pub(super) fn probe_stage(
        &self,
        corpus: &Fingerprint,
    ) -> Result<Done<TrainLog>, PipelineError> {
        let plan = &self.plan.probe;
        let key = StageKey::new(
            "probe",
            2,
            json!({
                "student": self.weights,
                "family": self.family(),
                "corpus": corpus,
                "training": train_key(&plan.training),
                "checkpoint_every": plan.checkpoint_every,
                "seed": plan.seed,
            }),
        );
        self.stages.run(&key, |work| {
            let training = Training {
                stage: "probe",
                student: &self.student,
                examples: Arc::new(self.corpus()?.examples.clone()),
                online: None,
                plan: &plan.training,
                seed: plan.seed,
                checkpoint_every: plan.checkpoint_every,
                start: None,
                watch: None,
                recorder: self.recorder,
                interrupt: self.interrupt,
            };
            training.run(work)
        })
    }

    /// Scores the base, the bottleneck, and every other checkpoint that a signal reads.
    pub(super) fn score_stages(
        &self,
        corpus: &Done<CorpusSummary>,
        probe: &Done<TrainLog>,
        bottleneck: u64,
    ) -> Result<Scores, PipelineError> {
        let names = self.wanted(bottleneck, &probe.output.checkpoints);
        let mut stages = names
            .into_iter()
            .map(|(step, names)| {
                let model = self.checkpoint(probe, step);
                self.score_stage(corpus, &self.student, &model, names)
            })
            .collect::<Result<Vec<_>, PipelineError>>()?;
        stages.extend(self.reference_stage(corpus)?);
        Ok(Scores { stages })
    }

    /// What the run of another student has recorded, as scores of this one.
    pub(super) fn selector_scores(&self, selector: &Selector) -> Result<Scores, PipelineError> {
        let summary = &selector.summary;
        let names = self.wanted(summary.bottleneck.step, &summary.probe.checkpoints);
        let mut stages = Vec::new();
        for (step, names) in names {
            let model = checkpoint_name(step);
            let scalars = selector.stage(&format!("score-{model}"), TOKENS)?;
            let sketches = match self.sketch(&names) {
                Some(_) => selector.stage(&format!("sketch-{model}"), TOKENS)?,
                None => None,
            };
            stages.push(ScoreStage {
                names,
                scalars: scalars.ok_or_else(|| selector.lacks(step))?,
                sketches,
            });
        }
        let (table, meta) = selector.tokens()?;
        let odd = selector.agree((&table, &meta), self.corpus()?, &self.tokenizer)?;
        if let Some(odd) = odd {
            self.warn("select", odd);
        }
        Ok(Scores { stages })
    }

    /// The steps whose columns are read, with the names that the columns are known by.
    fn wanted(&self, bottleneck: u64, checkpoints: &[u64]) -> BTreeMap<u64, Vec<CheckpointRef>> {
        let mut names: BTreeMap<u64, Vec<CheckpointRef>> = BTreeMap::new();
        let wanted: BTreeSet<CheckpointRef> = self
            .components
            .observables
            .iter()
            .map(|column| column.at.clone())
            .chain([CheckpointRef::Base, CheckpointRef::Bottleneck])
            .collect();
        for at in wanted {
            for step in steps_of(&at, bottleneck, checkpoints) {
                let name = match at {
                    CheckpointRef::EveryStep => CheckpointRef::Step(step),
                    _ => at.clone(),
                };
                let known = names.entry(step).or_default();
                if !known.contains(&name) {
                    known.push(name);
                }
            }
        }
        names
    }

    /// The sketches that the plan asks for, or a signal at a checkpoint of these `names`.
    fn sketch(&self, names: &[CheckpointRef]) -> Option<SketchSpec> {
        let of = |column: &ObservableRef| {
            let here = names.contains(&column.at)
                || (column.at == CheckpointRef::EveryStep
                    && names.iter().any(|at| matches!(at, CheckpointRef::Step(_))));
            column.observable == Observable::Sketch && here
        };
        let asked = self.components.observables.iter().any(of);
        let width = match (self.plan.score.sketch_width, asked) {
            (0, false) => return None,
            (0, true) => DEFAULT_SKETCH_WIDTH,
            (width, _) => width,
        };
        Some(SketchSpec {
            width,
            seed: self.plan.score.sketch_seed.unwrap_or(self.plan.probe.seed),
        })
    }

    /// `student` is what `model` is of: the run's, or that of the reference.
    pub(super) fn score_stage(
        &self,
        corpus: &Done<CorpusSummary>,
        student: &Student,
        model: &Model,
        names: Vec<CheckpointRef>,
    ) -> Result<ScoreStage, PipelineError> {
        let how = self.scoring(Columns::SCALARS);
        let inputs = json!({
            "model": model.key,
            "family": self.family_of(student),
            "corpus": corpus.key,
            "batch_tokens": how.batch_tokens,
            "estimator": how.method(student.weighting()?),
        });
        // One pass gives both where neither is there.
        let mut scalars = None;
        let mut sketches = None;
        if let Some(spec) = self.sketch(&names) {
            let key = StageKey::new(
                format!("sketch-{}", model.name),
                1,
                json!({ "score": inputs, "width": spec.width, "seed": spec.seed }),
            );
            sketches = Some(self.stages.run(&key, |work| {
                let table = self.scored(student, model, key.name(), Some(spec))?;
                let columns = [Observable::Sketch];
                let n = self.write_columns(work, (student, model), &table, key.name(), &columns)?;
                scalars = Some(table);
                Ok(n)
            })?);
        }
        let key = StageKey::new(format!("score-{}", model.name), 2, inputs);
        let scalars = self.stages.run(&key, |work| {
            let table = match scalars {
                Some(table) => table,
                None => self.scored(student, model, key.name(), None)?,
            };
            let columns = Observable::ALL.map(|o| (o != Observable::Sketch).then_some(o));
            let columns: Vec<Observable> = columns.into_iter().flatten().collect();
            self.write_columns(work, (student, model), &table, key.name(), &columns)
        })?;
        Ok(ScoreStage {
            names,
            scalars,
            sketches,
        })
    }

    /// One pass of `model` over the corpus.
    fn scored(
        &self,
        student: &Student,
        model: &Model,
        stage: &str,
        sketch: Option<SketchSpec>,
    ) -> Result<TokenTable, PipelineError> {
        let corpus = self.corpus()?;
        let decoder = student.load(&model.folder, stage)?;
        let how = self.scoring(Columns {
            sketch,
            ..Columns::SCALARS
        });
        score(
            &decoder,
            student.objective()?.as_ref(),
            &corpus.examples,
            &how,
            &mut self.token_progress(stage, &how)?,
        )
        .map_err(PipelineError::engine(stage))
    }

    /// Writes `observables` of `table` as a token store; says how many tokens it has.
    fn write_columns(
        &self,
        work: &Path,
        (student, model): (&Student, &Model),
        table: &TokenTable,
        stage: &str,
        observables: &[Observable],
    ) -> Result<u64, PipelineError> {
        let meta = self.store_meta(student, model)?;
        let part = only(table, observables)?;
        store::write_table(&work.join(TOKENS), &part, &meta).map_err(PipelineError::data(stage))?;
        Ok(table.view().n_tokens() as u64)
    }

    /// How checkpoints are scored.
    pub(super) fn scoring(&self, columns: Columns) -> Scoring {
        Scoring::of(&self.plan.score, columns, self.plan.probe.seed)
    }

    pub(super) fn store_meta(
        &self,
        student: &Student,
        model: &Model,
    ) -> Result<StoreMeta, PipelineError> {
        let estimator = self.scoring(Columns::SCALARS).method(student.weighting()?);
        Ok(crate::offline::store_meta(
            student,
            self.corpus()?.hashes.clone(),
            student.weights(&model.folder)?,
            estimator,
        ))
    }

    /// Reports tokens done in a scoring pass.
    pub(super) fn token_progress<'s>(
        &'s self,
        stage: &'s str,
        how: &Scoring,
    ) -> Result<impl FnMut(usize) -> ControlFlow<()> + 's, PipelineError> {
        let started = Instant::now();
        let total = tokens_read(&self.corpus()?.examples, how, self.student.weighting()?);
        Ok(move |done| {
            self.recorder.event(&Event::Progress {
                stage: stage.to_owned(),
                done: done as u64,
                total: total as u64,
                unit: "tokens".into(),
                tokens_per_second: done as f64 / started.elapsed().as_secs_f64().max(1e-9),
            });
            self.interrupt.flow()
        })
    }

    pub(super) fn select_stage(
        &self,
        corpus: &Done<CorpusSummary>,
        scores: &Scores,
    ) -> Result<Done<Selection>, PipelineError> {
        let stores: Vec<Value> = scores
            .stages
            .iter()
            .map(|stage| {
                let names: Vec<String> = stage.names.iter().map(ToString::to_string).collect();
                let keys: Vec<&Fingerprint> = stage.parts().map(|part| &part.key).collect();
                json!({ "names": names, "stores": keys })
            })
            .collect();
        // Of `[signals]` only what the strategy reads.
        let read: Vec<Value> = self
            .components
            .signals
            .iter()
            .map(|(id, _)| json!([id.as_str(), self.plan.signals.get(id.as_str())]))
            .collect();
        let weighting = self.student.weighting()?;
        let key = StageKey::new(
            "select",
            2,
            json!({
                "stores": stores,
                // Where the stores lie is not what is in them.
                "selection": SelectionPlan {
                    from: PathBuf::new(),
                    ..self.plan.selection.clone()
                },
                "signals": read,
                // A plugin that was built anew may decide otherwise.
                "plugins": self.plan.plugins.sha256,
                // What a weight means.
                "neutral_weight": weighting.neutral(),
                "seed": self.plan.seed,
            }),
        );
        let strategy = &self.plan.selection.strategy;
        if self.components.strategy.when() == When::Online {
            self.warn(
                "select",
                format!(
                    "{strategy:?} chooses in every training step; the selection written here changes \
                     no weight"
                ),
            );
        }
        let done = self.stages.run(&key, |work| {
            let (table, meta) = self.recorded(corpus, scores)?;
            let neutral = weighting.neutral();
            let (signals, weights) =
                weigh(&table, &self.components, strategy, neutral, self.plan.seed)?;
            let when = self.components.strategy.when();
            let selection = describe(&table, &weights, strategy, when);
            extremes(&selection, &self.components, weighting)?;
            // What the trainer will see has to hold a weight too, not only the selection.
            apply(self.corpus()?, &table, &weights, strategy, weighting)?;
            store::write_selection(&work.join("selection.parquet"), &signals, &weights, &meta)
                .map_err(PipelineError::data("select"))?;
            Ok(selection)
        })?;
        if let Some(odd) = extremes(&done.output, &self.components, weighting)? {
            self.warn("select", odd);
        }
        Ok(done)
    }

    /// The columns of all scored checkpoints in one table.
    fn recorded(
        &self,
        corpus: &Done<CorpusSummary>,
        scores: &Scores,
    ) -> Result<(TokenTable, StoreMeta), PipelineError> {
        let mut tables = Vec::new();
        let mut first: Option<StoreMeta> = None;
        for stage in &scores.stages {
            for part in stage.parts() {
                let path = part.folder.join(TOKENS);
                let (table, meta) =
                    store::read_table(&path).map_err(PipelineError::data("select"))?;
                // Another student's tokens have been compared one by one.
                if self.selector.is_none() && meta.hashes != corpus.output.hashes {
                    return Err(PipelineError::BrokenStage {
                        folder: part.folder.clone(),
                        message: "its token store was made from other data".into(),
                    });
                }
                first.get_or_insert(meta);
                tables.push((stage.names.clone(), table));
            }
        }
        let scored: Vec<Scored<'_>> = tables
            .iter()
            .map(|(names, table)| Scored {
                names: names.clone(),
                table,
            })
            .collect();
        let table = join(&scored)?;
        let meta = first.expect("join has refused an empty list");
        Ok((table, meta))
    }

    /// The strategy with what it reads, where it is one that is asked in every step.
    fn online(
        &self,
        corpus: &Done<CorpusSummary>,
        scores: &Scores,
    ) -> Result<Option<Arc<OnlineSelection>>, PipelineError> {
        if self.components.strategy.when() != When::Online {
            return Ok(None);
        }
        let (table, _) = self.recorded(corpus, scores)?;
        let signals = signals(&table, &self.components)?;
        // The run keeps its own; this one goes with the trainer.
        let strategy = plan::components(self.plan, self.registry)?.strategy;
        let online = OnlineSelection::new(strategy, signals, self.plan.seed);
        Ok(Some(Arc::new(online)))
    }

    pub(super) fn train_stage(
        &self,
        corpus: &Done<CorpusSummary>,
        scores: &Scores,
        selection: &Done<Selection>,
        probe: Option<&Done<TrainLog>>,
    ) -> Result<Done<TrainLog>, PipelineError> {
        let plan = &self.plan.train;
        let start = match self.plan.bottleneck.then {
            Then::Restart => None,
            Then::GoOn => probe.map(|probe| self.checkpoint(probe, probe.output.steps)),
        };
        let mut inputs = json!({
            "student": self.weights,
            "family": self.family(),
            "selection": selection.key,
            "training": train_key(plan),
            "seed": self.plan.seed,
        });
        if let Some(start) = &start {
            inputs["start"] = start.key.clone();
        }
        let key = StageKey::new("train", 2, inputs);
        self.stages.run(&key, |work| {
            let path = selection.folder.join("selection.parquet");
            let (table, weights, _) =
                store::read_selection(&path).map_err(PipelineError::data("train"))?;
            let strategy = &self.plan.selection.strategy;
            let training = Training {
                stage: "train",
                student: &self.student,
                examples: Arc::new(apply(
                    self.corpus()?,
                    &table,
                    &weights,
                    strategy,
                    self.student.weighting()?,
                )?),
                online: self.online(corpus, scores)?,
                plan,
                seed: self.plan.seed,
                checkpoint_every: 0,
                start: start.as_ref().map(|model| model.folder.as_path()),
                watch: None,
                recorder: self.recorder,
                interrupt: self.interrupt,
            };
            training.run(work)
        })
    }

    /// Examines `models` as `[eval]` says.
    pub(super) fn evaluate_models(
        &self,
        corpus: &Done<CorpusSummary>,
        models: impl IntoIterator<Item = (Role, Model)>,
    ) -> Result<Vec<Evaluation>, PipelineError> {
        let plan = &self.plan.eval;
        let held_out = !plan.data.as_os_str().is_empty();
        if !held_out && corpus.output.problems == 0 {
            self.warn(
                "evaluate",
                "nothing to evaluate on: no training row has a gold answer; name held-out \
                 problems in eval.data",
            );
            return Ok(Vec::new());
        }
        let problems = if held_out {
            let (system, extract) = (&self.plan.data.system, &self.plan.grader.extract);
            corpus::problem_inputs(plan, system, extract, &self.tokenizer)?
        } else {
            json!({ "corpus": corpus.key, "limit": plan.limit })
        };
        // Read when the first model that is not stored needs them.
        let questions = std::cell::OnceCell::new();
        let mut evaluation: Vec<Evaluation> = Vec::new();
        for (role, model) in models {
            // The last checkpoint may be the bottleneck.
            let same = |e: &&Evaluation| e.step.is_some() && e.step == model.step;
            let (accuracy, answers) = match evaluation.iter().find(same) {
                Some(known) => (known.accuracy.clone(), known.answers.clone()),
                None => {
                    let questions = || match questions.get() {
                        Some(questions) => Ok(questions),
                        None => {
                            let loaded = self.questions(held_out)?;
                            Ok(questions.get_or_init(|| loaded))
                        }
                    };
                    let done = self.evaluate_stage(&model, &problems, questions)?;
                    (done.output, done.folder.join(ANSWERS))
                }
            };
            evaluation.push(Evaluation {
                model: role,
                name: match role {
                    Role::Merged => model.name,
                    role => role.word().to_owned(),
                },
                step: model.step,
                accuracy,
                answers,
            });
        }
        Ok(evaluation)
    }

    fn questions(&self, held_out: bool) -> Result<Vec<Question>, PipelineError> {
        let plan = &self.plan.eval;
        if held_out {
            let system = &self.plan.data.system;
            let problems = corpus::load_held_out(plan, system, &self.tokenizer, &self.grader)?;
            Ok(questions(problems))
        } else {
            Ok(training_questions(self.corpus()?, plan.limit))
        }
    }

    fn evaluate_stage<'q>(
        &self,
        model: &Model,
        problems: &Value,
        questions: impl FnOnce() -> Result<&'q Vec<Question>, PipelineError>,
    ) -> Result<Done<Accuracy>, PipelineError> {
        let plan = &self.plan.eval;
        let key = StageKey::new(
            format!("evaluate-{}", model.name),
            1,
            json!({
                "model": model.key,
                "family": self.family(),
                "problems": problems,
                "samples": plan.samples,
                "generate": generate_key(&plan.generate),
                "grader": self.plan.grader,
                "seed": draws_key(&plan.generate, plan.seed),
            }),
        );
        let done = self.stages.run(&key, |work| {
            let examination = Examination {
                questions: questions()?,
                samples: plan.samples,
                generate: &plan.generate,
                rule: &self.student.decode,
                grader: &self.grader,
                tokenizer: &self.tokenizer,
                seed: plan.seed,
                stage: key.name(),
                recorder: self.recorder,
                interrupt: self.interrupt,
            };
            let decoder = self.student.load(&model.folder, key.name())?;
            examination.run(&decoder, &work.join(ANSWERS))
        })?;
        self.recorder.event(&Event::Accuracy {
            stage: key.name().to_owned(),
            model: model.name.clone(),
            step: model.step,
            accuracy: done.output.clone(),
        });
        Ok(done)
    }
}

/// What training reads of its plan: how often states are saved changes nothing.
pub(super) fn train_key(plan: &TrainPlan) -> TrainPlan {
    TrainPlan {
        save_every: 0,
        ..plan.clone()
    }
}

/// What an answer depends on: not on how many are generated side by side.
pub(super) fn generate_key(plan: &GeneratePlan) -> GeneratePlan {
    GeneratePlan {
        batch: 0,
        ..plan.clone()
    }
}

/// The seed of answers, where there is one: the likeliest token is not drawn.
pub(super) fn draws_key(plan: &GeneratePlan, seed: u64) -> Option<u64> {
    (plan.temperature > 0.0).then_some(seed)
}
