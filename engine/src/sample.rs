//! From a row of logits to a token: temperature, top-k, top-p, and one uniform draw.

use t3s_core::{CounterRng, plan::sections::GeneratePlan};

use crate::{EngineError, kernels::simd};

/// How the next token is chosen. The filters come in the order temperature, top-k, top-p, each on
/// the renormalised result of the one before, as in transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    inverse_temperature: Option<f32>,
    top_k: usize,
    top_p: f64,
}

/// The draws of one answer: a function of (seed, prompt, sample, token), so that an answer does not
/// depend on what is generated beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerStream(u64, CounterRng);

impl AnswerStream {
    /// The stream of answer `sample` to prompt number `prompt`.
    pub fn new(seed: u64, prompt: usize, sample: usize) -> Self {
        let answers = CounterRng::new(seed, "generation");
        let key = answers.bits(prompt as u64, sample as u64);
        Self(key, CounterRng::new(key, "token"))
    }

    /// What its draws are hashed with: `uniform` is that of `CounterRng` for the pair (token, 0). For
    /// kernels that hash on another device.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn key(&self) -> u64 {
        self.1.key()
    }

    /// Uniform in `[0, 1)` for token number `token` of the answer.
    pub fn uniform(&self, token: usize) -> f64 {
        self.1.uniform(token as u64, 0)
    }
}

/// Memory that [`Sampler::pick`] uses again from token to token.
#[derive(Debug, Default)]
pub struct SampleScratch {
    /// `[vocab]`: `exp(logit - largest)` of every token.
    masses: Vec<f32>,
    /// Ids that survive top-k, likeliest first as far as they have been ranked.
    ids: Vec<u32>,
}

impl Sampler {
    /// The sampler that `plan` describes.
    ///
    /// # Errors
    /// When the temperature is negative or no number, or `top_p` is outside `(0, 1]`.
    pub fn new(plan: &GeneratePlan) -> Result<Self, EngineError> {
        let refuse = |key: &str, message: String| EngineError::Spec {
            key: format!("generate.{key}"),
            message,
        };
        if !(plan.temperature >= 0.0 && plan.temperature.is_finite()) {
            let message = format!("{} is no temperature; write 0 or more", plan.temperature);
            return Err(refuse("temperature", message));
        }
        if !(plan.top_p > 0.0 && plan.top_p <= 1.0) {
            let message = format!("{} is no share; write more than 0, at most 1", plan.top_p);
            return Err(refuse("top_p", message));
        }
        // A temperature whose inverse overflows f32 is the arg max.
        let inverse = (1.0 / plan.temperature) as f32;
        Ok(Self {
            inverse_temperature: inverse.is_finite().then_some(inverse),
            top_k: plan.top_k,
            top_p: plan.top_p,
        })
    }

    /// Whether every draw gives the arg max.
    pub fn is_greedy(&self) -> bool {
        self.inverse_temperature.is_none()
    }

