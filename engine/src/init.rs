//! Random weights for a student that starts from nothing.

use candle_core::{DType, Device, Tensor};
use t3s_core::{CounterRng, DecoderSpec, decoder_spec::TensorRole};

use crate::{
    error::EngineError,
    kernels::normal,
    params::{Params, dtype_of},
};

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
        let dtype = dtype_of(tensor.role, dtype);
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

#[cfg(test)]
mod tests {
    use t3s_core::decoder_spec::MlpSpec;

    use super::*;
    use crate::test_model;

    #[test]
    fn what_only_chooses_is_not_rounded() {
        let spec = DecoderSpec {
            mlp: MlpSpec::Moe(Box::new(test_model::mixture())),
            ..test_model::spec()
        };
        let params = init_params(&spec, 1, &Device::Cpu, DType::BF16).unwrap();
        for (_, param) in params.iter() {
            let wanted = match param.name.contains("choice_bias") {
                true => DType::F32,
                false => DType::BF16,
            };
            assert_eq!(param.tensor.dtype(), wanted, "{}", param.name);
        }
        assert!(params.iter().any(|(_, p)| p.name.contains("choice_bias")));
    }
}
