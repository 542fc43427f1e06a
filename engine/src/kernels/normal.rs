//! Draws of a normal distribution: random weights.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use t3s_core::CounterRng;

/// A tensor of draws with mean 0 (Box and Muller 1958), made where it will be. Each is computed in
/// f64 and rounded to f32 and then to `dtype`; a pair of draws depends on the stream and its number
/// alone. On a GPU the last bit of an f32 may be another than on the CPU.
///
/// # Errors
/// When the device has no room.
pub fn draw(
    stream: &CounterRng,
    deviation: f64,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    #[cfg(any(test, feature = "cuda"))]
    if super::cuda::runs_on(device) {
        return super::cuda::normal::draw(stream, deviation, shape, dtype, device);
    }
    let values = values(stream, shape.iter().product(), deviation);
    Tensor::from_vec(values, shape, &Device::Cpu)?
        .to_dtype(dtype)?
        .to_device(device)
}

fn values(stream: &CounterRng, n: usize, deviation: f64) -> Vec<f32> {
    let mut values = vec![0.0f32; n];
    values
        .par_chunks_mut(2)
        .with_min_len(1 << 12)
        .enumerate()
        .for_each(|(pair, two)| {
            let pair = pair as u64;
            // In (0, 1], so that its logarithm is finite.
            let radius = (-2.0 * (1.0 - stream.uniform(pair, 0)).ln()).sqrt() * deviation;
            let angle = std::f64::consts::TAU * stream.uniform(pair, 1);
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
        let values = values(&CounterRng::new(3, "test"), 20_001, 0.02);
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