    /// Divides by the temperature; `None` where every draw gives the arg max.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn inverse_temperature(&self) -> Option<f32> {
        self.inverse_temperature
    }

    /// How many of the likeliest tokens are sampled among; 0: all.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn top_k(&self) -> usize {
        self.top_k
    }

    /// The share of the probability that is sampled among.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn top_p(&self) -> f64 {
        self.top_p
    }

    /// Whether some of `vocab` tokens may be left out.
    pub(crate) fn filters(&self, vocab: usize) -> bool {
        let some_k = self.top_k > 0 && self.top_k < vocab;
        !self.is_greedy() && (some_k || self.top_p < 1.0)
    }

    /// The next token's id, given a uniform draw in `[0, 1)`; of equal logits the lower id is the
    /// likelier. `None` when a logit is NaN or positive infinity, or there is none.
    ///
    /// `softmax(logits / temperature)`, cut to the `top_k` likeliest, then to the likeliest tokens
    /// up to and including the one at which their probabilities reach `top_p`.
    ///
    /// # Shapes
    /// `logits [vocab]`, f32.
    ///
    /// # Numerics
    /// Masses are f32, their sums f64 in a fixed order: the same draw gives the same token.
    pub fn pick(&self, logits: &[f32], uniform: f64, scratch: &mut SampleScratch) -> Option<u32> {
        let (top, largest) = arg_max(logits)?;
        let Some(scale) = self.inverse_temperature else {
            return Some(top);
        };
        scratch.masses.resize(logits.len(), 0.0);
        let masses = &mut scratch.masses;
        simd::vectorised(
            #[inline(always)]
            || {
                for (mass, logit) in masses.iter_mut().zip(logits) {
                    let z = (logit - largest) * scale;
                    // `exp` bottoms out at 1e-38, which a vocabulary of 2^60 would need to notice;
                    // a logit of negative infinity has to be impossible all the same.
                    *mass = if z < -87.0 { 0.0 } else { simd::exp(z) };
                }
            },
        );
        let all_k = self.top_k == 0 || self.top_k >= logits.len();
        if all_k && self.top_p >= 1.0 {
            let ids = 0..logits.len() as u32;
            return Some(draw(ids, masses, total(masses.iter()), uniform));
        }
        let ids = &mut scratch.ids;
        ids.clear();
        ids.extend((0..logits.len() as u32).filter(|id| masses[*id as usize] > 0.0));
        // Likeliest first by the logit itself: two different logits may have one mass.
        let order = |a: &u32, b: &u32| {
            let by_logit = logits[*b as usize].partial_cmp(&logits[*a as usize]);
            by_logit.expect("`arg_max` refuses NaN").then(a.cmp(b))
        };
        if !all_k && self.top_k < ids.len() {
            ids.select_nth_unstable_by(self.top_k, order);
            ids.truncate(self.top_k);
            ids.sort_unstable();
        }
        if self.top_p < 1.0 {
            let wanted = self.top_p * total(ids.iter().map(|id| &masses[*id as usize]));
            let kept = rank_until(ids, masses, wanted, order);
            ids.truncate(kept);
            ids.sort_unstable();
        }
        let sum = total(ids.iter().map(|id| &masses[*id as usize]));
        Some(draw(ids.iter().copied(), masses, sum, uniform))
    }
}

/// The lowest id of the largest logit, with it.
fn arg_max(logits: &[f32]) -> Option<(u32, f32)> {
    let largest = simd::vectorised(
        #[inline(always)]
        || {
            // A NaN anywhere makes the sum NaN; `max` alone would pass it over.
            let finite = simd::sum(logits.len(), |i| {
                if logits[i] < f32::INFINITY {
                    0.0
                } else {
                    f32::NAN
                }
            });
            simd::max(logits) + finite
        },
    );
    let id = logits.iter().position(|z| *z == largest)?;
    largest.is_finite().then_some((id as u32, largest))
}

/// Sums in f64, in order.
fn total<'a>(masses: impl Iterator<Item = &'a f32>) -> f64 {
    masses.map(|mass| f64::from(*mass)).sum()
}

/// The first of `ids` at which the running sum of masses exceeds `uniform * sum`.
fn draw(ids: impl Iterator<Item = u32>, masses: &[f32], sum: f64, uniform: f64) -> u32 {
    let threshold = uniform * sum;
    let (mut running, mut last) = (0.0, 0);
    for id in ids {
        let mass = f64::from(masses[id as usize]);
        if mass > 0.0 {
            running += mass;
            last = id;
            if running > threshold {
                break;
            }
        }
    }
    // Rounding may leave the sum at the threshold: then the last possible token.
    last
}

/// Ranks the front of `ids` until its masses reach `wanted`; returns how many that takes. Only as
/// much is sorted as is needed: a confident model keeps three tokens of a vocabulary of 150 000.
fn rank_until(
    ids: &mut [u32],
    masses: &[f32],
    wanted: f64,
    order: impl Fn(&u32, &u32) -> std::cmp::Ordering + Copy,
) -> usize {
    let (mut ranked, mut running) = (0, 0.0);
    let mut next = 16;
    while ranked < ids.len() {
        let end = ids.len().min(ranked + next);
        if end < ids.len() {
            ids[ranked..].select_nth_unstable_by(end - ranked - 1, order);
        }
        ids[ranked..end].sort_unstable_by(order);
        for (i, id) in ids[ranked..end].iter().enumerate() {
            running += f64::from(masses[*id as usize]);
            if running >= wanted {
                return ranked + i + 1;
            }
        }
        ranked = end;
        next *= 4;
    }
    ids.len()
}

#[cfg(test)]
mod tests;
