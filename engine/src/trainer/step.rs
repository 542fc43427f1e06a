//! One optimiser step: begun, and finished when its numbers are known.
//!
//! On a GPU a step is begun by queueing all of its work. Its loss and the norm of its gradient are read
//! later, when the next step is in the queue, so that the device never waits for the host; clipping and
//! the optimiser take the norm from where it is. On a CPU a step is done when it has begun.

use std::{panic, thread, time::Instant};

use candle_core::{DType, Tensor};

use super::{StepReport, Trainer, ahead::Ahead, order::Cursor};
use crate::{
    accumulate::{Accumulation, BatchLoss, Learnt, learn, learn_online},
    error::EngineError,
    kernels::{self, gradients::Clip},
    schedule::learning_rate,
};

/// In how many steps of a run, about, the loss of what is not learnt is measured: enough for a
/// curve, and of no weight in a long run.
const MEASURED_STEPS: u64 = 64;

/// Counts that a failed step leaves as they were.
#[derive(Debug, Clone, Copy)]
struct Before {
    steps: u64,
    cursor: Cursor,
    optimizer_steps: u64,
}

/// A step that has begun.
#[derive(Debug)]
pub(super) struct InFlight {
    step: u64,
    before: Before,
    begun: Instant,
    learnt: Learnt,
    clip: Clip,
    learning_rate: f64,
    epoch: f64,
}

impl InFlight {
    fn named(step: u64) -> impl Fn(EngineError) -> EngineError {
        move |error| match error {
            EngineError::NotFinite { what } => EngineError::NotFinite {
                what: format!("{what} of step {step}"),
            },
            error => error,
        }
    }
}

impl Trainer {
    /// One optimiser step.
    ///
    /// # Errors
    /// When loss or gradient are not finite (the message names the step), or an example cannot be
    /// trained on. The trainer is then as it was before the step.
    pub fn step(&mut self) -> Result<StepReport, EngineError> {
        self.step_towards(0)
    }

