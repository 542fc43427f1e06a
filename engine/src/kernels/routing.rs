//! Which experts read which rows of a mixture: the choice, and the order of rows by expert.
//!
//! A *pair* is (token, one of its experts). Pairs stand sorted by expert, so that each expert's
//! product is one matrix product over neighbouring rows ([`super::experts`]). All of it stays where the
//! scores are: nothing here waits for a GPU.

use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::{
    host::{self, ROWS_PER_TASK},
    linear,
    simd::dot,
};

/// How experts are chosen and weighted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Experts per token.
    pub n_chosen: usize,
    /// Groups of neighbouring experts.
    pub n_groups: usize,
    /// Groups kept.
    pub n_groups_kept: usize,
    /// Divide the weights by their sum.
    pub normalise: bool,
    /// Multiply them by this.
    pub scale: f32,
}

/// Added to the sum that weights are divided by, as the reference implementation does.
pub(super) const TINY: f32 = 1e-20;

/// The scores that experts are chosen by, before the sigmoid: `x W^T`, in f32 whatever `x` is.
///
/// # Shapes
/// `x [rows, width]`, `router [n_experts, width]`, result `[rows, n_experts]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn scores(x: &Tensor, router: &Tensor) -> Result<Tensor> {
    let (_, width) = host::dims2("router input", x)?;
    let (n_experts, _) = host::dims2("router", router)?;
    host::expect("router", router, &[n_experts, width])?;
    on_cuda!(x, super::cuda::routing::scores(x, router));
    linear::forward(x, router, 1.0, None)
}

/// The experts of each row, best first, by `logits`, `[rows, n_experts]`, and `bias`, `[n_experts]`:
/// `[rows, n_chosen]` of `u32`. The first of equals.
///
/// # Errors
/// When shapes disagree, the choice cannot be made, or the device has no kernel.
pub fn chosen(logits: &Tensor, bias: Option<&Tensor>, choice: &Choice) -> Result<Tensor> {
    let (rows, n_experts) = host::dims2("router scores", logits)?;
    let Choice {
        n_chosen,
        n_groups,
        n_groups_kept,
        ..
    } = *choice;
    let size = n_experts / n_groups.max(1);
    if n_groups == 0 || !n_experts.is_multiple_of(n_groups) || n_groups_kept > n_groups {
        bail!("experts: {n_groups_kept} of {n_groups} groups of {n_experts} experts");
    }
    if n_chosen == 0 || n_chosen > n_groups_kept * size {
        bail!("experts: {n_chosen} experts of {n_groups_kept} groups of {size}");
    }
    if let Some(bias) = bias {
        host::expect("expert bias", bias, &[n_experts])?;
    }
    on_cuda!(logits, super::cuda::routing::chosen(logits, bias, choice));
    let logits = host::read("experts", logits)?;
    let bias = match bias {
        Some(bias) => host::read("experts", bias)?.to_vec(),
        None => vec![0.0; n_experts],
    };
    let mut expert = vec![0u32; rows * n_chosen];
    expert
        .par_chunks_mut(n_chosen)
        .zip(logits.par_chunks(n_experts))
        .for_each(|(expert, logits)| {
            let scores: Vec<f32> = logits.iter().copied().map(sigmoid).collect();
            choose(&scores, &bias, choice, expert);
        });
    Tensor::from_vec(expert, (rows, n_chosen), &Device::Cpu)
}

fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + (-z).exp())
}

/// Which experts read which rows.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Experts per token.
    n_chosen: usize,
    n_experts: usize,
    n_pairs: usize,
    lists: Lists,
}

/// Where the lists are.
#[derive(Debug, Clone)]
enum Lists {
    Host(Sorted),
    #[cfg(any(test, feature = "cuda"))]
    Cuda(super::cuda::routing::Sorted),
}

