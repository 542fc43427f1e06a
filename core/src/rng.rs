//! Counter-based randomness: a draw depends on what it is for, never on what was drawn before.
//!
//! A sequential generator breaks three laws at once (permutation, padding, splitting a table in
//! two), because the number of earlier draws changes. Here each draw is a hash of
//! (seed, stream, example, position).

/// One named stream of random draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterRng {
    key: u64,
}

impl CounterRng {
    /// The stream `name` of `seed`, e.g. `"data-order"`.
    pub fn new(seed: u64, name: &str) -> Self {
        let name = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
        Self {
            key: mix(seed ^ mix(name)),
        }
    }

    /// What the stream's draws are hashed with: for kernels that hash on another device.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// 64 uniform bits for the pair `(a, b)`, e.g. (example id, position).
    pub fn bits(&self, a: u64, b: u64) -> u64 {
        mix(mix(self.key ^ mix(a)).wrapping_add(b.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Uniform in `[0, 1)`, 53 bits, for the pair `(a, b)`.
    pub fn uniform(&self, a: u64, b: u64) -> f64 {
        (self.bits(a, b) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
/// generators"): a bijection of 64 bits in which every input bit flips every output bit with
/// probability close to one half.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_seed_stream_and_both_counters() {
        let rng = CounterRng::new(1, "a");
        let draws = [
            rng.bits(0, 0),
            rng.bits(0, 1),
            rng.bits(1, 0),
            CounterRng::new(2, "a").bits(0, 0),
            CounterRng::new(1, "b").bits(0, 0),
        ];
        for (i, a) in draws.iter().enumerate() {
            assert!(draws[..i].iter().all(|b| a != b));
        }
        assert_eq!(draws[0], CounterRng::new(1, "a").bits(0, 0));
    }

    /// Saved runs depend on these: they may never change.
    #[test]
    fn draws_are_the_same_on_every_machine() {
        let rng = CounterRng::new(17, "data-order");
        assert_eq!(rng.bits(0, 0), FIXED[0]);
        assert_eq!(rng.bits(3, 5), FIXED[1]);
        assert_eq!(
            rng.uniform(3, 5),
            (FIXED[1] >> 11) as f64 / 9007199254740992.0
        );
    }

    /// The same written down in Python, from the definition.
    const FIXED: [u64; 2] = [7513561758254283578, 157448373483568411];

    #[test]
    fn uniform_has_the_mean_and_variance_of_a_uniform() {
        let rng = CounterRng::new(7, "uniform");
        let n = 20_000;
        let draws: Vec<f64> = (0..n).map(|i| rng.uniform(i / 100, i % 100)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|u| (u - mean).powi(2)).sum::<f64>() / n as f64;
        // Five standard errors: 5 * sqrt(1/12/n) = 0.0102 and 5 * sqrt(1/180/n) = 0.0026.
        assert!((mean - 0.5).abs() < 0.0103, "{mean}");
        assert!((variance - 1.0 / 12.0).abs() < 0.0027, "{variance}");
    }
}
