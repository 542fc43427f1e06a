//! Fused linear + cross-entropy: `[rows, vocab]` exists for one chunk of rows at a time.
//!
//! Per row, with logits `z = W h`, `p = softmax(z)` and target `y`: `log p(y)`, the entropy of `p`,
//! the rank of `y`, the norm of the last layer's gradient `(p - e_y) h^T` and a sketch of it
//! (`[sketch]` in docs/equations.md), and, where asked, the gradients of
//! `sum over rows of -coefficient * log p(y)` with respect to `h` and `W`.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use t3s_core::{CounterRng, table::Sketch};

use super::{
    host,
    matmul::{Into, Mat, MatMut, Threads, matmul},
    simd::{dot, exp, max, vectorised},
    sketch::project,
};

/// Logits per chunk: 64 MiB where the vocabulary is large ...
const CHUNK_LOGITS: usize = 1 << 24;
/// ... and what stays in cache where it is small.
const CHUNK_ROWS: usize = 512;

/// A row of hidden states that has a target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadRow {
    /// Row of the hidden states.
    pub row: u32,
    /// Vocabulary id of the target.
    pub target: u32,
    /// Multiplies `-log p(target)` in the loss; 0: only statistics.
    pub coefficient: f32,
}

/// Width and seed of gradient sketches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SketchSpec {
    /// Floats per token, `k`. The variance of an inner product falls as `1 / k`.
    pub width: usize,
    /// Seed of the signs; only sketches of one seed (and model shape) are comparable.
    pub seed: u64,
}

/// Per-row results, in the order of the rows asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeadOutput {
    /// `log p(target)`, nats.
    pub logp: Vec<f32>,
    /// `-sum_v p(v) log p(v)`, nats.
    pub entropy: Vec<f32>,
    /// Number of logits strictly larger than the target's.
    pub rank: Vec<u32>,
    /// `|p - e_target| * |h|`.
    pub grad_norm: Vec<f32>,
    /// `[rows, width]`, when asked for.
    pub sketch: Option<Sketch>,
    /// `sum over rows of -coefficient * logp`.
    pub loss_sum: f64,
}

/// A [`HeadOutput`] that a device may still be working on.
#[derive(Debug)]
pub struct PendingHead(Pending);

#[derive(Debug)]
enum Pending {
    Known(HeadOutput),
    #[cfg(any(test, feature = "cuda"))]
    OnDevice(super::cuda::cross_entropy::Statistics),
}

impl PendingHead {
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn on_device(statistics: super::cuda::cross_entropy::Statistics) -> Self {
        Self(Pending::OnDevice(statistics))
    }

    /// `[rows, 4]`, the first of a row its log-prob, while they are on a device.
    pub(crate) fn on_device_rows(&self) -> Option<&Tensor> {
        match &self.0 {
            Pending::Known(_) => None,
            #[cfg(any(test, feature = "cuda"))]
            Pending::OnDevice(statistics) => Some(statistics.rows()),
        }
    }

    /// Waits for it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(self) -> Result<HeadOutput> {
        match self.0 {
            Pending::Known(output) => Ok(output),
            #[cfg(any(test, feature = "cuda"))]
            Pending::OnDevice(statistics) => statistics.read(),
        }
    }
}

/// Which gradients are computed.
#[derive(Debug, Clone, Copy)]
pub enum HeadGradients<'a> {
    /// None: statistics only.
    None,
    /// Those of the hidden states, and of the head's weight where it has a slot to add to.
    Hidden {
        /// `[vocab, width]`, and what becomes of what is in it; `None` when the weight is frozen.
        weight_slot: Option<(&'a Tensor, Into)>,
    },
}

