//! The head: logits, and the fused loss and statistics.

use candle_core::{Result, Tensor};

use crate::{
    grads::Grads,
    kernels::{
        cross_entropy::{self, HeadGradients},
        linear,
    },
    params::{ParamId, Params},
};

pub use crate::kernels::cross_entropy::{HeadOutput, HeadRow, PendingHead, SketchSpec};

/// The projection to the vocabulary; `weight` is the embedding's when the head is tied.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// `[vocab, width]`.
    pub weight: ParamId,
}

impl Head {
    /// `[rows, width]` to `[rows, vocab]`: for generation and tests. Training never makes them all.
    ///
    /// # Errors
    /// When shapes disagree or the device fails.
    pub fn logits(&self, params: &Params, hidden: &Tensor) -> Result<Tensor> {
        linear::forward(hidden, params.tensor(self.weight), 1.0, None)
    }

    /// Per-row statistics, without gradients.
    ///
    /// # Errors
    /// When rows are not ascending, a row or target does not exist, or the device fails.
    pub fn forward(
        &self,
        params: &Params,
        hidden: &Tensor,
        rows: &[HeadRow],
        sketch: Option<SketchSpec>,
    ) -> Result<HeadOutput> {
        let weight = params.tensor(self.weight);
        let (output, _) = cross_entropy::run(hidden, weight, rows, sketch, HeadGradients::None)?;
        output.read()
    }

    /// The same, not waited for, with the gradients of `sum over rows of -coefficient * logp`: the
    /// weight's is added to `grads`, that of `hidden` is returned, `[rows of hidden, width]`.
    ///
    /// # Errors
    /// As [`Head::forward`].
    pub fn forward_backward(
        &self,
        params: &Params,
        hidden: &Tensor,
        rows: &[HeadRow],
        sketch: Option<SketchSpec>,
        grads: &mut Grads,
    ) -> Result<(PendingHead, Tensor)> {
        let weight = params.tensor(self.weight);
        let gradients = HeadGradients::Hidden {
            weight_slot: grads.product_slot(self.weight, params)?,
        };
        let (output, d_hidden) = cross_entropy::run(hidden, weight, rows, sketch, gradients)?;
        Ok((output, d_hidden.expect("asked for")))
    }
}
