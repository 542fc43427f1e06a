//! Lists of where tensors are, for kernels that go through many of one shape: the experts of a mixture.

use std::{cell::RefCell, collections::HashMap};

use candle_core::{Device, Result, Tensor};

use super::memory::upload;

/// How many lists of addresses stay on the device: two per block and projection of its experts, five with
/// adapters, for more blocks than models have.
const KEPT_LISTS: usize = 4096;

thread_local! {
    /// By what they hold. A model has one per projection and block, for weights and for gradients, and
    /// asks for each again in every step.
    static KEPT: RefCell<HashMap<Vec<u64>, Tensor>> = RefCell::default();
}

/// `addresses` on the device, as kernels read a `const u64 *`. The same list again is not copied again.
pub(super) fn on_device(addresses: Vec<u64>, device: &Device) -> Result<Tensor> {
    KEPT.with_borrow_mut(|kept| {
        if let Some(tensor) = kept.get(&addresses)
            && tensor.device().same_device(device)
        {
            return Ok(tensor.clone());
        }
        let halves = |word: &u64| [*word as u32, (*word >> 32) as u32];
        let words: Vec<u32> = addresses.iter().flat_map(halves).collect();
        let tensor = upload(&words, device)?;
        if kept.len() >= KEPT_LISTS {
            // Those of a model that is gone, for the most part.
            kept.clear();
        }
        kept.insert(addresses, tensor.clone());
        Ok(tensor)
    })
}
