//! The paper's diagnosis of a run: how the gradients of anchors and other tokens stand to each other
//! at every checkpoint of the probe, what one step on either does to both, what learning a part of
//! the tokens does to the others, which tokens are suppressed, and a map of the sketches.
//! Definitions: docs/analysis.md and docs/equations.md.

mod pca;
mod sample;
mod subsets;
mod tables;

use std::{fs, path::Path, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::json;
use t3s_core::{
    CheckpointRef, Example, Fingerprint, Weighting,
    plan::{AdamWPlan, Normaliser, RunPlan, Schedule, TrainPlan},
};
use t3s_data::{frame::Frame, store};
use t3s_engine::{
    Accumulation, Columns, Decoder, EngineError, Grads, Part, Trainer, adamw::AdamW,
    head::SketchSpec, loss_and_gradients, score, score::Scoring,
};

pub use subsets::Subsets;

use self::sample::Sample;
use crate::{
    corpus,
    error::PipelineError,
    evaluate::once,
    events::Event,
    grader::Grader,
    offline::Session,
    recorded::RecordedRun,
    run_folder::RunFolder,
    select::{Scored, join},
    stage::write_json,
    student::Student,
    training::{TrainLog, checkpoint_folder},
};

/// The folder of the results in a run folder.
pub const FOLDER: &str = "analysis";

const STAGE: &str = "analyse";

/// How a step on a loss is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepRule {
    /// The first step of AdamW without weight decay, with the run's betas and eps.
    #[default]
    Adamw,
    /// The rate times the gradient.
    Sgd,
}

/// What is looked at, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct AnalysePlan {
    /// Examples, evenly spread over the data.
    pub examples: usize,
    /// The one step.
    pub rule: StepRule,
    /// Its rate; `None`: the run's peak.
    pub learning_rate: Option<f64>,
    /// The four parts of the transfer matrix.
    pub subsets: Subsets,
    /// Optimiser steps on each part.
    pub transfer_steps: u64,
    /// Width of the sketches.
    pub sketch_width: usize,
    /// Most tokens on the map, of each model.
    pub map_tokens: usize,
}

impl Default for AnalysePlan {
    fn default() -> Self {
        Self {
            examples: 32,
            rule: StepRule::default(),
            learning_rate: None,
            subsets: Subsets::default(),
            transfer_steps: 10,
            sketch_width: 64,
            map_tokens: 1500,
        }
    }
}

/// What one checkpoint of the probe came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AtCheckpoint {
    /// The probe's step; 0 is the base.
    pub step: u64,
    /// Mean loss of the anchors, nats.
    pub anchor_loss: f64,
    /// Of the other tokens.
    pub other_loss: f64,
    /// 2-norm of the gradient of the anchors' mean loss.
    pub anchor_norm: f64,
    /// Of the other tokens' mean loss.
    pub other_norm: f64,
    /// `<g_A, g_O> / (|g_A| |g_O|)`.
    pub cosine: f64,
    /// What one step on either did.
    pub interventions: Vec<Intervention>,
    /// Share of tokens that are less likely than at the base: of all, anchors, others.
    pub suppressed: [f64; 3],
}

/// One step on the mean loss of one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intervention {
    /// `anchors` or `others`.
    pub on: String,
    /// Change of the anchors' mean loss, nats.
    pub anchors: f64,
    /// Change of the other tokens' mean loss, nats.
    pub others: f64,
    /// What the gradient foretells for the group that the step was not on, nats.
    pub foretold: f64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Analysis {
    /// The folder.
    pub folder: PathBuf,
    /// Examples that were looked at.
    pub examples: u64,
    /// Their response tokens.
    pub tokens: u64,
    /// Anchors among them.
    pub anchors: u64,
    /// Every checkpoint, ascending.
    pub checkpoints: Vec<AtCheckpoint>,
    /// Names of the four parts.
    pub subsets: Vec<String>,
    /// Change of the mean loss of part `j` (column) after learning part `i` (row) alone, nats.
    pub transfer: Vec<Vec<f64>>,
}

