//! Rows of a table by id.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::{disjoint::DisjointRows, host};

/// `y[r] = table[ids[r]]`.
///
/// # Shapes
/// `table [vocab, width]`, `ids [rows]`, result `[rows, width]`.
///
/// # Errors
/// When an id is not below `vocab` (named by its row), or the device has no kernel.
pub fn forward(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (vocab, width) = host::dims2("embedding", table)?;
    check_ids(ids, vocab)?;
    on_cuda!(table, super::cuda::embedding::forward(table, ids));
    let table = host::read("embedding", table)?;
    let mut y = host::overwritten(ids.len() * width);
    y.par_chunks_mut(width * host::ROWS_PER_TASK)
        .zip(ids.par_chunks(host::ROWS_PER_TASK))
        .for_each(|(rows, ids)| {
            for (row, id) in rows.chunks_exact_mut(width).zip(ids) {
                row.copy_from_slice(&table[*id as usize * width..][..width]);
            }
        });
    host::tensor(y, (ids.len(), width))
}

/// `slot[ids[r]] += dy[r]`, in place, rows in order: the same sum whatever the number of threads.
///
/// # Shapes
/// `dy [rows, width]`, `slot [vocab, width]`.
///
/// # Errors
/// When shapes disagree, an id is not below `vocab`, or the device has no kernel.
pub fn backward(dy: &Tensor, ids: &[u32], slot: &Tensor) -> Result<()> {
    // Columns per task: a cache line's worth times four.
    const COLUMNS: usize = 64;
    let (vocab, width) = host::dims2("embedding gradient", slot)?;
    host::expect("embedding output gradient", dy, &[ids.len(), width])?;
    check_ids(ids, vocab)?;
    on_cuda!(dy, super::cuda::embedding::backward(dy, ids, slot));
    let dy = host::read("embedding", dy)?;
    host::write("embedding", slot, |slot| {
        let slot = DisjointRows::new(slot, width);
        (0..width.div_ceil(COLUMNS))
            .into_par_iter()
            .for_each(|task| {
                let start = task * COLUMNS;
                let len = COLUMNS.min(width - start);
                for (row, id) in ids.iter().enumerate() {
                    // SAFETY: tasks own different columns.
                    #[expect(unsafe_code, reason = "see the safety comment")]
                    let sum = unsafe { slot.piece(*id as usize, start, len) };
                    for (sum, dy) in sum.iter_mut().zip(&dy[row * width + start..][..len]) {
                        *sum += dy;
                    }
                }
            });
    })
}

fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().position(|id| *id as usize >= vocab) {
        None => Ok(()),
        Some(row) => bail!(
            "embedding: row {row} has id {} of a vocabulary of {vocab}",
            ids[row]
        ),
    }
}
