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

    /// The inner product with `other`, over the parameters that both have a sum for.
    ///
    /// # Errors
    /// When the device fails, or the two are of different models.
    pub fn inner_product(&self, other: &Self) -> Result<f64> {
        let mut total = 0.0;
        for (a, b) in self.slots.iter().zip(&other.slots) {
            if let (Some(a), Some(b)) = (a, b) {
                total += gradients::inner_product(a, b)?;
            }
        }
        Ok(total)
    }

    /// The inner product with the way from `before` to `after`: what a loss with these gradients
    /// changes by, to first order.
    ///
    /// # Errors
    /// As [`Grads::inner_product`].
    pub fn along(&self, before: &Params, after: &Params) -> Result<f64> {
        let mut total = 0.0;
        for ((slot, (_, before)), (_, after)) in
            self.slots.iter().zip(before.iter()).zip(after.iter())
        {
            if let Some(slot) = slot {
                let way =
                    (after.tensor.to_dtype(DType::F32)? - before.tensor.to_dtype(DType::F32)?)?;
                total += gradients::inner_product(slot, &way)?;
            }
        }
        Ok(total)
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
