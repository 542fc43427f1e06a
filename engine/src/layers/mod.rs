//! Layers: one file each, `forward` and `backward` side by side.

pub mod attention;
pub mod autograd;
pub mod block;
pub mod embedding;
pub mod experts;
pub mod head;
pub mod linear;
pub mod lora;
pub mod rms_norm;
pub mod swiglu;

pub use attention::{Attention, QkvProjection};
pub use autograd::Autograd;
pub use block::Block;
pub use embedding::Embedding;
pub use experts::{Experts, Grouped, Mlp, Routes};
pub use head::Head;
pub use linear::Linear;
pub use lora::{Lora, Projection};
pub use rms_norm::RmsNorm;
pub use swiglu::SwiGlu;

use candle_core::{Result, Tensor};

use crate::{batch::Batch, grads::Grads, params::Params};

/// What a layer may read besides its input.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The weights.
    pub params: &'a Params,
    /// The rows.
    pub batch: &'a Batch,
    /// Where the choice of experts is held fixed.
    pub routes: Option<&'a Routes>,
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

impl Saved {
    fn of(save: Save, tensors: impl IntoIterator<Item = Tensor>) -> Self {
        match save {
            Save::ForBackward => Self {
                tensors: tensors.into_iter().collect(),
                inner: Vec::new(),
            },
            Save::Nothing => Self::default(),
        }
    }

    /// The layer's own tensors.
    fn take<const N: usize>(self, layer: &str) -> Result<[Tensor; N]> {
        let found = self.tensors.len();
        self.tensors.try_into().map_err(|_| {
            candle_core::Error::Msg(format!(
                "{layer}: backward needs {N} saved tensors, found {found}; run forward with \
                 Save::ForBackward"
            ))
        })
    }
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
