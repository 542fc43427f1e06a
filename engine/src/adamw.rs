//! AdamW (arXiv 1711.05101) with a state that can be saved.

use candle_core::{DType, Tensor};
use t3s_core::plan::AdamWPlan;

use crate::{
    error::EngineError,
    grads::Grads,
    kernels::adamw::{self, Coefficients},
    params::{ParamId, Params},
};

/// The moments of one parameter.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Whose.
    pub id: ParamId,
    /// Running mean of the gradient, f32, the parameter's shape.
    pub first: Tensor,
    /// Running mean of its square, f32, the parameter's shape.
    pub second: Tensor,
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
                    first: Tensor::zeros(shape, DType::F32, device)?,
                    second: Tensor::zeros(shape, DType::F32, device)?,
                })
            })
            .collect::<Result<_, EngineError>>()?;
        Ok(Self {
            plan,
            moments,
            steps: 0,
        })
    }

    /// One step: `[adamw]` in docs/equations.md, with the gradients scaled by `gradient_scale`
    /// first. A parameter that no row touched has the gradient 0.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(
        &mut self,
        params: &Params,
        grads: &mut Grads,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<(), EngineError> {
        self.steps += 1;
        let t = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let plan = &self.plan;
        for moments in &self.moments {
            let parameter = params.tensor(moments.id);
            let Some(gradient) = grads.slot(moments.id, params)? else {
                continue;
            };
            // Matrices only: shrinking the gain of a norm or a bias is no regularisation.
            let decay = match parameter.dims().len() {
                0 | 1 => 0.0,
                _ => plan.weight_decay,
            };
            let c = Coefficients {
                gradient_scale: gradient_scale as f32,
                beta1: plan.beta1 as f32,
                beta2: plan.beta2 as f32,
                keep: (1.0 - learning_rate * decay) as f32,
                step_size: (learning_rate / (1.0 - plan.beta1.powi(t))) as f32,
                inverse_root_correction: (1.0 / (1.0 - plan.beta2.powi(t)).sqrt()) as f32,
                eps: plan.eps as f32,
                // No two pairs of step and tensor share one within 2^32 of them.
                rounding_seed: (self.steps as u32)
                    .wrapping_mul(params.len() as u32)
                    .wrapping_add(moments.id.index() as u32),
            };
            adamw::step(parameter, gradient, &moments.first, &moments.second, c)?;
        }
        Ok(())
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
