//! `y = x W^T + b`.

use candle_core::{Result, Tensor};

use super::{Context, Layer, Save, Saved};
use crate::{grads::Grads, kernels::linear, params::ParamId};

/// A matrix, with or without a bias.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: ParamId,
    /// `[out]`.
    pub bias: Option<ParamId>,
}

impl Linear {
    /// `[rows, in]` to `[rows, out]`.
    pub(super) fn apply(&self, cx: &Context<'_>, x: &Tensor) -> Result<Tensor> {
        let y = linear::forward(x, cx.params.tensor(self.weight), 1.0, None)?;
        if let Some(bias) = self.bias {
            linear::add_bias(&y, cx.params.tensor(bias))?;
        }
        Ok(y)
    }

    /// `dy W`, added to `into` where given.
    pub(super) fn input_gradient(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        into: Option<Tensor>,
    ) -> Result<Tensor> {
        linear::backward_input(dy, cx.params.tensor(self.weight), 1.0, into)
    }

    /// Adds `dy^T x` and the sum of `dy`'s rows, where they learn.
    pub(super) fn add_param_gradients(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        x: &Tensor,
        grads: &mut Grads,
    ) -> Result<()> {
        if let Some((slot, into)) = grads.product_slot(self.weight, cx.params)? {
            linear::backward_weight(dy, x, 1.0, slot, into)?;
        }
        if let Some(bias) = self.bias
            && let Some(slot) = grads.slot(bias, cx.params)?
        {
            linear::backward_bias(dy, slot)?;
        }
        Ok(())
    }
}

impl Layer for Linear {
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
        let [x] = saved.take("linear")?;
        self.add_param_gradients(cx, dy, &x, grads)?;
        self.input_gradient(cx, dy, None)
    }
}
