//! Twin of `kernels::gradients`.

use candle_core::{DType, Result, Tensor};

use super::{
    launch::{Launch, Source, THREADS, source},
    memory::{address, overwritten},
    tensor_list::{CHUNK, TensorList},
};

const SOURCE: Source = source!("gradients");

pub(in crate::kernels) fn zero(slot: &Tensor) -> Result<()> {
    // Not a product with 0, which would keep NaN.
    slot.zero_set()
}

pub(in crate::kernels) fn scale(slot: &Tensor, factor: f32) -> Result<()> {
    let n = slot.elem_count();
    Launch::plain(SOURCE, "scale", slot.device())
        .tensor(slot)?
        .f32(factor)
        .u64(n as u64)
        .per_eight(n)
}

/// Partial sums of squares, chunk by chunk, behind them `more` numbers that nobody has written yet; and
/// how many chunks each slot has.
fn chunk_squares(slots: &[&Tensor], more: usize) -> Result<(Tensor, Vec<usize>)> {
    let device = slots[0].device();
    let mut list = TensorList::default();
    let mut counts = Vec::with_capacity(slots.len());
    for slot in slots {
        let (before, n) = (list.n_chunks(), slot.elem_count());
        list.push(n, &[address("norm", slot)?, n as u64]);
        counts.push(list.n_chunks() - before);
    }
    let chunks = list.n_chunks();
    let partial = overwritten(chunks + more, DType::F64, device)?;
    let (entries, listed) = list.on_device(device)?;
    Launch::plain(SOURCE, "chunk_squares", device)
        .tensor(&entries)?
        .tensor(&listed)?
        .tensor(&partial)?
        .u32(CHUNK)?
        .run((chunks, 1), THREADS)?;
    Ok((partial, counts))
}

/// The sum of squares of each of `slots`: one wait for all.
pub(in crate::kernels) fn sums_of_squares(slots: &[&Tensor]) -> Result<Vec<f64>> {
    if slots.is_empty() {
        return Ok(Vec::new());
    }
    let (partial, counts) = chunk_squares(slots, 0)?;
    let partial: Vec<f64> = partial.to_vec1()?;
    let mut rest = partial.as_slice();
    let mut sum = |n| {
        let (own, others) = rest.split_at(n);
        rest = others;
        own.iter().sum()
    };
    Ok(counts.into_iter().map(&mut sum).collect())
}

/// The norm of all `slots` together, `[1]` of f64, and the factor of `clip`, `[1]` of f32. Both are NaN
/// where a log-prob of `statistics` is no finite number, or `failed` is NaN, which it becomes with them.
pub(in crate::kernels) fn clip(
    slots: &[&Tensor],
    largest: f64,
    statistics: &[&Tensor],
    failed: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let device = slots[0].device();
    let (partial, _) = chunk_squares(slots, statistics.len())?;
    let n = partial.elem_count();
    for (index, rows) in statistics.iter().enumerate() {
        Launch::plain(SOURCE, "nan_unless_finite", device)
            .tensor(rows)?
            .tensor(&partial.narrow(0, n - statistics.len() + index, 1)?)?
            .u32(rows.dim(0)?)?
            .run((1, 1), 1024)?;
    }
    let norm = overwritten(1, DType::F64, device)?;
    let factor = overwritten(1, DType::F32, device)?;
    Launch::plain(SOURCE, "clip_factor", device)
        .tensor(&partial)?
        .tensor(&norm)?
        .tensor(&factor)?
        .optional(failed)?
        .u32(n)?
        .f32(largest as f32)
        .run((1, 1), 1024)?;
    Ok((norm, factor))
}
