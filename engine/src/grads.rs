//! Gradient accumulators: one f32 tensor per trainable parameter, written in place.

use candle_core::{DType, Result, Tensor};

use crate::{
    kernels::gradients,
    params::{ParamId, Params},
};

/// Sums of gradients, by parameter. A frozen parameter has no slot; a trainable one has none until
/// its first contribution.
#[derive(Debug, Default)]
pub struct Grads {
    slots: Vec<Option<Tensor>>,
    trainable: Vec<bool>,
}

impl Grads {
    /// Empty accumulators for the trainable tensors of `params`.
    pub fn new(params: &Params) -> Self {
        Self {
            slots: vec![None; params.len()],
            trainable: params.iter().map(|(_, param)| param.trainable).collect(),
        }
    }

    /// Whether `id` collects a gradient at all. Layers ask before computing one.
    pub fn wants(&self, id: ParamId) -> bool {
        self.trainable[id.index()]
    }

    /// The accumulator of `id`, if anything was added.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.slots[id.index()].as_ref()
    }

    /// The accumulator of `id`, zeros if nothing was added yet: `beta = 1` targets. `None` for a
    /// frozen parameter. f32, contiguous, of the parameter's shape; write with in-place operations.
    ///
    /// # Errors
    /// When the zeros cannot be allocated.
    pub fn slot(&mut self, id: ParamId, params: &Params) -> Result<Option<&Tensor>> {
        if !self.wants(id) {
            return Ok(None);
        }
        let slot = &mut self.slots[id.index()];
        if slot.is_none() {
            let tensor = params.tensor(id);
            *slot = Some(Tensor::zeros(tensor.shape(), DType::F32, tensor.device())?);
        }
        Ok(slot.as_ref())
    }

    /// Sets every sum to zero and keeps the memory.
    ///
    /// # Errors
    /// When the device fails.
    pub fn zero(&mut self) -> Result<()> {
        for slot in self.slots.iter().flatten() {
            gradients::zero(slot)?;
        }
        Ok(())
    }

    /// Multiplies every sum by `factor`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scale(&mut self, factor: f32) -> Result<()> {
        for slot in self.slots.iter().flatten() {
            gradients::scale(slot, factor)?;
        }
        Ok(())
    }

    /// The 2-norm over all sums together.
    ///
    /// # Errors
    /// When the device fails.
    pub fn global_norm(&self) -> Result<f64> {
        let slots: Vec<&Tensor> = self.slots.iter().flatten().collect();
        let squares: f64 = gradients::sums_of_squares(&slots)?.iter().sum();
        Ok(squares.sqrt())
    }
}
