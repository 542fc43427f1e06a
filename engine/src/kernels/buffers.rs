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