/// Statistics of `rows`, and their gradients. The second result is `dL/dhidden`, `[rows of hidden,
/// width]`, zero where `rows` names no row.
///
/// # Shapes
/// `hidden [n, width]`, `weight [vocab, width]`.
///
/// # Numerics
/// Logits and exponentials f32; sums over the vocabulary in blocks of f32, added up in f64. The
/// target is left out of the sums and added at the end, so `1 - p(y)` keeps its precision as
/// `p(y)` goes to 1.
///
/// # Errors
/// When shapes disagree, rows are not ascending, a row or target does not exist, or the device has
/// no kernel.
pub fn run(
    hidden: &Tensor,
    weight: &Tensor,
    rows: &[HeadRow],
    sketch: Option<SketchSpec>,
    gradients: HeadGradients<'_>,
) -> Result<(PendingHead, Option<Tensor>)> {
    let (n, width) = host::dims2("head input", hidden)?;
    let (vocab, _) = host::dims2("head weight", weight)?;
    host::expect("head weight", weight, &[vocab, width])?;
    check_rows(rows, n, vocab)?;
    on_cuda!(
        hidden,
        super::cuda::cross_entropy::run(hidden, weight, rows, sketch, gradients)
    );
    let (hidden, weight) = (host::read("head", hidden)?, host::read("head", weight)?);
    let w = Mat::new(&weight, vocab, width, width);

    let mut output = HeadOutput::default();
    let mut sketches = sketch.map(|spec| Sketcher::new(spec, rows.len()));
    let backward = matches!(gradients, HeadGradients::Hidden { .. });
    let mut d_hidden = if backward {
        vec![0.0f32; n * width]
    } else {
        Vec::new()
    };

    let chunk_rows = (CHUNK_LOGITS / vocab.max(1))
        .clamp(1, CHUNK_ROWS)
        .min(rows.len().max(1));
    let mut logits = host::overwritten(chunk_rows * vocab);
    let mut h = host::overwritten(chunk_rows * width);
    let mut dh = host::overwritten(if backward { chunk_rows * width } else { 0 });
    let mut stats = vec![RowStatistics::default(); chunk_rows];
    let mut weight_slot = gradients.weight_slot();
    empty_without_rows(weight_slot, rows)?;
    for rows in rows.chunks(chunk_rows) {
        let n = rows.len();
        let (logits, h) = (&mut logits[..n * vocab], &mut h[..n * width]);
        for (h, row) in h.chunks_exact_mut(width).zip(rows) {
            h.copy_from_slice(&hidden[row.row as usize * width..][..width]);
        }
        let z = MatMut::new(logits, n, vocab, vocab);
        let h_rows = Mat::new(h, n, width, width);
        matmul(z, Into::Overwrite, h_rows, w.t(), 1.0, Threads::All);
        // What later steps read in place of the logits.
        let keep = backward || sketches.is_some();
        logits
            .par_chunks_exact_mut(vocab)
            .zip(h.par_chunks_exact(width))
            .zip(rows.par_iter().zip(&mut stats[..n]))
            .for_each(|((z, h), (row, stats))| {
                *stats = vectorised(
                    #[inline(always)]
                    || statistics(z, h, row.target as usize, keep),
                );
            });
        for (stats, row) in stats.iter().zip(rows) {
            output.logp.push(stats.logp);
            output.entropy.push(stats.entropy);
            output.rank.push(stats.rank);
            output.grad_norm.push(stats.grad_norm);
            if row.coefficient != 0.0 {
                output.loss_sum -= f64::from(row.coefficient) * f64::from(stats.logp);
            }
        }
        if let Some(sketches) = &mut sketches {
            sketches.add(logits, vocab, h, width, n);
        }
        if !backward {
            continue;
        }
        // The logits' gradient is `coefficient * (p - e_y)`; scaling the narrow `h` and `dh`
        // instead of it saves a pass over the chunk.
        let residual = Mat::new(logits, n, vocab, vocab);
        let dh = &mut dh[..n * width];
        let dh_rows = MatMut::new(dh, n, width, width);
        matmul(dh_rows, Into::Overwrite, residual, w, 1.0, Threads::All);
        for ((h, dh), row) in h
            .chunks_exact_mut(width)
            .zip(dh.chunks_exact(width))
            .zip(rows)
        {
            let out = &mut d_hidden[row.row as usize * width..][..width];
            for ((h, dh), out) in h.iter_mut().zip(dh).zip(out) {
                *h *= row.coefficient;
                *out = *dh * row.coefficient;
            }
        }
        if let Some((slot, into)) = &mut weight_slot {
            host::expect("head weight gradient", slot, &[vocab, width])?;
            let h_rows = Mat::new(h, n, width, width);
            host::write("head", slot, |slot| {
                let slot = MatMut::new(slot, vocab, width, width);
                matmul(slot, *into, residual.t(), h_rows, 1.0, Threads::All);
            })?;
            *into = Into::Add;
        }
    }
    output.sketch = sketches.map(|s| s.sketch);
    let d_hidden = match gradients {
        HeadGradients::None => None,
        HeadGradients::Hidden { .. } => Some(host::tensor(d_hidden, (n, width))?),
    };
    Ok((PendingHead(Pending::Known(output)), d_hidden))
}

impl<'a> HeadGradients<'a> {
    pub(super) fn weight_slot(self) -> Option<(&'a Tensor, Into)> {
        match self {
            Self::None => None,
            Self::Hidden { weight_slot } => weight_slot,
        }
    }
}