/// Analyses the last run in the run folder `out` of `plan`, and writes tables into its folder
/// [`FOLDER`]. What an interrupted attempt with the same options did is not done again.
///
/// # Errors
/// When the run has no probe with kept checkpoints or no scores, another process works in the folder,
/// the data changed since, a model cannot be read, or it was asked to stop.
pub fn analyse(
    run: &RecordedRun,
    plan: &RunPlan,
    how: &AnalysePlan,
    session: Session<'_>,
) -> Result<Analysis, PipelineError> {
    let held = RunFolder::open(&run.folder)?;
    let work = Work::open(run, plan, how, session)?;
    let mut checkpoints = Vec::new();
    let models = work.models()?;
    for (done, (step, folder)) in models.iter().enumerate() {
        let path = work.part(&format!("step-{step:06}.json"));
        checkpoints.push(once(&path, || work.checkpoint(*step, folder))?);
        work.progress(done + 1, models.len() + 4);
    }
    let parts = how.subsets.cut(&work.sample)?;
    let mut transfer = Vec::new();
    for (row, (_, part)) in parts.iter().enumerate() {
        let name = format!(
            "{}-{row}.json",
            Fingerprint::of_json(&how.subsets.name()).short()
        );
        let path = work.part(&name);
        transfer.push(once(&path, || work.transfer(part, &parts))?);
        work.progress(models.len() + row + 1, models.len() + 4);
    }
    let map = work.map(&models)?;
    let anchors = work.sample.anchors();
    let analysis = Analysis {
        folder: held.path().join(FOLDER),
        examples: work.sample.examples.len() as u64,
        tokens: anchors.len() as u64,
        anchors: anchors.iter().filter(|anchor| **anchor).count() as u64,
        checkpoints,
        subsets: parts.into_iter().map(|(name, _)| name).collect(),
        transfer,
    };
    let about = json!({
        "examples": analysis.examples, "tokens": analysis.tokens, "anchors": analysis.anchors,
        "rule": how.rule, "learning_rate": work.learning_rate(), "transfer_steps": how.transfer_steps,
        "subsets": how.subsets.name(), "sketch_width": how.sketch_width,
        "explained": map.explained,
    });
    for (name, frame) in [
        ("gradients", tables::gradients(&analysis)),
        ("intervention", tables::intervention(&analysis)),
        ("transfer", tables::transfer(&analysis)),
        ("suppressed", tables::suppressed(&analysis)),
        ("sketch-map", map.frame),
    ] {
        write(&analysis.folder, name, &frame, &about)?;
    }
    Ok(analysis)
}

fn write(
    folder: &Path,
    name: &str,
    frame: &Frame,
    about: &serde_json::Value,
) -> Result<(), PipelineError> {
    frame
        .write_parquet(&folder.join(format!("{name}.parquet")))
        .map_err(PipelineError::data(STAGE))?;
    let table = json!({ "table": name, "about": about, "rows": frame.rows() });
    write_json(&folder.join(format!("{name}.json")), &table)
}

/// Everything that the parts share.
struct Work<'a> {
    run: &'a RecordedRun,
    plan: &'a RunPlan,
    how: &'a AnalysePlan,
    session: Session<'a>,
    student: Student,
    sample: Sample,
    probe: TrainLog,
    bottleneck: u64,
    parts: PathBuf,
}

/// The map, and how much of the sketches it shows.
struct Map {
    frame: Frame,
    explained: [f64; 2],
}

