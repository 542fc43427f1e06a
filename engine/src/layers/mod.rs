//! Layers: one file each, `forward` and `backward` side by side.

use candle_core::{Result, Tensor};

use crate::{batch::Batch, grads::Grads, params::Params};

/// What a layer may read besides its input.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The weights.
    pub params: &'a Params,
    /// The rows.
    pub batch: &'a Batch,
}

/// Whether `backward` will follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// Keep what `backward` needs.
    ForBackward,
    /// Keep nothing.
    Nothing,
}

/// What a layer's `forward` kept for its `backward`, in an order the layer alone knows.
#[derive(Debug, Default)]
pub struct Saved {
    /// Tensors of this layer.
    pub tensors: Vec<Tensor>,
    /// What inner layers kept.
    pub inner: Vec<Saved>,
}

/// `y = f(x)`, with its vector-Jacobian product written out. Shapes: `x` is `[rows, width]`.
pub trait Layer: Send + Sync {
    /// Computes `y`; keeps what `backward` needs when `save` says so.
    ///
    /// # Errors
    /// When shapes disagree or the device fails.
    fn forward(&self, cx: &Context<'_>, x: &Tensor, save: Save) -> Result<(Tensor, Saved)>;

    /// Adds parameter gradients into `grads` (skipped for frozen ones); returns `dL/dx`.
    ///
    /// # Errors
    /// When shapes disagree or the device fails.
    fn backward(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        saved: Saved,
        grads: &mut Grads,
    ) -> Result<Tensor>;
}
