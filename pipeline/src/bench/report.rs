//! What a benchmark found: one object, whose keys `benches/peers/hf_train.py` prints too.

use serde::Serialize;
use serde_json::{Map, Value};
use t3s_engine::profile::KernelTime;

use super::{
    gemm::GemmPeak,
    machine::{Machine, Usage},
};

/// One benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `train`, `score`, `generate` or `head`.
    pub what: &'static str,
    /// `t3s`, or the peer's name.
    pub who: &'static str,
    /// Of the program.
    pub version: &'static str,
    /// Name or path of the geometry.
    pub config: String,
    /// All weights, adapters not counted.
    pub parameters: u64,
    /// Weights that learn.
    pub trainable: u64,
    /// `full` or `lora`; null where nothing learns.
    pub method: Option<&'static str>,
    /// Of LoRA.
    pub rank: Option<usize>,
    /// Element type of weights and activations.
    pub dtype: String,
    /// Where it ran.
    pub machine: Machine,
    /// Tokens per example; of generation, per prompt.
    pub seq: usize,
    /// Examples per step; answers side by side.
    pub batch: usize,
    /// Share of the rows that have a target.
    pub kept: f64,
    /// Repetitions that were not counted.
    pub warmup: usize,
    /// Repetitions that were.
    pub steps: usize,
    /// What else was asked for, by name.
    pub options: Map<String, Value>,
    /// What was timed, one after the other.
    pub parts: Vec<Part>,
    /// The largest rate of a product, measured after the parts.
    pub gemm: GemmPeak,
    /// The memory used.
    pub memory: Memory,
    /// Loss of the first and of the last step, nats; null where nothing learns.
    pub loss: Option<[f64; 2]>,
}

/// The memory that a benchmark used.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// Most bytes held at once, before the products of `gemm`; null where it is not known.
    pub peak_bytes: Option<u64>,
    /// `resident` (of the process) or `allocated` (on the device).
    pub kind: &'static str,
    /// What had been predicted.
    pub predicted_bytes: Option<u64>,
}

/// One kind of work, timed several times.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// `step`, `pass`, `prefill`, `decode`, or `kept S` of the head.
    pub name: String,
    /// Tokens per repetition.
    pub tokens: u64,
    /// Rows per repetition for which the head was computed.
    pub rows: u64,
    /// Operations per repetition, see `bench::flops`.
    pub flops: u64,
    /// Of every repetition.
    pub seconds: Vec<f64>,
    /// Over the repetitions.
    pub tokens_per_second: Spread,
    /// At the median.
    pub flops_per_second: f64,
    /// `flops_per_second` over that of the best product.
    pub share_of_gemm: f64,
    /// What all repetitions used together.
    pub usage: Usage,
    /// Of one repetition more, where a profile was asked for and the device has one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelTime>,
}

/// The middle and the ends of some figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one figure.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        assert!(!sorted.is_empty(), "a part has at least one repetition");
        sorted.sort_by(f64::total_cmp);
        let (n, middle) = (sorted.len(), sorted.len() / 2);
        let median = match n.is_multiple_of(2) {
            true => (sorted[middle - 1] + sorted[middle]) / 2.0,
            false => sorted[middle],
        };
        Self {
            median,
            min: sorted[0],
            max: sorted[n - 1],
        }
    }
}

/// A part before anything is known about the machine's products.
#[derive(Debug)]
pub(super) struct Timed {
    pub name: String,
    pub tokens: u64,
    pub rows: u64,
    pub flops: u64,
    pub seconds: Vec<f64>,
    pub usage: Usage,
    pub kernels: Vec<KernelTime>,
}

impl Timed {
    pub(super) fn against(self, gemm: &GemmPeak) -> Part {
        let rates = self.seconds.iter().map(|s| self.tokens as f64 / s);
        let flops_per_second = self.flops as f64 / Spread::of(self.seconds.clone()).median;
        Part {
            tokens_per_second: Spread::of(rates),
            flops_per_second,
            share_of_gemm: flops_per_second / gemm.flops_per_second,
            name: self.name,
            tokens: self.tokens,
            rows: self.rows,
            flops: self.flops,
            seconds: self.seconds,
            usage: self.usage,
            kernels: self.kernels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        let spread = Spread::of([4.0, 1.0, 2.0, 9.0]);
        assert_eq!((spread.median, spread.min, spread.max), (3.0, 1.0, 9.0));
        assert_eq!(Spread::of([5.0]).median, 5.0);
    }
}