/// The lists on the host.
#[derive(Debug, Clone)]
struct Sorted {
    /// `[pairs]`, by token: expert.
    expert: Vec<u32>,
    /// `[pairs]`, by token: the weight of its expert.
    weight: Vec<f32>,
    /// `[pairs]`, by token: where the pair stands among the sorted ones.
    place: Vec<u32>,
    /// `[pairs]`, sorted by expert, then token: token.
    token: Vec<u32>,
    /// `[experts + 1]`: the sorted pairs of each expert.
    offsets: Vec<usize>,
}

impl Sorted {
    fn new(n_chosen: usize, n_experts: usize, expert: Vec<u32>, weight: Vec<f32>) -> Self {
        let mut offsets = vec![0usize; n_experts + 1];
        for expert in &expert {
            offsets[*expert as usize + 1] += 1;
        }
        for e in 0..n_experts {
            offsets[e + 1] += offsets[e];
        }
        let mut next = offsets.clone();
        let mut token = vec![0; expert.len()];
        let mut place = vec![0; expert.len()];
        for (pair, expert) in expert.iter().enumerate() {
            let at = &mut next[*expert as usize];
            place[pair] = *at as u32;
            token[*at] = (pair / n_chosen) as u32;
            *at += 1;
        }
        Self {
            expert,
            weight,
            place,
            token,
            offsets,
        }
    }

    /// The weight of each sorted pair.
    fn weights(&self) -> Vec<f32> {
        let mut sorted = vec![0.0; self.place.len()];
        for (place, weight) in self.place.iter().zip(&self.weight) {
            sorted[*place as usize] = *weight;
        }
        sorted
    }
}

/// Hands over to the CUDA twin where the lists of `$routing` are on a GPU, which are `$lists` there;
/// nothing in a build without one.
macro_rules! on_cuda_lists {
    ($routing:expr, $lists:ident => $twin:expr) => {
        #[cfg(any(test, feature = "cuda"))]
        if let Lists::Cuda($lists) = &$routing.lists {
            return $twin;
        }
    };
}

impl Routing {
    /// Weights the experts `expert` of each row, `[rows, n_chosen]` of `u32` as [`chosen`] gives them,
    /// by `logits`, `[rows, n_experts]`.
    ///
    /// # Errors
    /// When shapes disagree or the device has no kernel.
    pub fn new(logits: &Tensor, expert: &Tensor, choice: &Choice) -> Result<Self> {
        let (rows, n_experts) = host::dims2("router scores", logits)?;
        let n_chosen = choice.n_chosen;
        host::expect("chosen experts", expert, &[rows, n_chosen])?;
        let with = |lists| Self {
            n_chosen,
            n_experts,
            n_pairs: rows * n_chosen,
            lists,
        };
        on_cuda!(
            logits,
            Ok(with(Lists::Cuda(super::cuda::routing::Sorted::new(
                logits, expert, choice
            )?)))
        );
        let logits = host::read("experts", logits)?;
        let expert: Vec<u32> = expert.flatten_all()?.to_vec1()?;
        let mut weight = vec![0.0; rows * n_chosen];
        weight
            .par_chunks_mut(n_chosen)
            .zip(expert.par_chunks(n_chosen))
            .zip(logits.par_chunks(n_experts))
            .for_each(|((weight, expert), logits)| {
                for (weight, expert) in weight.iter_mut().zip(expert) {
                    *weight = sigmoid(logits[*expert as usize]);
                }
                let factor = choice.factor(weight);
                weight.iter_mut().for_each(|w| *w *= factor);
            });
        Ok(with(Lists::Host(Sorted::new(
            n_chosen, n_experts, expert, weight,
        ))))
    }

    /// How many pairs there are.
    pub fn n_pairs(&self) -> usize {
        self.n_pairs
    }

    /// How many experts there are.
    pub fn n_experts(&self) -> usize {
        self.n_experts
    }