impl<'a> Work<'a> {
    fn open(
        run: &'a RecordedRun,
        plan: &'a RunPlan,
        how: &'a AnalysePlan,
        session: Session<'a>,
    ) -> Result<Self, PipelineError> {
        let missing = |key: &str, message: String| Err(PipelineError::plan(key, message));
        let Some(probe) = run.probe()?.map(|probe| probe.log) else {
            let message = "this run has no finished probe to be analysed; finish it with t3s run";
            return missing("probe", message.to_owned());
        };
        if probe.checkpoints.len() < 2 {
            let kept = probe.checkpoints.len();
            return missing(
                "probe.checkpoint_every",
                format!(
                    "the probe kept {kept} checkpoint; give the steps between two, fewer than \
                     probe.steps ({}), and run the plan again",
                    probe.steps
                ),
            );
        }
        let Some(bottleneck) = run.bottleneck.as_ref().map(|found| found.step) else {
            let message = "this run has no bottleneck yet; finish it with t3s run".to_owned();
            return missing("bottleneck", message);
        };
        let student = Student::open(&plan.student, &plan.device, session.registry)?;
        if student.weighting()? != Weighting::Loss {
            let message = "students that mask their input are not analysed: which tokens a pass \
                           learns is drawn anew each time";
            return missing("student.path", message.to_owned());
        }
        let tokenizer = student.tokenizer(&plan.data)?;
        let grader = Grader::new(&plan.grader)?;
        let corpus = corpus::load(&plan.data, &tokenizer, &student, &grader)?;
        let mut tables = Vec::new();
        for (at, stage) in [
            (CheckpointRef::Base, "score-base".to_owned()),
            (
                CheckpointRef::Bottleneck,
                format!("score-step-{bottleneck:06}"),
            ),
        ] {
            let Some(folder) = run.done(&stage) else {
                let message = format!("the stage {stage} is not done; finish the run with t3s run");
                return missing("score", message);
            };
            let (table, _) = store::read_table(&folder.join("tokens.parquet"))
                .map_err(PipelineError::data(STAGE))?;
            tables.push((at, table));
        }
        let scored: Vec<Scored<'_>> = tables
            .iter()
            .map(|(at, table)| Scored {
                names: vec![at.clone()],
                table,
            })
            .collect();
        let sample = Sample::new(&corpus, &join(&scored)?, how.examples)?;
        let anchors = sample.anchors();
        if anchors.iter().all(|anchor| *anchor) || !anchors.iter().any(|anchor| *anchor) {
            return missing(
                "bottleneck",
                format!(
                    "of {} tokens all or none became likelier by the bottleneck, so there are no \
                     two groups to compare; look at more examples, or at another step",
                    anchors.len()
                ),
            );
        }
        // What a part depends on besides the name it has.
        let key = Fingerprint::of_json(&json!({
            "stages": run.stages.iter().map(|s| s.folder.file_name().map(|n| n.to_string_lossy().into_owned())).collect::<Vec<_>>(),
            "examples": how.examples, "rule": how.rule, "learning_rate": how.learning_rate,
            "transfer_steps": how.transfer_steps,
        }));
        let parts = run.folder.join(FOLDER).join("parts").join(key.short());
        fs::create_dir_all(&parts).map_err(|e| PipelineError::io(&parts, "create", e))?;
        Ok(Self {
            run,
            plan,
            how,
            session,
            student,
            sample,
            probe,
            bottleneck,
            parts,
        })
    }

    fn part(&self, name: &str) -> PathBuf {
        self.parts.join(name)
    }

    fn progress(&self, done: usize, total: usize) {
        self.session.observer.event(&Event::Progress {
            stage: STAGE.to_owned(),
            done: done as u64,
            total: total as u64,
            unit: "parts".to_owned(),
            tokens_per_second: 0.0,
        });
    }

    fn learning_rate(&self) -> f64 {
        self.how
            .learning_rate
            .unwrap_or(self.plan.train.learning_rate)
    }

    /// The base and the probe's checkpoints, with their folders.
    fn models(&self) -> Result<Vec<(u64, PathBuf)>, PipelineError> {
        let mut models = vec![(0, self.student.path.clone())];
        let stage = self.run.done("probe").expect("its output was read");
        for step in &self.probe.checkpoints {
            let folder = checkpoint_folder(stage, *step);
            if !folder.is_dir() {
                return Err(PipelineError::plan(
                    "probe.checkpoint_every",
                    format!(
                        "{}: this checkpoint is no longer there; remove {} to have the probe run \
                         again, which keeps one every probe.checkpoint_every steps",
                        folder.display(),
                        stage.display()
                    ),
                ));
            }
            models.push((*step, folder));
        }
        Ok(models)
    }

    fn interrupted(&self) -> Result<(), PipelineError> {
        match self.session.interrupt.is_raised() {
            true => Err(PipelineError::Interrupted {
                stage: STAGE.to_owned(),
            }),
            false => Ok(()),
        }
    }

    fn scoring(&self, columns: Columns) -> Scoring {
        Scoring::of(&self.plan.score, columns, self.plan.seed)
    }

    /// The probe's model after `step` steps, with what the probe learns trainable: everything, or an
    /// adapter alone.
    fn load(&self, step: u64, folder: &Path) -> Result<Decoder, PipelineError> {
        let probe = &self.plan.probe;
        if probe.training.lora.is_none() {
            return self.student.load(folder, STAGE);
        }
        if step == 0 {
            return self
                .student
                .load_for_training(&probe.training, probe.seed, STAGE, None);
        }
        let mut decoder = self.student.load(folder, STAGE)?;
        let frozen: Vec<_> = decoder
            .params
            .iter()
            .filter(|(_, param)| !param.name.contains(".lora_"))
            .map(|(id, _)| id)
            .collect();
        for id in frozen {
            decoder.params.set_trainable(id, false);
        }
        Ok(decoder)
    }

