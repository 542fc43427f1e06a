//! The largest rate at which this process multiplies matrices, which others are held against.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use t3s_core::CounterRng;
use t3s_engine::{EngineError, kernels::linear};

/// Rounds per size at least, and seconds after which no further round begins.
const ROUNDS: usize = 3;
const SECONDS: f64 = 0.25;
/// Different elements of a matrix; no row of it is another's copy.
const DRAWN: u64 = (1 << 20) - 3;

/// The best square product.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GemmPeak {
    /// Operations per second of the best round.
    pub flops_per_second: f64,
    /// Rows, columns and depth of that product.
    pub size: usize,
}

impl GemmPeak {
    /// Multiplies on `device` with the engine's own product, in `dtype`.
    ///
    /// # Errors
    /// When the device fails or has no room.
    pub fn measure(device: &Device, dtype: DType) -> Result<Self, EngineError> {
        let sizes: &[usize] = match device {
            Device::Cpu => &[1024, 2048],
            _ => &[4096, 8192],
        };
        let mut best = Self {
            flops_per_second: 0.0,
            size: 0,
        };
        let rng = CounterRng::new(0, "bench-gemm");
        let drawn: Vec<f32> = (0..DRAWN)
            .map(|i| (2.0 * rng.uniform(0, i) - 1.0) as f32)
            .collect();
        for size in sizes.iter().copied() {
            // Not ones or zeros, on which a GPU draws less power and is faster than on any real data.
            let values: Vec<f32> = drawn.iter().copied().cycle().take(size * size).collect();
            let matrix = Tensor::from_vec(values, (size, size), device)?.to_dtype(dtype)?;
            let work = 2.0 * (size as f64).powi(3);
            let began = Instant::now();
            let mut rounds = 0;
            while rounds < ROUNDS || began.elapsed().as_secs_f64() < SECONDS {
                device.synchronize()?;
                let started = Instant::now();
                linear::forward(&matrix, &matrix, 1.0, None)?;
                device.synchronize()?;
                let rate = work / started.elapsed().as_secs_f64();
                if rate > best.flops_per_second {
                    best = Self {
                        flops_per_second: rate,
                        size,
                    };
                }
                rounds += 1;
            }
        }
        Ok(best)
    }
}