    /// The sorted pairs of each expert, where the host has them.
    ///
    /// # Errors
    /// When they are on a GPU.
    pub(super) fn ranges(&self) -> Result<impl Iterator<Item = Range<usize>>> {
        Ok(self.on_host()?.offsets.windows(2).map(|w| w[0]..w[1]))
    }

    /// The lists on the host.
    fn on_host(&self) -> Result<&Sorted> {
        match &self.lists {
            Lists::Host(sorted) => Ok(sorted),
            #[cfg(any(test, feature = "cuda"))]
            Lists::Cuda(_) => bail!("experts: rows on the CPU, routed on a GPU"),
        }
    }

    /// The lists on the GPU.
    ///
    /// # Errors
    /// When they are on the host.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn on_device(&self) -> Result<&super::cuda::routing::Sorted> {
        match &self.lists {
            Lists::Cuda(lists) => Ok(lists),
            Lists::Host(_) => bail!("experts: rows on a GPU, routed on the CPU"),
        }
    }

    /// The rows of `x`, `[rows, width]`, once per pair, sorted: `[pairs, width]`.
    ///
    /// # Errors
    /// When shapes disagree or the device has no kernel.
    pub fn gather(&self, x: &Tensor) -> Result<Tensor> {
        let (_, width) = host::dims2("experts input", x)?;
        host::expect("experts input", x, &[self.n_pairs / self.n_chosen, width])?;
        on_cuda_lists!(self, lists => lists.gather(x));
        let sorted = self.on_host()?;
        let x = host::read("experts", x)?;
        let mut out = host::overwritten(self.n_pairs * width);
        out.par_chunks_mut(width)
            .with_min_len(ROWS_PER_TASK)
            .zip(&sorted.token)
            .for_each(|(out, token)| {
                out.copy_from_slice(&x[*token as usize * width..][..width]);
            });
        host::tensor(out, (self.n_pairs, width))
    }

    /// `[rows, width]`: to each row of `into`, its pairs' rows of `sorted` are added, weighted where
    /// `weighted`.
    ///
    /// # Errors
    /// When shapes disagree or the device has no kernel.
    pub fn scatter_add(&self, sorted: &Tensor, weighted: bool, into: &Tensor) -> Result<()> {
        let (_, width) = host::dims2("experts output", sorted)?;
        let (rows, _) = host::dims2("experts output", into)?;
        host::expect("experts output", sorted, &[self.n_pairs, width])?;
        host::expect(
            "experts output",
            into,
            &[self.n_pairs / self.n_chosen, width],
        )?;
        on_cuda_lists!(self, lists => lists.scatter_add(sorted, weighted, into));
        let lists = self.on_host()?;
        let sorted = host::read("experts", sorted)?;
        host::write("experts", into, |into| {
            into.par_chunks_mut(width)
                .with_min_len(ROWS_PER_TASK)
                .zip((0..rows).into_par_iter())
                .for_each(|(into, row)| {
                    for pair in row * self.n_chosen..(row + 1) * self.n_chosen {
                        let from = &sorted[lists.place[pair] as usize * width..][..width];
                        let weight = if weighted { lists.weight[pair] } else { 1.0 };
                        for (into, from) in into.iter_mut().zip(from) {
                            *into += weight * from;
                        }
                    }
                });
        })
    }

    /// Multiplies the rows of `sorted`, `[pairs, width]`, by their pairs' weights, in place.
    ///
    /// # Errors
    /// When shapes disagree or the device has no kernel.
    pub fn weigh(&self, sorted: &Tensor) -> Result<()> {
        let (_, width) = host::dims2("experts", sorted)?;
        host::expect("experts", sorted, &[self.n_pairs, width])?;
        on_cuda_lists!(self, lists => lists.weigh(sorted));
        let weights = self.on_host()?.weights();
        host::write("experts", sorted, |rows| {
            rows.par_chunks_mut(width)
                .with_min_len(ROWS_PER_TASK)
                .zip(&weights)
                .for_each(|(row, weight)| row.iter_mut().for_each(|x| *x *= weight));
        })
    }

    /// The gradient of the logits, `[rows, n_experts]` of the type of `a`, where the gradient of a
    /// pair's weight is the inner product of its rows of `a` and `b`, `[pairs, width]`.
    ///
    /// With `w = scale s / (sum of s + tiny)`: `ds = scale / S (dw - sum of dw s / S)`,
    /// `dlogit = ds s (1 - s)`.
    ///
    /// # Errors
    /// When shapes disagree or the device has no kernel.
    pub fn logit_gradient(
        &self,
        logits: &Tensor,
        a: &Tensor,
        b: &Tensor,
        choice: &Choice,
    ) -> Result<Tensor> {
        let (rows, n_experts) = host::dims2("router scores", logits)?;
        let (_, width) = host::dims2("experts", a)?;
        host::expect("experts", a, &[self.n_pairs, width])?;
        host::expect("experts", b, &[self.n_pairs, width])?;
        on_cuda_lists!(self, lists => lists.logit_gradient(logits, a, b, choice));
        let sorted = self.on_host()?;
        let (z, a, b) = (
            host::read("experts", logits)?,
            host::read("experts", a)?,
            host::read("experts", b)?,
        );
        let mut out = vec![0.0; rows * n_experts];
        out.par_chunks_mut(n_experts)
            .with_min_len(ROWS_PER_TASK)
            .zip((0..rows).into_par_iter())
            .for_each(|(out, row)| {
                let pairs = row * self.n_chosen..(row + 1) * self.n_chosen;
                let experts = &sorted.expert[pairs.clone()];
                let score = |e: u32| sigmoid(z[row * n_experts + e as usize]);
                let scores: Vec<f32> = experts.iter().map(|e| score(*e)).collect();
                let d_weights: Vec<f32> = sorted.place[pairs]
                    .iter()
                    .map(|place| {
                        let at = *place as usize * width;
                        dot(&a[at..][..width], &b[at..][..width])
                    })
                    .collect();
                let common = match choice.normalise {
                    true => {
                        let total = scores.iter().sum::<f32>() + TINY;
                        let sum: f32 = scores.iter().zip(&d_weights).map(|(s, d)| s * d).sum();
                        sum / total
                    }
                    false => 0.0,
                };
                let factor = choice.factor(&scores);
                for ((expert, s), d) in experts.iter().zip(&scores).zip(&d_weights) {
                    out[*expert as usize] = factor * (d - common) * s * (1.0 - s);
                }
            });
        host::tensor(out, (rows, n_experts))
    }
}

