//! A mixture of experts on the CPU: the choice of experts, and products of rows sorted by expert.
//!
//! A *pair* is (token, one of its experts). Pairs stand sorted by expert, so that each expert's
//! product is one matrix product over neighbouring rows; experts and tiles of rows run in parallel.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::{
    host::{self, ROWS_PER_TASK},
    matmul::{Into, Mat, MatMut, Threads, matmul},
    simd::dot,
};

/// Pairs per product: enough to reuse a matrix in the cache, few enough to keep every thread busy.
const PAIRS_PER_TASK: usize = 128;

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
const TINY: f32 = 1e-20;

/// Which experts read which rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Experts per token.
    n_chosen: usize,
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

/// The experts of each row, `[rows, chosen]`, by `logits`, `[rows, experts]`, and `bias`, `[experts]`.
///
/// # Errors
/// When shapes disagree, the choice cannot be made, or the device has no kernel.
pub fn chosen(logits: &Tensor, bias: Option<&Tensor>, choice: &Choice) -> Result<Vec<u32>> {
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
    let logits = host::read("experts", logits)?;
    let bias = match bias {
        Some(bias) => {
            host::expect("expert bias", bias, &[n_experts])?;
            host::read("experts", bias)?.to_vec()
        }
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
    Ok(expert)
}

fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + (-z).exp())
}

impl Routing {
    /// Weights the experts `expert` of each row, `[rows, chosen]`, by `logits`, `[rows, experts]`.
    ///
    /// # Errors
    /// When shapes disagree or the device has no kernel.
    pub fn new(logits: &Tensor, expert: Vec<u32>, choice: &Choice) -> Result<Self> {
        let (rows, n_experts) = host::dims2("router scores", logits)?;
        let n_chosen = choice.n_chosen;
        if expert.len() != rows * n_chosen {
            bail!("experts: {} choices for {rows} rows", expert.len());
        }
        let logits = host::read("experts", logits)?;
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
        Ok(Self::sorted(n_chosen, n_experts, expert, weight))
    }

    fn sorted(n_chosen: usize, n_experts: usize, expert: Vec<u32>, weight: Vec<f32>) -> Self {
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
            n_chosen,
            expert,
            weight,
            place,
            token,
            offsets,
        }
    }

    /// How many pairs there are.
    pub fn n_pairs(&self) -> usize {
        self.token.len()
    }

    /// The sorted pairs of each expert.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.offsets.windows(2).map(|w| w[0]..w[1])
    }

    /// The rows of `x`, `[rows, width]`, once per pair, sorted: `[pairs, width]`.
    ///
    /// # Errors
    /// When the device has no kernel.
    pub fn gather(&self, x: &Tensor) -> Result<Tensor> {
        let (_, width) = host::dims2("experts input", x)?;
        let x = host::read("experts", x)?;
        let mut out = host::overwritten(self.n_pairs() * width);
        out.par_chunks_mut(width)
            .with_min_len(ROWS_PER_TASK)
            .zip(&self.token)
            .for_each(|(out, token)| {
                out.copy_from_slice(&x[*token as usize * width..][..width]);
            });
        host::tensor(out, (self.n_pairs(), width))
    }

    /// `[rows, width]`: to each row of `into`, its pairs' rows of `sorted` are added, weighted where
    /// `weighted`.
    ///
    /// # Errors
    /// When shapes disagree or the device has no kernel.
    pub fn scatter_add(&self, sorted: &Tensor, weighted: bool, into: &Tensor) -> Result<()> {
        let (_, width) = host::dims2("experts output", sorted)?;
        let (rows, _) = host::dims2("experts output", into)?;
        host::expect("experts output", sorted, &[self.n_pairs(), width])?;
        host::expect(
            "experts output",
            into,
            &[self.n_pairs() / self.n_chosen, width],
        )?;
        let sorted = host::read("experts", sorted)?;
        host::write("experts", into, |into| {
            into.par_chunks_mut(width)
                .with_min_len(ROWS_PER_TASK)
                .zip((0..rows).into_par_iter())
                .for_each(|(into, row)| {
                    for pair in row * self.n_chosen..(row + 1) * self.n_chosen {
                        let from = &sorted[self.place[pair] as usize * width..][..width];
                        let weight = if weighted { self.weight[pair] } else { 1.0 };
                        for (into, from) in into.iter_mut().zip(from) {
                            *into += weight * from;
                        }
                    }
                });
        })
    }

    /// The weight of each sorted pair.
    fn sorted_weights(&self) -> Vec<f32> {
        let mut sorted = vec![0.0; self.n_pairs()];
        for (place, weight) in self.place.iter().zip(&self.weight) {
            sorted[*place as usize] = *weight;
        }
        sorted
    }

    /// Multiplies the rows of `sorted`, `[pairs, width]`, by their pairs' weights, in place.
    ///
    /// # Errors
    /// When the device has no kernel.
    pub fn weigh(&self, sorted: &Tensor) -> Result<()> {
        let (_, width) = host::dims2("experts", sorted)?;
        let weights = self.sorted_weights();
        host::write("experts", sorted, |rows| {
            rows.par_chunks_mut(width)
                .with_min_len(ROWS_PER_TASK)
                .zip(&weights)
                .for_each(|(row, weight)| row.iter_mut().for_each(|x| *x *= weight));
        })
    }

    /// The gradient of the logits, `[rows, experts]`, where the gradient of a pair's weight is the
    /// inner product of its rows of `a` and `b`, `[pairs, width]`.
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
        host::expect("experts", a, &[self.n_pairs(), width])?;
        host::expect("experts", b, &[self.n_pairs(), width])?;
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
                let experts = &self.expert[pairs.clone()];
                let score = |e: u32| sigmoid(z[row * n_experts + e as usize]);
                let scores: Vec<f32> = experts.iter().map(|e| score(*e)).collect();
                let d_weights: Vec<f32> = self.place[pairs]
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