    /// The same for a caller that looks at nothing but reports before step `pause` is reported: on a GPU
    /// the step after this one then begins before this one's numbers are waited for. While
    /// [`Trainer::is_ahead`], weights and saved states would be those of a step not reported yet.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_towards(&mut self, pause: u64) -> Result<StepReport, EngineError> {
        let this = match (self.in_flight.take(), self.stalled.take()) {
            (Some(step), _) => step,
            (None, Some(error)) => return Err(error),
            (None, None) => self.begin()?,
        };
        let defers = matches!(this.clip, Clip::OnDevice { .. });
        if defers && self.steps < pause.min(self.plan.steps) {
            match self.begin() {
                Ok(next) => self.in_flight = Some(next),
                // It is said when that step is asked for.
                Err(error) => self.stalled = Some(error),
            }
        }
        self.finish(this)
    }

    /// Whether a step has begun that is not reported yet; [`Trainer::step`] reports it.
    pub fn is_ahead(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Queues all work of the next step.
    fn begin(&mut self) -> Result<InFlight, EngineError> {
        let begun = Instant::now();
        let step = self.steps + 1;
        let before = Before {
            steps: self.steps,
            cursor: self.cursor,
            optimizer_steps: self.optimizer.steps(),
        };
        let how = Accumulation {
            dropped_loss: step == 1
                || step.is_multiple_of(self.plan.steps.div_ceil(MEASURED_STEPS).max(1)),
            ..Accumulation::of(&self.plan, self.seed)
        };
        let (decoder, objective) = (&self.decoder, self.objective.as_ref());
        let (order, examples, plan) = (&mut self.order, &self.examples, &self.plan);
        let kept = self
            .ahead
            .take()
            .filter(|ahead| ahead.begins == self.cursor);
        if kept.is_none() {
            // The first step, or one after a failure or a restart.
            order.seek(self.cursor, examples);
        }
        let mut next = || Ahead::new(order, examples, plan, objective, &how);
        let this = kept.unwrap_or_else(&mut next);
        let (prepared, ends) = (this.prepared?, this.ends);
        self.grads.zero();
        let grads = &mut self.grads;
        let (learnt, ahead) = thread::scope(|scope| {
            let ahead = (step < plan.steps).then(|| scope.spawn(next));
            let learnt = match &self.online {
                None => learn(decoder, objective, &prepared, &how, grads),
                Some(online) => {
                    let online = (online.as_ref(), step);
                    learn_online(decoder, objective, prepared, &how, online, grads)
                }
            };
            let ahead = ahead.map(|ahead| ahead.join().unwrap_or_else(|p| panic::resume_unwind(p)));
            (learnt, ahead)
        });
        self.ahead = ahead;
        let learnt = learnt.map_err(InFlight::named(step))?;
        let clip = self.clip(&learnt)?;
        let rate = learning_rate(&self.plan, self.steps);
        if matches!(clip, Clip::OnDevice { .. }) {
            // Changes nothing where loss or norm turn out to be no numbers.
            self.update(&learnt.counted(), rate, &clip)?;
        }
        self.steps = step;
        self.cursor = ends;
        Ok(InFlight {
            step,
            before,
            begun,
            learnt,
            clip,
            learning_rate: rate,
            epoch: ends.epoch as f64 + ends.index as f64 / self.examples.len() as f64,
        })
    }

    fn clip(&mut self, learnt: &Learnt) -> Result<Clip, EngineError> {
        let rows = learnt.on_device_rows();
        if let (None, Some(row)) = (&self.failed, rows.first()) {
            self.failed = Some(Tensor::zeros(1, DType::F64, row.device())?);
        }
        let failed = self.failed.as_ref();
        Ok(self.grads.clip(self.plan.clip_norm, &rows, failed)?)
    }

    /// A step in which nothing is kept teaches nothing: it must not move the weights by what the moments
    /// remember.
    fn update(&mut self, counted: &BatchLoss, rate: f64, clip: &Clip) -> Result<(), EngineError> {
        if counted.kept_tokens == 0 {
            return Ok(());
        }
        let params = &self.decoder.params;
        self.optimizer.step(params, &mut self.grads, rate, clip)
    }

    /// Waits for the numbers of a step.
    fn finish(&mut self, this: InFlight) -> Result<StepReport, EngineError> {
        let InFlight {
            step,
            before,
            begun,
            learnt,
            clip,
            learning_rate,
            epoch,
        } = this;
        let known = learnt.read().and_then(|loss| match clip.norm()? {
            norm if norm.is_finite() => Ok((loss, norm)),
            _ => Err(EngineError::NotFinite {
                what: "the gradient".to_owned(),
            }),
        });
        let updated = known.and_then(|(loss, norm)| {
            if matches!(clip, Clip::Known { .. }) {
                self.update(&loss, learning_rate, &clip)?;
            }
            Ok((loss, norm))
        });
        let (loss, grad_norm) = match updated {
            Ok(known) => known,
            Err(error) => {
                self.go_back(before)?;
                return Err(InFlight::named(step)(error));
            }
        };
        self.reported = step;
        // A step begins while the one before computes; its time counts from that one's end.
        let since = self.last_end.map_or(begun, |end| end.max(begun));
        let now = Instant::now();
        self.last_end = Some(now);
        Ok(StepReport {
            step,
            loss: loss.loss,
            learning_rate,
            grad_norm,
            tokens: loss.tokens,
            kept_tokens: loss.kept_tokens,
            response_tokens: loss.response_tokens,
            kept_loss: loss.kept_loss,
            dropped_loss: loss.dropped_loss,
            epoch,
            seconds: (now - since).as_secs_f64(),
        })
    }

    /// Refuses to save what no report has told of.
    pub(super) fn check_settled(&self) -> Result<(), EngineError> {
        match &self.in_flight {
            None => Ok(()),
            Some(InFlight { step, .. }) => Err(EngineError::StepInFlight { step: *step }),
        }
    }

    /// To before a step that failed. It has changed neither weights nor moments, and nor has one that
    /// began after it.
    fn go_back(&mut self, before: Before) -> Result<(), EngineError> {
        self.in_flight = None;
        self.stalled = None;
        self.steps = before.steps;
        self.cursor = before.cursor;
        self.optimizer.set_steps(before.optimizer_steps);
        match &self.failed {
            Some(failed) => Ok(kernels::gradients::zero(failed)?),
            None => Ok(()),
        }
    }
}
