//! Gradient accumulators: one f32 tensor per trainable parameter, written in place.

use std::mem;

use candle_core::{DType, Result, Tensor};

use crate::{
    kernels::{
        Into,
        gradients::{self, Clip},
    },
    params::{ParamId, Params},
};

/// Sums of gradients, by parameter. A frozen parameter has no slot; a trainable one has none until
/// its first contribution.
#[derive(Debug, Default)]
pub struct Grads {
    slots: Vec<Option<Tensor>>,
    /// Slots whose values are of no account: they are 0 as far as anybody is concerned, and the first
    /// product overwrites them instead of adding to zeros.
    stale: Vec<bool>,
    trainable: Vec<bool>,
}

impl Grads {
    /// Empty accumulators for the trainable tensors of `params`.
    pub fn new(params: &Params) -> Self {
        Self {
            slots: vec![None; params.len()],
            stale: vec![false; params.len()],
            trainable: params.iter().map(|(_, param)| param.trainable).collect(),
        }
    }

    /// Whether `id` collects a gradient at all. Layers ask before computing one.
    pub fn wants(&self, id: ParamId) -> bool {
        self.trainable[id.index()]
    }

    /// The accumulator of `id`, if anything was added.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        let fresh = !self.stale[id.index()];
        self.slots[id.index()].as_ref().filter(|_| fresh)
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
        let slot = self.allocated(id, params)?;
        if mem::take(&mut self.stale[id.index()]) {
            gradients::zero(&slot)?;
        }
        Ok(self.slots[id.index()].as_ref())
    }

    /// The accumulator of `id` for one product over all of it, and whether that adds to what is there
    /// or is the first: then nothing has to be set to zero and read before.
    ///
    /// # Errors
    /// When the zeros cannot be allocated.
    pub fn product_slot(
        &mut self,
        id: ParamId,
        params: &Params,
    ) -> Result<Option<(&Tensor, Into)>> {
        if !self.wants(id) {
            return Ok(None);
        }
        self.allocated(id, params)?;
        let into = match mem::take(&mut self.stale[id.index()]) {
            true => Into::Overwrite,
            false => Into::Add,
        };
        Ok(self.slots[id.index()].as_ref().map(|slot| (slot, into)))
    }

    fn allocated(&mut self, id: ParamId, params: &Params) -> Result<Tensor> {
        let slot = &mut self.slots[id.index()];
        Ok(match slot {
            Some(slot) => slot.clone(),
            None => {
                let tensor = params.tensor(id);
                let zeros = Tensor::zeros(tensor.shape(), DType::F32, tensor.device())?;
                slot.insert(zeros).clone()
            }
        })
    }

    /// Makes every sum zero and keeps the memory.
    pub fn zero(&mut self) {
        for (slot, stale) in self.slots.iter().zip(&mut self.stale) {
            *stale = slot.is_some();
        }
    }

    /// The sums that somebody has added to.
    fn sums(&self) -> impl Iterator<Item = &Tensor> {
        let fresh = self
            .slots
            .iter()
            .zip(&self.stale)
            .filter(|(_, stale)| !**stale);
        fresh.filter_map(|(slot, _)| slot.as_ref())
    }

    /// The same by parameter.
    fn by_parameter(&self) -> impl Iterator<Item = Option<&Tensor>> {
        let slots = self.slots.iter().zip(&self.stale);
        slots.map(|(slot, stale)| slot.as_ref().filter(|_| !stale))
    }

    /// Multiplies every sum by `factor`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scale(&mut self, factor: f32) -> Result<()> {
        for slot in self.sums() {
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
        for (a, b) in self.by_parameter().zip(other.by_parameter()) {
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
            self.by_parameter().zip(before.iter()).zip(after.iter())
        {
            if let Some(slot) = slot {
                let way =
                    (after.tensor.to_dtype(DType::F32)? - before.tensor.to_dtype(DType::F32)?)?;
                total += gradients::inner_product(slot, &way)?;
            }
        }
        Ok(total)
    }

    /// The norm of all sums together, and what clipping it to `largest` (if above 0) leaves of them; see
    /// [`gradients::clip`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn clip(
        &self,
        largest: f64,
        on_device_rows: &[&Tensor],
        failed: Option<&Tensor>,
    ) -> Result<Clip> {
        let slots: Vec<&Tensor> = self.sums().collect();
        gradients::clip(&slots, largest, on_device_rows, failed)
    }

    /// The 2-norm over all sums together.
    ///
    /// # Errors
    /// When the device fails.
    pub fn global_norm(&self) -> Result<f64> {
        let slots: Vec<&Tensor> = self.sums().collect();
        let squares: f64 = gradients::sums_of_squares(&slots)?.iter().sum();
        Ok(squares.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stale_is_zero_and_is_overwritten_by_a_product() {
        let device = candle_core::Device::Cpu;
        let mut params = Params::default();
        let ids = ["a", "b", "c"].map(|name| {
            let tensor = Tensor::zeros((2, 2), DType::F32, &device).unwrap();
            params.push(name, tensor)
        });
        let mut grads = Grads::new(&params);
        for id in ids {
            let slot = grads.slot(id, &params).unwrap().unwrap();
            slot.const_set(3f32.into()).unwrap();
        }
        assert_eq!(grads.global_norm().unwrap(), 108f64.sqrt());
        grads.zero();
        assert!(ids.iter().all(|id| grads.get(*id).is_none()));
        assert_eq!(grads.global_norm().unwrap(), 0.0);
        let (_, into) = grads.product_slot(ids[0], &params).unwrap().unwrap();
        assert_eq!(into, Into::Overwrite);
        let (_, into) = grads.product_slot(ids[0], &params).unwrap().unwrap();
        assert_eq!(into, Into::Add);
        let slot = grads.slot(ids[1], &params).unwrap().unwrap();
        assert_eq!(slot.to_vec2::<f32>().unwrap(), [[0.0; 2]; 2]);
        assert!(grads.get(ids[2]).is_none(), "nobody has added to it");
    }
}
