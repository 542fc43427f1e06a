//! Low-rank adaptation (arXiv 2106.09685): `y = x W^T + b + (alpha / r) (x A^T) B^T` with `W`, `b`
//! frozen.

use candle_core::{Result, Tensor};
use t3s_core::{CounterRng, DecoderSpec, decoder_spec::TensorRole, plan::sections::LoraPlan};

use super::{Context, Layer, Linear, Save, Saved};
use crate::{
    error::EngineError,
    grads::Grads,
    kernels::linear,
    params::{ParamId, Params},
};

/// A frozen linear layer with a low-rank correction that learns.
#[derive(Debug, Clone, Copy)]
pub struct Lora {
    /// The frozen layer.
    pub frozen: Linear,
    /// `A`, `[r, in]`.
    pub a: ParamId,
    /// `B`, `[out, r]`.
    pub b: ParamId,
    /// `alpha / r`.
    pub scale: f32,
}

/// A projection of a block: plain, or adapted.
#[derive(Debug, Clone, Copy)]
pub enum Projection {
    /// A plain linear layer.
    Plain(Linear),
    /// A frozen one with a low-rank correction.
    Adapted(Lora),
}

impl Projection {
    /// `[rows, in]` to `[rows, out]`; keeps nothing, since the backward pass needs only `x`.
    ///
    /// # Errors
    /// When shapes disagree or the device fails.
    pub fn apply(&self, cx: &Context<'_>, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(plain) => plain.apply(cx, x),
            Self::Adapted(lora) => {
                let y = lora.frozen.apply(cx, x)?;
                let xa = linear::forward(x, cx.params.tensor(lora.a), 1.0, None)?;
                linear::forward(&xa, cx.params.tensor(lora.b), lora.scale, Some(y))
            }
        }
    }

    /// `dL/dx`, added to `into` (in place) where given; and what
    /// [`Projection::add_param_gradients`] then need not compute again.
    ///
    /// # Errors
    /// When shapes disagree or the device fails.
    pub fn input_gradient(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        into: Option<Tensor>,
    ) -> Result<(Tensor, LowGradient)> {
        match self {
            Self::Plain(plain) => Ok((plain.input_gradient(cx, dy, into)?, LowGradient(None))),
            Self::Adapted(lora) => {
                let dx = lora.frozen.input_gradient(cx, dy, into)?;
                let dxa = linear::backward_input(dy, cx.params.tensor(lora.b), lora.scale, None)?;
                let dx = linear::backward_input(&dxa, cx.params.tensor(lora.a), 1.0, Some(dx))?;
                Ok((dx, LowGradient(Some(dxa))))
            }
        }
    }

    /// Adds the gradients of what learns; `low` is what [`Projection::input_gradient`] of the same
    /// `dy` gave.
    ///
    /// # Errors
    /// When shapes disagree or the device fails.
    pub fn add_param_gradients(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        low: &LowGradient,
        x: &Tensor,
        grads: &mut Grads,
    ) -> Result<()> {
        match self {
            Self::Plain(plain) => plain.add_param_gradients(cx, dy, x, grads),
            Self::Adapted(lora) => {
                if let Some((slot, into)) = grads.product_slot(lora.b, cx.params)? {
                    let xa = linear::forward(x, cx.params.tensor(lora.a), 1.0, None)?;
                    linear::backward_weight(dy, &xa, lora.scale, slot, into)?;
                }
                if let (Some(dxa), Some((slot, into))) =
                    (&low.0, grads.product_slot(lora.a, cx.params)?)
                {
                    linear::backward_weight(dxa, x, 1.0, slot, into)?;
                }
                Ok(())
            }
        }
    }

    /// Both: adds the gradients of what learns, returns `dL/dx`, added to `into` where given.
    ///
    /// # Errors
    /// When shapes disagree or the device fails.
    pub fn gradients(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        x: &Tensor,
        into: Option<Tensor>,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let (dx, low) = self.input_gradient(cx, dy, into)?;
        self.add_param_gradients(cx, dy, &low, x, grads)?;
        Ok(dx)
    }
}

/// The gradient of `x A^T`, `[rows, r]`, where there is an adapter.
#[derive(Debug)]
pub struct LowGradient(Option<Tensor>);

