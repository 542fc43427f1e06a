//! Root-mean-square normalisation.

use candle_core::{Result, Tensor};

use super::{Context, Layer, Save, Saved};
use crate::{grads::Grads, kernels::rms_norm, params::ParamId};

/// `y = x / sqrt(mean(x^2) + eps) * weight`, per row.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    /// `[width]`.
    pub weight: ParamId,
    /// Added to the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// [`Layer::backward`], but `dy` is overwritten with the result, and `residual` (the gradient
    /// that flows past the norm) is added to it.
    pub(super) fn backward_past(
        &self,
        cx: &Context<'_>,
        dy: Tensor,
        x: &Tensor,
        residual: Option<&Tensor>,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let weight = cx.params.tensor(self.weight);
        let slot = grads.slot(self.weight, cx.params)?;
        rms_norm::backward_in_place(&dy, x, weight, self.eps, residual, slot)?;
        Ok(dy)
    }
}

impl Layer for RmsNorm {
    fn forward(&self, cx: &Context<'_>, x: &Tensor, save: Save) -> Result<(Tensor, Saved)> {
        let y = rms_norm::forward(x, cx.params.tensor(self.weight), self.eps)?;
        Ok((y, Saved::of(save, [x.clone()])))
    }

    fn backward(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        saved: Saved,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let [x] = saved.take("rms_norm")?;
        self.backward_past(cx, dy.copy()?, &x, None, grads)
    }
}
