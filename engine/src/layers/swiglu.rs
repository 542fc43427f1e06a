//! The gated feed-forward part of a block: `down(silu(gate(x)) * up(x))` (arXiv 2002.05202).

use candle_core::{Result, Tensor};

use super::{Context, Layer, Projection, Save, Saved};
use crate::{grads::Grads, kernels::swiglu};

/// Three projections and a gate.
#[derive(Debug, Clone, Copy)]
pub struct SwiGlu {
    /// `[hidden, width]`.
    pub gate: Projection,
    /// `[hidden, width]`.
    pub up: Projection,
    /// `[width, hidden]`.
    pub down: Projection,
}

impl Layer for SwiGlu {
    fn forward(&self, cx: &Context<'_>, x: &Tensor, save: Save) -> Result<(Tensor, Saved)> {
        let gate = self.gate.apply(cx, x)?;
        let up = self.up.apply(cx, x)?;
        let hidden = swiglu::forward(&gate, &up)?;
        let y = self.down.apply(cx, &hidden)?;
        // The hidden layer is made again in `backward`, where its sigmoid is needed anyway.
        Ok((y, Saved::of(save, [x.clone(), gate, up])))
    }

    fn backward(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        saved: Saved,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let [x, gate, up] = saved.take("swiglu")?;
        let (hidden, low) = self.down.input_gradient(cx, dy, None)?;
        swiglu::backward_in_place(&gate, &up, &hidden)?;
        let (d_gate, d_up) = (gate, up);
        self.down
            .add_param_gradients(cx, dy, &low, &hidden, grads)?;
        drop(hidden);
        let dx = self.gate.gradients(cx, &d_gate, &x, None, grads)?;
        self.up.gradients(cx, &d_up, &x, Some(dx), grads)
    }
}
