//! AdamW (arXiv 1711.05101) with a state that can be saved.

use candle_core::{DType, Device, Shape, Tensor};
use t3s_core::plan::{AdamWPlan, StatePrecision};

use crate::{
    error::EngineError,
    grads::Grads,
    kernels::{
        adamw::{self, Coefficients, Item, MomentPair, Quantised},
        gradients::Clip,
    },
    params::{ParamId, Params},
};

/// Tensors of fewer elements keep moments in f32: they weigh nothing, and norms are touchy.
const SMALLEST_ROUNDED: usize = 4096;

/// Bytes of both moments of a parameter of `n` elements: what [`AdamW::new`] allocates.
pub fn state_bytes(precision: StatePrecision, n: u64) -> u64 {
    match precision {
        _ if n < SMALLEST_ROUNDED as u64 => 2 * n * 4,
        StatePrecision::F32 => 2 * n * 4,
        StatePrecision::Bf16 => 2 * n * 2,
        // A byte each, and a scale per block.
        StatePrecision::Bits8 => 2 * (n + n.div_ceil(adamw::BLOCK as u64) * 4),
    }
}

/// The moments of one parameter.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Whose.
    pub id: ParamId,
    /// How they are kept.
    pub state: State,
}

/// Running means of a parameter's gradient, `first`, and of its square, `second`.
#[derive(Debug, Clone)]
pub enum State {
    /// f32, or bfloat16 that is rounded at random; the parameter's shape.
    Full {
        /// `m`.
        first: Tensor,
        /// `v`.
        second: Tensor,
    },
    /// Codes of 8 bits with a scale per block.
    Quantised {
        /// `m`.
        first: Quantised,
        /// `v`.
        second: Quantised,
    },
}

impl State {
    fn zeros(
        precision: StatePrecision,
        shape: &Shape,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let dtype = match precision {
            _ if shape.elem_count() < SMALLEST_ROUNDED => DType::F32,
            StatePrecision::F32 => DType::F32,
            StatePrecision::Bf16 => DType::BF16,
            StatePrecision::Bits8 => {
                return Ok(Self::Quantised {
                    first: Quantised::zeros(shape, device)?,
                    second: Quantised::zeros(shape, device)?,
                });
            }
        };
        Ok(Self::Full {
            first: Tensor::zeros(shape, dtype, device)?,
            second: Tensor::zeros(shape, dtype, device)?,
        })
    }

    fn pair(&self) -> MomentPair<'_> {
        match self {
            Self::Full { first, second } => MomentPair::Full(first, second),
            Self::Quantised { first, second } => MomentPair::Quantised(first, second),
        }
    }

    /// Its tensors under the names that a saved state gives them, in an order that only the variant
    /// decides.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Full { first, second } => vec![("first", first), ("second", second)],
            Self::Quantised { first, second } => vec![
                ("first", &first.codes),
                ("first_scales", &first.scales),
                ("second", &second.codes),
                ("second_scales", &second.scales),
            ],
        }
    }

    /// The same with tensors from a file in place of [`State::tensors`], in their order and of their
    /// types.
    pub fn filled(&self, mut next: impl FnMut() -> Tensor) -> Self {
        let mut quantised = || Quantised {
            codes: next(),
            scales: next(),
        };
        match self {
            Self::Quantised { .. } => Self::Quantised {
                first: quantised(),
                second: quantised(),
            },
            Self::Full { .. } => Self::Full {
                first: next(),
                second: next(),
            },
        }
    }
}

/// The optimiser: moments of every trainable parameter and the number of steps they have seen.
#[derive(Debug)]
pub struct AdamW {
    plan: AdamWPlan,
    moments: Vec<Moments>,
    steps: u64,
}

impl AdamW {
    /// Zero moments for the trainable tensors of `params`.
    ///
    /// # Errors
    /// When they cannot be allocated.
    pub fn new(plan: AdamWPlan, params: &Params) -> Result<Self, EngineError> {
        let moments = params
            .iter()
            .filter(|(_, param)| param.trainable)
            .map(|(id, param)| {
                let (shape, device) = (param.tensor.shape(), param.tensor.device());
                Ok(Moments {
                    id,
                    state: State::zeros(plan.states, shape, device)?,
                })
            })
            .collect::<Result<_, EngineError>>()?;
        Ok(Self {
            plan,
            moments,
            steps: 0,
        })
    }

    /// One step: `[adamw]` in docs/equations.md, with the gradients that `clip` leaves. A parameter
    /// that no row touched has the gradient 0.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(
        &mut self,
        params: &Params,
        grads: &mut Grads,
        learning_rate: f64,
        clip: &Clip,
    ) -> Result<(), EngineError> {
        let steps = self.steps + 1;
        let t = i32::try_from(steps).unwrap_or(i32::MAX);
        let plan = &self.plan;
        let mut gradients = Vec::with_capacity(self.moments.len());
        for moments in &self.moments {
            gradients.extend(grads.slot(moments.id, params)?.cloned());
        }
        let items: Vec<Item<'_>> = self
            .moments
            .iter()
            .zip(&gradients)
            .map(|(moments, gradient)| {
                let parameter = params.tensor(moments.id);
                Item {
                    parameter,
                    gradient,
                    moments: moments.state.pair(),
                    // Matrices only: shrinking the gain of a norm or a bias is no regularisation.
                    decays: parameter.dims().len() > 1,
                    index: moments.id.index() as u32,
                }
            })
            .collect();
        let c = Coefficients {
            beta1: plan.beta1 as f32,
            beta2: plan.beta2 as f32,
            keep: (1.0 - learning_rate * plan.weight_decay) as f32,
            step_size: (learning_rate / (1.0 - plan.beta1.powi(t))) as f32,
            inverse_root_correction: (1.0 / (1.0 - plan.beta2.powi(t)).sqrt()) as f32,
            eps: plan.eps as f32,
            // No two pairs of step and tensor share one within 2^32 of them.
            rounding_seed: (steps as u32).wrapping_mul(params.len() as u32),
        };
        adamw::step(&items, c, clip)?;
        self.steps = steps;
        Ok(())
    }

    /// Steps that did not happen are not counted: their gradient was no number, which was known too late
    /// not to count them.
    pub(crate) fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// The moments, in the order of the parameters.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// The number of steps taken, `t`.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Goes on from saved moments after `steps` steps.
    pub fn restore(&mut self, moments: Vec<Moments>, steps: u64) {
        self.moments = moments;
        self.steps = steps;
    }
}
