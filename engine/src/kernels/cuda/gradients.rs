//! Twin of `kernels::gradients`.

use candle_core::{DType, Result, Tensor};

use super::{
    launch::{Launch, Source, THREADS, source},
    memory::overwritten,
};

const SOURCE: Source = source!("gradients");

/// Blocks of a sum of squares, at most.
const MOST_BLOCKS: usize = 1024;
/// Elements of a block, at least.
const LEAST_RUN: usize = 1 << 14;

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

/// The sum of squares of each of `slots`: one wait for all.
pub(in crate::kernels) fn sums_of_squares(slots: &[&Tensor]) -> Result<Vec<f64>> {
    let Some(first) = slots.first() else {
        return Ok(Vec::new());
    };
    let sums = Tensor::zeros(slots.len(), DType::F64, first.device())?;
    for (index, slot) in slots.iter().enumerate() {
        let n = slot.elem_count();
        // Whole eights, so that every block's first address is aligned.
        let run = n.div_ceil(MOST_BLOCKS).max(LEAST_RUN).next_multiple_of(8);
        let blocks = n.div_ceil(run);
        let partial = overwritten(blocks, DType::F64, slot.device())?;
        Launch::of(SOURCE, "sum_of_squares", slot)?
            .tensor(slot)?
            .tensor(&partial)?
            .u64(n as u64)
            .u64(run as u64)
            .run((blocks, 1), THREADS)?;
        Launch::plain(SOURCE, "sum_partials", slot.device())
            .tensor(&partial)?
            .tensor(&sums.narrow(0, index, 1)?)?
            .u32(blocks)?
            .run((1, 1), THREADS)?;
    }
    sums.to_vec1()
}