/// No row, no product that would overwrite what is in the slot.
pub(super) fn empty_without_rows(
    weight_slot: Option<(&Tensor, Into)>,
    rows: &[HeadRow],
) -> Result<()> {
    match weight_slot {
        Some((slot, Into::Overwrite)) if rows.is_empty() => super::gradients::zero(slot),
        _ => Ok(()),
    }
}

fn check_rows(rows: &[HeadRow], n: usize, vocab: usize) -> Result<()> {
    if let Some(pair) = rows.windows(2).find(|pair| pair[0].row >= pair[1].row) {
        bail!(
            "head: row {} does not come before row {}",
            pair[0].row,
            pair[1].row
        );
    }
    for row in rows {
        if row.row as usize >= n {
            bail!("head: row {} of {n} hidden states", row.row);
        }
        if row.target as usize >= vocab {
            bail!(
                "head: row {} has target {} of a vocabulary of {vocab}",
                row.row,
                row.target
            );
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, Default)]
struct RowStatistics {
    logp: f32,
    entropy: f32,
    rank: u32,
    grad_norm: f32,
}

/// The statistics of one row of logits `z`; turns `z` into `p - e_target` when `keep` says so.
#[inline(always)]
fn statistics(z: &mut [f32], h: &[f32], target: usize, keep: bool) -> RowStatistics {
    // Elements whose f32 sum is added to the f64 one.
    const BLOCK: usize = 1024;
    const LANES: usize = 16;
    let at_target = z[target];
    let largest = max(z);
    let rank: usize = z
        .chunks(BLOCK)
        .map(|block| block.iter().map(|z| u32::from(*z > at_target)).sum::<u32>() as usize)
        .sum();
    // NaN logits have no largest element; every statistic of the row becomes NaN.
    let e_target = f64::from(exp(at_target - largest));
    z[target] = f32::NEG_INFINITY;
    let (mut total, mut weighted, mut squares) = (0.0f64, 0.0f64, 0.0f64);
    for block in z.chunks_mut(BLOCK) {
        let mut lanes = [[0.0f32; LANES]; 3];
        for chunk in block.chunks_mut(LANES) {
            for (lane, z) in chunk.iter_mut().enumerate() {
                let shifted = *z - largest;
                // Not `f32::max`, which would hide a NaN.
                let shifted = if shifted < -87.0 { -87.0 } else { shifted };
                let e = exp(shifted);
                lanes[0][lane] += e;
                lanes[1][lane] += e * shifted;
                lanes[2][lane] += e * e;
                *z = e;
            }
        }
        let [e, ez, ee] = lanes.map(|lanes| lanes.iter().map(|l| f64::from(*l)).sum::<f64>());
        total += e;
        weighted += ez;
        squares += ee;
    }
    let partition = total + e_target;
    let shifted = f64::from(at_target - largest);
    let log_partition = match shifted {
        0.0 => total.ln_1p(),
        _ => partition.ln(),
    };
    let others = total / partition;
    let error_norm = (others * others + squares / (partition * partition)).sqrt();
    if keep {
        let inverse = (1.0 / partition) as f32;
        for z in z.iter_mut() {
            *z *= inverse;
        }
        z[target] = -others as f32;
    }
    RowStatistics {
        logp: (shifted - log_partition) as f32,
        entropy: (log_partition - (weighted + e_target * shifted.max(-87.0)) / partition) as f32,
        rank: rank as u32,
        grad_norm: (error_norm * f64::from(dot(h, h)).sqrt()) as f32,
    }
}

/// Kronecker-structured Johnson-Lindenstrauss sketches: `s = (R1 (p - e_y)) * (R2 h) / sqrt(k)`,
/// elementwise, so that `E<s_t, s_u> = <p_t - e, p_u - e> <h_t, h_u>`.
struct Sketcher {
    of_errors: CounterRng,
    of_hidden: CounterRng,
    sketch: Sketch,
}

impl Sketcher {
    fn new(spec: SketchSpec, rows: usize) -> Self {
        Self {
            of_errors: CounterRng::new(spec.seed, "sketch-vocab"),
            of_hidden: CounterRng::new(spec.seed, "sketch-hidden"),
            sketch: Sketch {
                width: spec.width,
                values: Vec::with_capacity(rows * spec.width),
            },
        }
    }

    fn add(&mut self, errors: &[f32], vocab: usize, h: &[f32], width: usize, n: usize) {
        let k = self.sketch.width;
        let scale = 1.0 / (k as f32).sqrt();
        let (errors, hidden) = rayon::join(
            || project(errors, n, vocab, k, &self.of_errors),
            || project(h, n, width, k, &self.of_hidden),
        );
        let products = errors.iter().zip(&hidden).map(|(e, h)| e * h * scale);
        self.sketch.values.extend(products);
    }
}
