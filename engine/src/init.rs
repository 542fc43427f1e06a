//! Random weights for a student that starts from nothing.

use candle_core::{DType, Device, Tensor};
use t3s_core::{CounterRng, DecoderSpec, decoder_spec::TensorRole};

use crate::{error::EngineError, kernels::normal, params::Params};

/// Weights as transformers initialises them: matrices normal with the config's
/// `initializer_range` as standard deviation, gains 1, biases 0. The draws of a tensor depend on the
/// seed and its name alone; a GPU makes them itself ([`normal::draw`]), in `dtype`.
///
/// # Errors
/// When the device has no room for them.
pub fn init_params(
    spec: &DecoderSpec,
    seed: u64,
    device: &Device,
    dtype: DType,
) -> Result<Params, EngineError> {
    let mut params = Params::default();
    for tensor in spec.tensors() {
        let shape = tensor.shape.as_slice();
        let constant = |tensor: Tensor| tensor.to_dtype(dtype)?.to_device(device);
        let values = match tensor.role {
            TensorRole::Norm => constant(Tensor::ones(shape, DType::F32, &Device::Cpu)?)?,
            TensorRole::Bias | TensorRole::Constant => {
                constant(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)?
            }
            _ => {
                let stream = CounterRng::new(seed, &format!("init:{}", tensor.name));
                normal::draw(&stream, spec.initializer_range, shape, dtype, device)?
            }
        };
        params.push(tensor.name, values);
    }
    Ok(params)
}
