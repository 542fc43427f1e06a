//! The products of a mixture of experts: rows sorted by expert, a matrix per expert.
//!
//! On the CPU experts and tiles of their rows run in parallel.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::{
    host,
    matmul::{Into, Mat, MatMut, Threads, matmul},
    routing::Routing,
};

/// Pairs per product: enough to reuse a matrix in the cache, few enough to keep every thread busy.
const PAIRS_PER_TASK: usize = 128;

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
    if weights.len() != routing.n_experts() {
        let (found, experts) = (weights.len(), routing.n_experts());
        bail!("experts: {found} matrices for {experts} experts");
    }
    for w in weights {
        host::expect("expert weight", w, first)?;
    }
    if let Some(into) = &into {
        host::expect("experts output", into, &[pairs, out])?;
    }
    on_cuda!(
        x,
        super::cuda::experts::grouped(routing.on_device()?, x, weights, scale, transposed, into)
    );
    let ranges: Vec<Range<usize>> = routing.ranges()?.collect();
    let x = host::read("experts", x)?;
    let run = |y: &mut [f32], how: Into| {
        let mut rest = y;
        let mut tasks = Vec::new();
        for (expert, range) in ranges.iter().enumerate() {
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

/// `dW_e (+)= scale * dy^T x` over the pairs of each expert, in place; experts without a slot are left
/// out. What is overwritten is zero for an expert without pairs.
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
    slots: &[Option<(Tensor, Into)>],
) -> Result<()> {
    let (pairs, out) = host::dims2("experts output gradient", dy)?;
    let (_, width) = host::dims2("experts input", x)?;
    host::expect("experts input", x, &[pairs, width])?;
    if pairs != routing.n_pairs() || slots.len() != routing.n_experts() {
        bail!(
            "experts: {pairs} pairs and {} slots are of another batch",
            slots.len()
        );
    }
    if slots.iter().all(Option::is_none) {
        return Ok(());
    }
    for (slot, _) in slots.iter().flatten() {
        host::expect("expert weight gradient", slot, &[out, width])?;
    }
    on_cuda!(
        dy,
        super::cuda::experts::backward_weight(routing.on_device()?, dy, x, scale, slots)
    );
    let (dy, x) = (host::read("experts", dy)?, host::read("experts", x)?);
    let ranges: Vec<Range<usize>> = routing.ranges()?.collect();
    slots.par_iter().zip(ranges).try_for_each(|(slot, range)| {
        let Some((slot, into)) = slot else {
            return Ok(());
        };
        host::write("experts", slot, |dst| {
            let n = range.len();
            if n == 0 {
                if *into == Into::Overwrite {
                    dst.fill(0.0);
                }
                return;
            }
            let dy = Mat::new(&dy[range.start * out..], n, out, out);
            let x = Mat::new(&x[range.start * width..], n, width, width);
            let dst = MatMut::new(dst, out, width, width);
            matmul(dst, *into, dy.t(), x, scale, Threads::One);
        })
    })
}
