//! The training loop's one step, its state, and the check before the first one.

mod ahead;
mod gradient_check;
mod order;
mod state;

use std::{panic, path::Path, sync::Arc, thread, time::Instant};

use t3s_core::{
    Example, Objective,
    plan::{LoraPlan, TrainPlan},
};

pub(crate) use gradient_check::checked_blocks;
pub use gradient_check::{CHECKED_TOKENS, GradientReport, GroupCheck};

use crate::{
    accumulate::{Accumulation, learn, learn_online},
    adamw::AdamW,
    checkpoint,
    decoder::Decoder,
    error::EngineError,
    grads::Grads,
    kernels::gradients::Clip,
    online::OnlineSelection,
    schedule::learning_rate,
};
use ahead::Ahead;
use order::{Cursor, Order};

/// What one optimiser step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Weighted loss over the normaliser before the step, nats.
    pub loss: f64,
    /// Of this step.
    pub learning_rate: f64,
    /// Global 2-norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens that the model read, prompts included.
    pub tokens: usize,
    /// Tokens with a weight above zero.
    pub kept_tokens: usize,
    /// Tokens that may be trained on.
    pub response_tokens: usize,
    /// Mean of `-logp` over the kept tokens before the step, nats.
    pub kept_loss: Option<f64>,
    /// The same over the tokens that a selection left out. Measured in some 64 steps of a run.
    pub dropped_loss: Option<f64>,
    /// Passes over the data so far, with the part of the current one.
    pub epoch: f64,
    /// What it took.
    pub seconds: f64,
}

/// In how many steps of a run, about, the loss of what is not learnt is measured: enough for a
/// curve, and of no weight in a long run.
const MEASURED_STEPS: u64 = 64;

/// A model, its data, its optimiser, and how far they are.
pub struct Trainer {
    decoder: Decoder,
    objective: Box<dyn Objective>,
    examples: Arc<Vec<Example>>,
    plan: TrainPlan,
    seed: u64,
    online: Option<Arc<OnlineSelection>>,
    optimizer: AdamW,
    /// A step ahead of `cursor` while there is something in `ahead`.
    order: Order,
    /// Where the next step begins.
    cursor: Cursor,
    ahead: Option<Ahead>,
    grads: Grads,
    steps: u64,
}

impl Trainer {
    /// A run at its beginning. What is learnt, and with which weight, is what `examples` say. With
    /// `plan.lora` the decoder has to be built with the same plan.
    ///
    /// # Errors
    /// When there is no example, or the optimiser's state cannot be allocated.
    pub fn new(
        decoder: Decoder,
        objective: Box<dyn Objective>,
        examples: Arc<Vec<Example>>,
        plan: TrainPlan,
        seed: u64,
    ) -> Result<Self, EngineError> {
        if examples.is_empty() {
            return Err(EngineError::Batch {
                message: "there is no example to train on".to_owned(),
            });
        }
        Ok(Self {
            optimizer: AdamW::new(plan.adamw.clone(), &decoder.params)?,
            order: Order::new(seed, &examples),
            cursor: Cursor::default(),
            ahead: None,
            grads: Grads::new(&decoder.params),
            steps: 0,
            decoder,
            objective,
            examples,
            plan,
            seed,
            online: None,
        })
    }

    /// From the next step on the weights of the examples are multiplied by those that `online`
    /// chooses in every pass. It is not part of a saved state: a run that goes on gives it again.
    #[must_use]
    pub fn with_online(mut self, online: Arc<OnlineSelection>) -> Self {
        self.online = Some(online);
        self
    }

    /// One optimiser step.
    ///
    /// # Errors
    /// When loss or gradient are not finite (the message names the step), or an example cannot be
    /// trained on. The trainer is then as it was before the step.
    pub fn step(&mut self) -> Result<StepReport, EngineError> {
        let started = Instant::now();
        let step = self.steps + 1;
        let named = |error| match error {
            EngineError::NotFinite { what } => EngineError::NotFinite {
                what: format!("{what} of step {step}"),
            },
            error => error,
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
        let (loss, ahead) = thread::scope(|scope| {
            let ahead = (step < plan.steps).then(|| scope.spawn(next));
            let loss = match &self.online {
                None => learn(decoder, objective, &prepared, &how, grads),
                Some(online) => {
                    let online = (online.as_ref(), step);
                    learn_online(decoder, objective, prepared, &how, online, grads)
                }
            };
            let ahead = ahead.map(|ahead| ahead.join().unwrap_or_else(|p| panic::resume_unwind(p)));
            (loss, ahead)
        });
        self.ahead = ahead;
        let learnt = loss.map_err(named)?;
        let clip = self
            .grads
            .clip(self.plan.clip_norm, &learnt.on_device_rows())?;
        let learning_rate = learning_rate(&self.plan, self.steps);
        // A step in which nothing is kept teaches nothing: it must not move the weights by what the
        // moments remember.
        let teaches = learnt.counted().kept_tokens > 0;
        let params = &self.decoder.params;
        // On a GPU the update is under way before anybody knows loss and norm, and changes nothing where
        // they are no numbers: the host waits once, when the device has all its work.
        let ahead = matches!(clip, Clip::OnDevice { .. });
        if ahead && teaches {
            self.optimizer
                .step(params, &mut self.grads, learning_rate, &clip)?;
        }
        let known = learnt.read().and_then(|loss| match clip.norm()? {
            norm if norm.is_finite() => Ok((loss, norm)),
            _ => Err(EngineError::NotFinite {
                what: "the gradient".to_owned(),
            }),
        });
        if known.is_err() && ahead && teaches {
            self.optimizer.forget_step();
        }
        let (loss, grad_norm) = known.map_err(named)?;
        if !ahead && teaches {
            self.optimizer
                .step(params, &mut self.grads, learning_rate, &clip)?;
        }
        self.steps = step;
        self.cursor = ends;
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
            epoch: ends.epoch as f64 + ends.index as f64 / self.examples.len() as f64,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.steps
    }

    /// Whether the plan's last step is done.
    pub fn is_done(&self) -> bool {
        self.steps >= self.plan.steps
    }

    /// The model as it is now.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Writes the model into `folder`: a Hugging Face folder with the configuration and tokenizer of
    /// `like`, or with LoRA a PEFT adapter of `like`.
    ///
    /// # Errors
    /// When it cannot be written; what was there before is untouched.
    pub fn save_model(&self, folder: &Path, like: &Path) -> Result<(), EngineError> {
        match &self.plan.lora {
            Some(lora) => checkpoint::save_adapter(folder, &self.decoder.params, lora, like),
            None => checkpoint::save_decoder(folder, &self.decoder, like),
        }
    }

    /// The adaptation that is trained, if it is one.
    pub fn lora(&self) -> Option<&LoraPlan> {
        self.plan.lora.as_ref()
    }
}
