//! Token ids to vectors.

use candle_core::{Result, Tensor};

use crate::{
    grads::Grads,
    kernels,
    params::{ParamId, Params},
};

/// `y[r] = weight[ids[r]]`. Not a [`Layer`](super::Layer): it reads ids, not activations.
#[derive(Debug, Clone, Copy)]
pub struct Embedding {
    /// `[vocab, width]`.
    pub weight: ParamId,
}

impl Embedding {
    /// `[rows]` ids to `[rows, width]`.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn forward(&self, params: &Params, ids: &[u32]) -> Result<Tensor> {
        kernels::embedding::forward(params.tensor(self.weight), ids)
    }

    /// Adds the table's gradient; nothing lies below it.
    ///
    /// # Errors
    /// When shapes disagree.
    pub fn backward(
        &self,
        params: &Params,
        dy: &Tensor,
        ids: &[u32],
        grads: &mut Grads,
    ) -> Result<()> {
        match grads.slot(self.weight, params)? {
            Some(slot) => kernels::embedding::backward(dy, ids, slot),
            None => Ok(()),
        }
    }
}
