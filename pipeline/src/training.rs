//! The probe and the training run: one loop, with checkpoints, saved states and interruption.

use std::{
    fs,
    io::Write,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use t3s_core::{Example, atomic, plan::TrainPlan};
use t3s_engine::{EngineError, OnlineSelection, Trainer, memory};

use crate::{
    error::PipelineError,
    events::{Event, Recorder, StepEvent},
    interrupt::Interrupt,
    student::Student,
};

/// What a training run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainLog {
    /// Optimiser steps.
    pub steps: u64,
    /// Loss of the first step, nats.
    pub first_loss: f64,
    /// Mean loss of the last tenth of the steps, nats.
    pub last_loss: f64,
    /// Tokens trained on, prompts included.
    pub tokens: u64,
    /// Tokens among them that could be trained on.
    pub response_tokens: u64,
    /// Tokens with a weight above zero among those.
    pub kept_tokens: u64,
    /// Seconds of the steps alone.
    pub seconds: f64,
    /// Steps after which a checkpoint was kept, ascending; without the base.
    pub checkpoints: Vec<u64>,
}

impl TrainLog {
    /// Share of the response tokens of all steps that had a weight above zero.
    pub fn kept_share(&self) -> f64 {
        self.kept_tokens as f64 / self.response_tokens.max(1) as f64
    }
}

/// Whether a run goes on after the checkpoint of this step.
pub type Watch<'a> = dyn Fn(u64) -> Result<ControlFlow<()>, PipelineError> + 'a;

/// One training run.
pub struct Training<'a> {
    /// `probe` or `train`.
    pub stage: &'a str,
    /// The model it starts from.
    pub student: &'a Student,
    /// What it learns; weights are the loss weights.
    pub examples: Arc<Vec<Example>>,
    /// What is asked for further weights in every step.
    pub online: Option<Arc<OnlineSelection>>,
    /// How.
    pub plan: &'a TrainPlan,
    /// Seed of the data order.
    pub seed: u64,
    /// Steps between two checkpoints; 0: only the last.
    pub checkpoint_every: u64,
    /// Where it starts, if not from the base: another model of the student's shape.
    pub start: Option<&'a Path>,
    /// Asked after every checkpoint, with its step; may end the run there.
    pub watch: Option<&'a Watch<'a>>,
    /// Who is told.
    pub recorder: &'a Recorder<'a>,
    /// Who may stop it.
    pub interrupt: &'a Interrupt,
}

/// The folder of the checkpoint after `step` steps.
pub fn checkpoint_folder(stage_folder: &Path, step: u64) -> PathBuf {
    stage_folder
        .join("checkpoints")
        .join(format!("step-{step:06}"))
}