    /// `logp` of the sample's tokens.
    fn confidence(&self, decoder: &Decoder) -> Result<Vec<f32>, PipelineError> {
        let objective = self.student.objective()?;
        let table = score(
            decoder,
            objective.as_ref(),
            &self.sample.examples,
            &self.scoring(Columns::default()),
            &mut |_| self.session.interrupt.flow(),
        )
        .map_err(PipelineError::engine(STAGE))?;
        let view = table.view();
        let logp = view
            .column("logp")
            .map_err(|source| PipelineError::Component {
                component: STAGE.to_owned(),
                source,
            })?;
        Ok(logp.to_vec())
    }

    /// The gradient of the mean loss of `examples`' weighted tokens.
    fn gradient(&self, decoder: &Decoder, examples: &[Example]) -> Result<Grads, PipelineError> {
        let how = Accumulation {
            normaliser: Normaliser::SumWeights,
            ..Accumulation::of(&self.plan.train, self.plan.seed)
        };
        let part = Part {
            examples: examples.iter().collect(),
            draw: 0,
        };
        let objective = self.student.objective()?;
        let mut grads = Grads::new(&decoder.params);
        loss_and_gradients(decoder, objective.as_ref(), &[part], &how, &mut grads)
            .map_err(PipelineError::engine(STAGE))?;
        Ok(grads)
    }

    fn checkpoint(&self, step: u64, folder: &Path) -> Result<AtCheckpoint, PipelineError> {
        self.interrupted()?;
        let engine =
            |source: candle_core::Error| PipelineError::engine(STAGE)(EngineError::from(source));
        let anchors = self.sample.anchors();
        let others: Vec<bool> = anchors.iter().map(|anchor| !anchor).collect();
        let (anchor_examples, other_examples) =
            (self.sample.only(&anchors), self.sample.only(&others));
        let decoder = self.load(step, folder)?;
        let before = self.confidence(&decoder)?;
        let (anchor_loss, other_loss) = (mean_loss(&before, &anchors), mean_loss(&before, &others));
        let anchor = self.gradient(&decoder, &anchor_examples)?;
        let other = self.gradient(&decoder, &other_examples)?;
        let (anchor_norm, other_norm) = (
            anchor.global_norm().map_err(engine)?,
            other.global_norm().map_err(engine)?,
        );
        let cosine = anchor.inner_product(&other).map_err(engine)? / (anchor_norm * other_norm);
        let mut interventions = Vec::new();
        for (on, examples, elsewhere) in [
            ("anchors", &anchor_examples, &other),
            ("others", &other_examples, &anchor),
        ] {
            let mut stepped = self.load(step, folder)?;
            let mut gradient = self.gradient(&stepped, examples)?;
            self.step(&mut stepped, &mut gradient)?;
            let after = self.confidence(&stepped)?;
            interventions.push(Intervention {
                on: on.to_owned(),
                anchors: mean_loss(&after, &anchors) - anchor_loss,
                others: mean_loss(&after, &others) - other_loss,
                foretold: elsewhere
                    .along(&decoder.params, &stepped.params)
                    .map_err(engine)?,
            });
        }
        let base = &self.sample.columns["logp@base"];
        Ok(AtCheckpoint {
            step,
            anchor_loss,
            other_loss,
            anchor_norm,
            other_norm,
            cosine,
            interventions,
            suppressed: suppressed(base, &before, &anchors),
        })
    }

    /// One step of `decoder` along `gradient`.
    fn step(&self, decoder: &mut Decoder, gradient: &mut Grads) -> Result<(), PipelineError> {
        let rate = self.learning_rate();
        let error = PipelineError::engine(STAGE);
        match self.how.rule {
            StepRule::Adamw => {
                let plan = AdamWPlan {
                    weight_decay: 0.0,
                    ..self.plan.train.adamw.clone()
                };
                let whole = gradient.clip(0.0, &[], None).map_err(EngineError::from);
                let whole = whole.map_err(&error)?;
                AdamW::new(plan, &decoder.params)
                    .and_then(|mut adamw| adamw.step(&decoder.params, gradient, rate, &whole))
                    .map_err(error)
            }
            StepRule::Sgd => {
                let ids: Vec<_> = decoder.params.iter().map(|(id, _)| id).collect();
                for id in ids {
                    let Some(slot) = gradient.get(id) else {
                        continue;
                    };
                    let tensor = decoder.params.tensor(id);
                    let moved = (slot * -rate)
                        .and_then(|step| step.to_dtype(tensor.dtype()))
                        .and_then(|step| tensor + step)
                        .map_err(|source| error(source.into()))?;
                    decoder.params.replace(id, moved);
                }
                Ok(())
            }
        }
    }

