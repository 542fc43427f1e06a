//! How large the buffers of the CUDA kernels are: for the kernels, and for who predicts memory.

use super::attention::Heads;

/// Logits of the head that are there at a time: 512 MiB of f32. Some 900 rows of a vocabulary of
/// 150 000, which a matrix product of full speed needs.
const CHUNK_LOGITS: usize = 1 << 27;
/// Rows of logits that are there at a time, at most.
const CHUNK_ROWS: usize = 4096;
/// Blocks that sum a weight gradient over rows, at most: several for every multiprocessor of a large
/// GPU.
const MOST_RUNS: usize = 1024;
/// Warps that sum the gradient of a norm of heads, at most.
const MOST_WARPS: usize = 16384;
/// Warps per block of the rotary kernels: each has a head of a row.
pub(crate) const ROTARY_WARPS: usize = 8;
/// How many lists of indices stay on the device: those of the passes of one step that recur layer by
/// layer (positions, tiles), with room for another batch's.
pub(crate) const KEPT_LISTS: usize = 24;

/// Pairs of a tile of a mixture of experts, at most; as in experts.cuh.
pub(crate) const EXPERT_ROWS: usize = 64;

/// Tiles of pairs, each of one expert, however the pairs are shared out.
pub(crate) fn expert_tiles(pairs: usize, experts: usize) -> usize {
    pairs / EXPERT_ROWS + experts.min(pairs)
}

/// Rows of logits that the head makes at a time, of `rows` that are asked.
pub(crate) fn head_chunk_rows(vocab: usize, rows: usize) -> usize {
    (CHUNK_LOGITS / vocab).clamp(1, CHUNK_ROWS).min(rows.max(1))
}

/// Rows per block where sums over rows are asked for; depends on nothing but their number.
pub(crate) fn run_of(rows: usize) -> usize {
    rows.div_ceil(MOST_RUNS).max(8)
}

/// Warps that share the heads of a batch where the gradient of their norm is summed.
pub(crate) fn rotary_warps(items: usize) -> usize {
    items.min(MOST_WARPS).next_multiple_of(ROTARY_WARPS)
}

/// Bytes of scores' gradients of a part of a batch that cuDNN computes together, if it has several
/// examples.
pub(crate) const CUDNN_PART_SCORES: u64 = 1 << 30;

/// Rows of the batch that cuDNN's plans are tried with, at most: several tiles of any kernel.
pub(crate) const CUDNN_TRIAL_ROWS: usize = 2048;

/// Rows that cuDNN's plans have for the longest example: the next of 128, 192, 256, 384, 512, 768, ...,
/// since the room that the backward pass works in grows with the square.
pub(crate) fn cudnn_longest(longest: usize) -> usize {
    let power = longest.next_power_of_two().max(128);
    match longest <= power / 4 * 3 && power > 128 {
        true => power / 4 * 3,
        false => power,
    }
}

/// What cuDNN's deterministic backward pass works in on compute capability 9, about: the gradient of each
/// score in bfloat16, as if all of `examples` (rounded up to a power of two) were as long as the longest.
pub(crate) fn cudnn_score_bytes(heads: Heads, examples: usize, longest: usize) -> u64 {
    let pairs = (cudnn_longest(longest) as u64).pow(2);
    2 * examples.next_power_of_two() as u64 * heads.n_heads as u64 * pairs
}

/// Rows of a matrix product over prompts: always this many, whatever is read, and enough for a GPU to
/// compute at a good part of its speed. Unit tests have short prompts, and an emulator to compute them.
pub(crate) const PROMPT_ROWS: usize = if cfg!(test) { 16 } else { 512 };

/// Most rows of prompts per pass, whose activations are in memory at once; a longer prompt is a pass of
/// its own.
pub(crate) const PREFILL_ROWS: usize = 8 * PROMPT_ROWS;

/// Capacities of caches are multiples of so many positions.
pub(crate) const CACHE_POSITIONS: usize = 64;

/// Keys of one partial result of attention over a cache; the constant of decode.cu.
pub(crate) const ATTEND_CHUNK: usize = 256;

/// Rows of a step of generation at least, of a batch that has as many. Up to 64 rows a GPU reads the
/// weights for longer than it multiplies by them, several times so: fewer rows would save next to nothing,
/// and every number of rows is a recording of its own.
pub(crate) const FEWEST_STEP_ROWS: usize = 64;

/// Rows of a step of generation for `open` answers: `batch`, halved while they fit, but not below `fewest`. Few numbers
/// of rows, so that few steps are recorded anew and matrix products have few shapes.
pub(crate) fn step_rows(open: usize, batch: usize, fewest: usize) -> usize {
    let mut rows = batch;
    while rows > fewest {
        let half = rows.div_ceil(2).max(fewest);
        if open > half {
            break;
        }
        rows = half;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::step_rows;

    #[test]
    fn rows_are_halved_while_the_open_answers_fit() {
        let of = |open| step_rows(open, 100, 10);
        assert_eq!(
            [100, 51, 50, 26, 25, 14, 13, 1, 0].map(of),
            [100, 100, 50, 50, 25, 25, 13, 10, 10]
        );
        // A batch that is smaller than the fewest rows keeps its size.
        assert_eq!(step_rows(1, 5, 10), 5);
        for batch in 1..300 {
            for open in 0..=batch {
                let rows = step_rows(open, batch, 64);
                assert!(open <= rows && rows <= batch);
                // In several steps as in one.
                assert_eq!(step_rows(open, rows, 64), rows);
            }
        }
    }
}
