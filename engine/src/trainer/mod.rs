//! The training loop's one step, its state, and the check before the first one.

mod ahead;
mod gradient_check;
mod order;
mod state;
mod step;

use std::{path::Path, sync::Arc, time::Instant};

use candle_core::Tensor;
use t3s_core::{
    Example, Objective,
    plan::{LoraPlan, TrainPlan},
};

pub(crate) use gradient_check::checked_blocks;
pub use gradient_check::{CHECKED_TOKENS, GradientReport, GroupCheck};

use crate::{
    adamw::AdamW, checkpoint, decoder::Decoder, error::EngineError, grads::Grads,
    online::OnlineSelection,
};
use ahead::Ahead;
use order::{Cursor, Order};
use step::InFlight;

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
    /// Steps begun.
    steps: u64,
    /// Steps whose results are known; one less than `steps` while one is in flight.
    reported: u64,
    in_flight: Option<InFlight>,
    /// Why the step after the last could not begin.
    stalled: Option<EngineError>,
    /// When the last report was made.
    last_end: Option<Instant>,
    /// On a GPU: `[1]` of f64, 0 until the gradient of a step is no number and NaN from then on, so that the
    /// steps that are under way by then change nothing either.
    failed: Option<Tensor>,
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
            reported: 0,
            in_flight: None,
            stalled: None,
            last_end: None,
            failed: None,
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

    /// Steps done, as far as they have been reported.
    pub fn steps_done(&self) -> u64 {
        self.reported
    }

    /// Whether the plan's last step is done.
    pub fn is_done(&self) -> bool {
        self.reported >= self.plan.steps
    }

    /// The model as it is now.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Writes the model into `folder`: a Hugging Face folder with the configuration and tokenizer of
    /// `like`, or with LoRA a PEFT adapter of `like`.
    ///
    /// # Errors
    /// When it cannot be written or [`Trainer::is_ahead`]; what was there before is untouched.
    pub fn save_model(&self, folder: &Path, like: &Path) -> Result<(), EngineError> {
        self.check_settled()?;
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
