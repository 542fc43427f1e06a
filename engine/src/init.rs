//! Random weights for a student that starts from nothing.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use t3s_core::{CounterRng, DecoderSpec, decoder_spec::TensorRole};

use crate::{error::EngineError, params::Params};

/// Weights as transformers initialises them: matrices normal with the config's
/// `initializer_range` as standard deviation, gains 1, biases 0. The draws of a tensor depend on the
/// seed and its name alone.
///
/// # Errors
/// When the device has no room for them.
pub fn init_params(spec: &DecoderSpec, seed: u64, device: &Device) -> Result<Params, EngineError> {
    let mut params = Params::default();
    for tensor in spec.tensors() {
        let shape = tensor.shape.as_slice();
        let values = match tensor.role {
            TensorRole::Norm => Tensor::ones(shape, DType::F32, device)?,
            TensorRole::Bias | TensorRole::Constant => Tensor::zeros(shape, DType::F32, device)?,
            _ => {
                let rng = CounterRng::new(seed, &format!("init:{}", tensor.name));
                let n = shape.iter().product::<usize>();
                let values = normal(rng, n, spec.initializer_range);
                Tensor::from_vec(values, shape, device)?
            }
        };
        params.push(tensor.name, values);
    }
    Ok(params)
}

/// `n` draws of a normal with mean 0 (Box and Muller 1958).
fn normal(rng: CounterRng, n: usize, deviation: f64) -> Vec<f32> {
    let mut values = vec![0.0f32; n];
    // A pair of draws depends on its number alone.
    values
        .par_chunks_mut(2)
        .with_min_len(1 << 12)
        .enumerate()
        .for_each(|(pair, two)| {
            let pair = pair as u64;
            // In (0, 1], so that its logarithm is finite.
            let radius = (-2.0 * (1.0 - rng.uniform(pair, 0)).ln()).sqrt() * deviation;
            let angle = std::f64::consts::TAU * rng.uniform(pair, 1);
            let drawn = [radius * angle.cos(), radius * angle.sin()];
            for (value, drawn) in two.iter_mut().zip(drawn) {
                *value = drawn as f32;
            }
        });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_normal() {
        let values = normal(CounterRng::new(3, "test"), 20_001, 0.02);
        assert_eq!(values.len(), 20_001);
        let n = values.len() as f64;
        let moment = |k| {
            values
                .iter()
                .map(|v| f64::from(*v / 0.02).powi(k))
                .sum::<f64>()
                / n
        };
        // Five standard errors of each moment of a unit normal: sqrt(1, 2, 96) / sqrt(n) times 5.
        assert!(moment(1).abs() < 0.036, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.05, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.35, "{}", moment(4));
    }
}