impl Training<'_> {
    /// Trains to the plan's last step in the folder `work`, from the state that an interrupted
    /// attempt left there, if any. The model after the last step is always a checkpoint.
    ///
    /// # Errors
    /// When the gradient check fails, a loss or gradient is not finite (the checkpoints so far and
    /// the last saved state stay), nothing can be written, or the run was asked to stop (after
    /// saving its state).
    pub fn run(&self, work: &Path) -> Result<TrainLog, PipelineError> {
        let error = PipelineError::engine(self.stage);
        let state = work.join("state");
        let mut trainer = self.trainer()?;
        if state.is_dir() {
            trainer.load_state(&state).map_err(&error)?;
        } else {
            trainer.check_gradients().map_err(&error)?;
        }
        let log_path = work.join("steps.jsonl");
        let mut steps = read_steps(&log_path, trainer.steps_done())?;
        while !trainer.is_done() {
            // With a step under way there is no state to save yet; the loop comes back with its report.
            if self.interrupt.is_raised() && !trainer.is_ahead() {
                trainer.save_state(&state).map_err(&error)?;
                return Err(PipelineError::Interrupted {
                    stage: self.stage.to_owned(),
                });
            }
            let pause = match self.interrupt.is_raised() {
                true => 0,
                false => self.next_pause(trainer.steps_done()),
            };
            let step = self.step(&mut trainer, pause)?;
            append_step(&log_path, &step)?;
            self.recorder.event(&Event::Step(step.clone()));
            self.recorder.check()?;
            let done = step.step;
            steps.push(step);
            if self.is_checkpoint(done) {
                let folder = checkpoint_folder(work, done);
                let parent = folder.parent().expect("a checkpoint lies in a folder");
                fs::create_dir_all(parent).map_err(|e| PipelineError::io(parent, "create", e))?;
                trainer
                    .save_model(&folder, &self.student.path)
                    .map_err(&error)?;
                match self
                    .watch
                    .map_or(Ok(ControlFlow::Continue(())), |w| w(done))
                {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => break,
                    Err(stopped) => {
                        trainer.save_state(&state).map_err(&error)?;
                        return Err(stopped);
                    }
                }
            }
            if self.plan.save_every > 0
                && done.is_multiple_of(self.plan.save_every)
                && !trainer.is_done()
            {
                trainer.save_state(&state).map_err(&error)?;
            }
        }
        if state.is_dir() {
            fs::remove_dir_all(&state).map_err(|e| PipelineError::io(&state, "remove", e))?;
        }
        Ok(self.log(&steps))
    }

    fn trainer(&self) -> Result<Trainer, PipelineError> {
        let decoder = self
            .student
            .load_for_training(self.plan, self.seed, self.stage, self.start)?;
        let trainer = Trainer::new(
            decoder,
            self.student.objective()?,
            Arc::clone(&self.examples),
            self.plan.clone(),
            self.seed,
        )
        .map_err(PipelineError::engine(self.stage))?;
        Ok(match &self.online {
            None => trainer,
            Some(online) => trainer.with_online(Arc::clone(online)),
        })
    }

    /// The next step after which weights or state are looked at.
    fn next_pause(&self, done: u64) -> u64 {
        let next = |every: u64| match every {
            0 => u64::MAX,
            every => (done / every + 1) * every,
        };
        next(self.checkpoint_every)
            .min(next(self.plan.save_every))
            .min(self.plan.steps)
    }

    fn step(&self, trainer: &mut Trainer, pause: u64) -> Result<StepEvent, PipelineError> {
        let report = trainer
            .step_towards(pause)
            .map_err(PipelineError::engine(self.stage))?;
        Ok(StepEvent {
            stage: self.stage.to_owned(),
            step: report.step,
            steps: self.plan.steps,
            epoch: report.epoch,
            loss: report.loss,
            kept_loss: report.kept_loss,
            dropped_loss: report.dropped_loss,
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            tokens: report.tokens as u64,
            response_tokens: report.response_tokens as u64,
            kept_tokens: report.kept_tokens as u64,
            seconds: report.seconds,
            tokens_per_second: report.tokens as f64 / report.seconds.max(1e-9),
            peak_memory: memory::peak_bytes(&self.student.device),
        })
    }

    fn is_checkpoint(&self, step: u64) -> bool {
        step == self.plan.steps
            || (self.checkpoint_every > 0 && step.is_multiple_of(self.checkpoint_every))
    }

    fn log(&self, steps: &[StepEvent]) -> TrainLog {
        let tail = &steps[steps.len() - steps.len().div_ceil(10)..];
        let mean = tail.iter().map(|s| s.loss).sum::<f64>() / tail.len().max(1) as f64;
        TrainLog {
            steps: steps.last().map_or(0, |s| s.step),
            first_loss: steps.first().map_or(f64::NAN, |s| s.loss),
            last_loss: mean,
            tokens: steps.iter().map(|s| s.tokens).sum(),
            response_tokens: steps.iter().map(|s| s.response_tokens).sum(),
            kept_tokens: steps.iter().map(|s| s.kept_tokens).sum(),
            seconds: steps.iter().map(|s| s.seconds).sum(),
            checkpoints: (1..=steps.last().map_or(0, |s| s.step))
                .filter(|step| self.is_checkpoint(*step))
                .collect(),
        }
    }
}

/// The steps up to `done` that an earlier attempt wrote down; later ones, which its saved state
/// does not know of, are cut off and will be done again.
fn read_steps(path: &Path, done: u64) -> Result<Vec<StepEvent>, PipelineError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(PipelineError::io(path, "read", error)),
    };
    let steps: Vec<StepEvent> = text
        .lines()
        // The last line may have been cut off by a kill; its step is done again.
        .filter_map(|line| serde_json::from_str::<StepEvent>(line).ok())
        .filter(|step| step.step <= done)
        .collect();
    atomic::write(path, |file| {
        for step in &steps {
            serde_json::to_writer(&mut *file, step)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })?;
    Ok(steps)
}

fn append_step(path: &Path, step: &StepEvent) -> Result<(), PipelineError> {
    let io = |e| PipelineError::io(path, "append to", e);
    let mut line = serde_json::to_vec(step).map_err(|e| io(e.into()))?;
    line.push(b'\n');
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(&line))
        .map_err(io)
}

/// Whether `error` says that a number was not finite.
pub fn is_not_finite(error: &PipelineError) -> bool {
    matches!(
        error,
        PipelineError::Engine {
            source: EngineError::NotFinite { .. },
            ..
        }
    )
}