    /// The changes of the parts' mean losses after learning `part` alone.
    fn transfer(
        &self,
        part: &[bool],
        parts: &[(String, Vec<bool>)],
    ) -> Result<Vec<f64>, PipelineError> {
        let error = PipelineError::engine(STAGE);
        let plan = TrainPlan {
            steps: self.how.transfer_steps,
            schedule: Schedule::Constant,
            warmup: 0.0,
            ..self.plan.train.clone()
        };
        let decoder = self
            .student
            .load_for_training(&plan, self.plan.seed, STAGE, None)?;
        let before = self.confidence(&decoder)?;
        let examples = Arc::new(self.sample.only(part));
        let objective = self.student.objective()?;
        let mut trainer =
            Trainer::new(decoder, objective, examples, plan, self.plan.seed).map_err(&error)?;
        while !trainer.is_done() {
            self.interrupted()?;
            trainer.step().map_err(&error)?;
        }
        let after = self.confidence(trainer.decoder())?;
        let change =
            |(_, part): &(String, Vec<bool>)| mean_loss(&after, part) - mean_loss(&before, part);
        Ok(parts.iter().map(change).collect())
    }

    /// The sketches of base and bottleneck on one plane.
    fn map(&self, models: &[(u64, PathBuf)]) -> Result<Map, PipelineError> {
        let width = self.how.sketch_width;
        let spec = SketchSpec {
            width,
            seed: self.plan.seed,
        };
        let objective = self.student.objective()?;
        let anchors = self.sample.anchors();
        let chosen: Vec<usize> = crate::run::evenly(anchors.len(), self.how.map_tokens).collect();
        let mut points = Vec::new();
        let mut rows = Vec::new();
        for (name, wanted) in [("base", 0), ("bottleneck", self.bottleneck)] {
            self.interrupted()?;
            let Some((_, folder)) = models.iter().find(|(step, _)| *step == wanted) else {
                continue;
            };
            let columns = Columns {
                sketch: Some(spec),
                ..Columns::default()
            };
            let decoder = self.student.load(folder, STAGE)?;
            let table = score(
                &decoder,
                objective.as_ref(),
                &self.sample.examples,
                &self.scoring(columns),
                &mut |_| self.session.interrupt.flow(),
            )
            .map_err(PipelineError::engine(STAGE))?;
            let view = table.view();
            let sketch = view
                .sketch("sketch")
                .map_err(|source| PipelineError::Component {
                    component: STAGE.to_owned(),
                    source,
                })?;
            for row in &chosen {
                let values = &sketch.values[row * width..][..width];
                let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt();
                // Directions: lengths differ by many orders of magnitude, and would be all to see.
                let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
                points.extend(values.iter().map(|value| value * scale));
                rows.push(tables::MapRow {
                    model: name,
                    example: self.sample.examples[self.sample.places[*row].0].id,
                    position: self.sample.places[*row].1 as u64,
                    anchor: anchors[*row],
                    delta: f64::from(self.sample.columns["delta-c"][*row]),
                    norm: f64::from(norm),
                });
            }
        }
        let plane = pca::plane(&points, width);
        Ok(Map {
            frame: tables::sketch_map(&rows, &plane),
            explained: plane.explained,
        })
    }
}

/// The mean of `-logp` over the tokens of `subset`.
fn mean_loss(logp: &[f32], subset: &[bool]) -> f64 {
    let chosen = || logp.iter().zip(subset).filter(|(_, chosen)| **chosen);
    let sum: f64 = chosen().map(|(logp, _)| -f64::from(*logp)).sum();
    sum / chosen().count() as f64
}

/// Shares of tokens that are less likely `now` than at the `base`, `[suppressed]` in
/// docs/equations.md: of all, of anchors, of others.
fn suppressed(base: &[f32], now: &[f32], anchors: &[bool]) -> [f64; 3] {
    let share = |of: &dyn Fn(bool) -> bool| {
        let rows = || (0..base.len()).filter(|row| of(anchors[*row]));
        rows().filter(|row| now[*row] < base[*row]).count() as f64 / rows().count() as f64
    };
    [
        share(&|_| true),
        share(&|anchor| anchor),
        share(&|anchor| !anchor),
    ]
}

#[cfg(test)]
mod tests;