impl Layer for Projection {
    fn forward(&self, cx: &Context<'_>, x: &Tensor, save: Save) -> Result<(Tensor, Saved)> {
        Ok((self.apply(cx, x)?, Saved::of(save, [x.clone()])))
    }

    fn backward(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        saved: Saved,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let [x] = saved.take("projection")?;
        self.gradients(cx, dy, &x, None, grads)
    }
}

/// PEFT's name of the `A` (`lora_A`) or `B` (`lora_B`) that adapts the weight `weight`.
pub fn adapter_name(weight: &str, part: &str) -> String {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    format!("base_model.model.{module}.{part}.weight")
}

/// Whether `plan` adapts the weight `weight`, by the last part of its module's name.
pub fn is_target(plan: &LoraPlan, weight: &str) -> bool {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    let last = module.rsplit('.').next().unwrap_or(module);
    plan.targets.iter().any(|target| target == last)
}

/// Every projection of `spec` that a plan may adapt: name, rows, columns.
fn projections(spec: &DecoderSpec) -> Vec<(String, usize, usize)> {
    spec.tensors()
        .into_iter()
        .filter(|tensor| matches!(tensor.role, TensorRole::Attention | TensorRole::Mlp))
        .map(|tensor| (tensor.name, tensor.shape[0], tensor.shape[1]))
        .collect()
}

/// Adds a fresh adapter to `params`: `A` uniform in `+-1 / sqrt(in)` (PEFT's default, Kaiming
/// uniform with `a = sqrt(5)`), `B` zero, so that the model computes what it did. Tensors that are
/// there already (a loaded adapter) stay. Call it before [`Decoder::new`](crate::Decoder::new).
///
/// # Errors
/// When the plan adapts nothing: rank 0, or a target that the model does not have.
pub fn attach(
    spec: &DecoderSpec,
    params: &mut Params,
    plan: &LoraPlan,
    seed: u64,
) -> std::result::Result<(), EngineError> {
    check_plan(spec, plan)?;
    let rng = CounterRng::new(seed, "lora-init");
    for (index, (name, out, width)) in projections(spec).into_iter().enumerate() {
        if !is_target(plan, &name) {
            continue;
        }
        let device = match params.id(&name) {
            Some(id) => params.tensor(id).device().clone(),
            None => continue, // `Decoder::new` reports it
        };
        let (a, b) = (adapter_name(&name, "lora_A"), adapter_name(&name, "lora_B"));
        if params.id(&a).is_none() {
            let bound = 1.0 / (width as f64).sqrt();
            let value = |i| ((2.0 * rng.uniform(index as u64, i) - 1.0) * bound) as f32;
            let values: Vec<f32> = (0..(plan.rank * width) as u64).map(value).collect();
            params.push(a, Tensor::from_vec(values, (plan.rank, width), &device)?);
        }
        if params.id(&b).is_none() {
            let zeros = Tensor::zeros((out, plan.rank), candle_core::DType::F32, &device)?;
            params.push(b, zeros);
        }
    }
    Ok(())
}

/// Refuses a plan that names no rank or a projection that the model does not have.
pub(crate) fn check_plan(
    spec: &DecoderSpec,
    plan: &LoraPlan,
) -> std::result::Result<(), EngineError> {
    let refuse = |key: &str, message: String| {
        Err(EngineError::Spec {
            key: format!("lora.{key}"),
            message,
        })
    };
    if plan.rank == 0 {
        return refuse("rank", "0; a rank is at least 1".into());
    }
    if !plan.alpha.is_finite() || plan.alpha == 0.0 {
        return refuse(
            "alpha",
            format!("{}; write a number other than 0", plan.alpha),
        );
    }
    let known: Vec<String> = projections(spec)
        .into_iter()
        .map(|(name, _, _)| name)
        .collect();
    if plan.targets.is_empty() {
        return refuse("targets", "empty; name at least one projection".into());
    }
    for target in &plan.targets {
        let one = LoraPlan {
            targets: vec![target.clone()],
            ..plan.clone()
        };
        if !known.iter().any(|name| is_target(&one, name)) {
            return refuse(
                "targets",
                format!(
                    "{target:?} is no projection of this model, such as {}",
                    known[0]
                ),
            );
        }
    }
    Ok(())
}