/// One product per expert and tile of its pairs: `out (+)= scale * x op(w)`.
fn grouped(
    routing: &Routing,
    x: &Tensor,
    weights: &[&Tensor],
    scale: f32,
    transposed: bool,
    into: Option<Tensor>,
) -> Result<Tensor> {
    let (pairs, width) = host::dims2("experts input", x)?;
    let first = weights.first().map_or(&[][..], |w| w.dims());
    let [rows, columns] = *first else {
        bail!("experts: expected matrices, found {first:?}");
    };
    let (from, out) = if transposed {
        (columns, rows)
    } else {
        (rows, columns)
    };
    host::expect("experts input", x, &[routing.n_pairs(), from])?;
    if weights.len() + 1 != routing.offsets.len() {
        bail!(
            "experts: {} matrices for {} experts",
            weights.len(),
            routing.offsets.len() - 1
        );
    }
    for w in weights {
        host::expect("expert weight", w, first)?;
    }
    let x = host::read("experts", x)?;
    let run = |y: &mut [f32], how: Into| {
        let mut rest = y;
        let mut tasks = Vec::new();
        for (expert, range) in routing.ranges().enumerate() {
            for start in range.clone().step_by(PAIRS_PER_TASK) {
                let n = PAIRS_PER_TASK.min(range.end - start);
                let (piece, after) = std::mem::take(&mut rest).split_at_mut(n * out);
                rest = after;
                tasks.push((expert, start, n, piece));
            }
        }
        tasks
            .into_par_iter()
            .try_for_each(|(expert, start, n, piece)| {
                let w = host::read("experts", weights[expert])?;
                let w = Mat::new(&w, rows, columns, columns);
                let w = if transposed { w.t() } else { w };
                let x = Mat::new(&x[start * width..], n, width, width);
                matmul(
                    MatMut::new(piece, n, out, out),
                    how,
                    x,
                    w,
                    scale,
                    Threads::One,
                );
                Ok::<(), candle_core::Error>(())
            })
    };
    match into {
        Some(tensor) => {
            host::expect("experts output", &tensor, &[pairs, out])?;
            host::write("experts", &tensor, |y| run(y, Into::Add))??;
            Ok(tensor)
        }
        None => {
            let mut y = host::overwritten(pairs * out);
            run(&mut y, Into::Overwrite)?;
            host::tensor(y, (pairs, out))
        }
    }
}

/// `scale * x W_e^T` for the pairs of each expert `e`, added to `into` where given.
///
/// # Shapes
/// `x [pairs, in]`, `weights[e] [out, in]`, result `[pairs, out]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn forward(
    routing: &Routing,
    x: &Tensor,
    weights: &[&Tensor],
    scale: f32,
    into: Option<Tensor>,
) -> Result<Tensor> {
    grouped(routing, x, weights, scale, true, into)
}

/// `scale * dy W_e`, added to `into` where given.
///
/// # Shapes
/// `dy [pairs, out]`, `weights[e] [out, in]`, result `[pairs, in]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn backward_input(
    routing: &Routing,
    dy: &Tensor,
    weights: &[&Tensor],
    scale: f32,
    into: Option<Tensor>,
) -> Result<Tensor> {
    grouped(routing, dy, weights, scale, false, into)
}

/// `dW_e += scale * dy^T x` over the pairs of each expert, in place; experts without a slot are left
/// out.
///
/// # Shapes
/// `dy [pairs, out]`, `x [pairs, in]`, `slots[e] [out, in]`.
///
/// # Errors
/// When shapes disagree or the device has no kernel.
pub fn backward_weight(
    routing: &Routing,
    dy: &Tensor,
    x: &Tensor,
    scale: f32,
    slots: &[Option<Tensor>],
) -> Result<()> {
    let (pairs, out) = host::dims2("experts output gradient", dy)?;
    let (_, width) = host::dims2("experts input", x)?;
    host::expect("experts input", x, &[pairs, width])?;
    if pairs != routing.n_pairs() || slots.len() + 1 != routing.offsets.len() {
        bail!(
            "experts: {pairs} pairs and {} slots are of another batch",
            slots.len()
        );
    }
    let (dy, x) = (host::read("experts", dy)?, host::read("experts", x)?);
    let ranges: Vec<Range<usize>> = routing.ranges().collect();
    slots.par_iter().zip(ranges).try_for_each(|(slot, range)| {
        let Some(slot) = slot else { return Ok(()) };
        host::expect("expert weight gradient", slot, &[out, width])?;
        if range.is_empty() {
            return Ok(());
        }
        host::write("experts", slot, |dst| {
            let n = range.len();
            let dy = Mat::new(&dy[range.start * out..], n, out, out);
            let x = Mat::new(&x[range.start * width..], n, width, width);
            let dst = MatMut::new(dst, out, width, width);
            matmul(dst, Into::Add, dy.t(), x, scale, Threads::One);
        })
    })
}