impl Choice {
    /// By what the chosen scores are multiplied.
    fn factor(&self, scores: &[f32]) -> f32 {
        match self.normalise {
            true => self.scale / (scores.iter().sum::<f32>() + TINY),
            false => self.scale,
        }
    }
}

/// The experts with the largest `scores + bias` in the best groups, best first; the first of equals.
fn choose(scores: &[f32], bias: &[f32], choice: &Choice, chosen: &mut [u32]) {
    let size = scores.len() / choice.n_groups;
    let of: Vec<f32> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
    let best_two = |group: &[f32]| {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for x in group {
            if *x > first {
                (first, second) = (*x, first);
            } else if *x > second {
                second = *x;
            }
        }
        if size == 1 { first } else { first + second }
    };
    let mut groups: Vec<(f32, usize)> = of.chunks(size).map(best_two).zip(0..).collect();
    groups.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut experts: Vec<u32> = groups[..choice.n_groups_kept]
        .iter()
        .flat_map(|(_, group)| (group * size) as u32..((group + 1) * size) as u32)
        .collect();
    experts.sort_by(|a, b| {
        let order = of[*b as usize].total_cmp(&of[*a as usize]);
        order.then(a.cmp(b))
    });
    chosen.copy_from_slice(&experts[..chosen.len()]);
}
