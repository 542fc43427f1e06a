//! How much of a GPU's memory training and scoring take, counted from the geometry.
//!
//! What is counted is what [`memory::peak_bytes`](crate::memory::peak_bytes) measures there: tensors.
//! One function per part, each naming the code whose tensors it counts in their order, so that both can
//! be read side by side. A test trains with the emulated kernels and counts what they really allocate.

mod generation;

use std::collections::BTreeMap;

use candle_core::DType;
use t3s_core::{
    AttentionPattern, DecoderSpec,
    decoder_spec::{LayerMlp, MoeSpec, TensorRole},
    plan::{LoraPlan, Recompute, StatePrecision, TrainPlan},
};

use crate::{
    adamw::state_bytes,
    kernels::{
        attention::Heads,
        buffers::{
            CUDNN_PART_SCORES, CUDNN_TRIAL_ROWS, KEPT_LISTS, ROTARY_WARPS, cudnn_score_bytes,
            expert_tiles, head_chunk_rows, rotary_warps, run_of,
        },
    },
    layers::lora,
    trainer::checked_blocks,
};

pub use generation::{Answers, GENERATION_WORKSPACE};

/// Bytes of an f32, and of a `u32`.
const F32: u64 = 4;
/// Bytes of an address.
const ADDRESS: u64 = 8;

/// What is allocated outside of the pool that tensors come from: the workspace of cuBLAS (32 MiB on
/// the GPUs that have the largest, as NVIDIA documents it) and the code of kernels (taken to be no more
/// than that).
pub const OUTSIDE_BYTES: u64 = 64 << 20;

/// A model and what is done with it.
#[derive(Debug, Clone, Copy)]
pub struct Footprint<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// Of weights and activations.
    pub dtype: DType,
    /// Adapters that learn instead of all weights.
    pub lora: Option<&'a LoraPlan>,
    /// Which activations are computed twice.
    pub recompute: Recompute,
    /// How the optimiser's moments are kept.
    pub states: StatePrecision,
}

/// The rows of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassRows {
    /// Rows of the decoder.
    pub rows: u64,
    /// Of them those that ask the head.
    pub asked: u64,
    /// Positions of the longest example.
    pub positions: u64,
    /// What sees what.
    pub attention: AttentionPattern,
}

impl<'a> Footprint<'a> {
    /// Training `spec` as `plan` says.
    pub fn of(spec: &'a DecoderSpec, dtype: DType, plan: &'a TrainPlan) -> Self {
        Self {
            spec,
            dtype,
            lora: plan.lora.as_ref(),
            recompute: plan.recompute,
            states: plan.adamw.states,
        }
    }

    /// Most bytes of training: weights, gradients, optimiser, and the passes of a step.
    pub fn training(&self, pass: PassRows) -> u64 {
        self.weights() + self.gradients() + self.moments() + self.tables(pass) + self.pass(pass)
    }

    /// Most bytes of scoring, which keeps nothing for a backward pass.
    pub fn scoring(&self, pass: PassRows) -> u64 {
        self.weights() + self.tables(pass) + self.forward(pass)
    }

    /// Most bytes of a pass that keeps nothing, beside weights.
    fn forward(&self, pass: PassRows) -> u64 {
        let width = pass.rows * self.width();
        // `Decoder::forward`: a block's input beside what it holds; the final norm's beside its output;
        // the hidden states beside the head's buffers.
        let block = self.largest(|layer| self.forward_inside(layer, pass.rows));
        let head = self.head(pass, Backward::No);
        width + block.max(width).max(head).max(self.cudnn_trial(pass))
    }

    /// Most bytes of the check of gradients before the first step (trainer/gradient_check.rs): the copy in
    /// f32, its gradients, and either the pass that makes them, or the group that is moved along them,
    /// the way of one tensor, and a forward pass. The optimiser is there already; gradients of training
    /// are not yet.
    pub fn gradient_check(&self, pass: PassRows) -> u64 {
        let blocks = checked_blocks(self.spec, self.dtype);
        let checked = DecoderSpec {
            n_layers: blocks.len(),
            ..self.spec.clone()
        };
        let copy = Footprint {
            spec: &checked,
            dtype: DType::F32,
            ..*self
        };
        let copied = match self.dtype {
            DType::F32 => 0,
            _ => checked.n_parameters() as u64 * F32,
        };
        let mut groups: BTreeMap<TensorRole, u64> = BTreeMap::new();
        for tensor in checked.tensors() {
            *groups.entry(tensor.role).or_default() +=
                tensor.shape.iter().product::<usize>() as u64;
        }
        let learning = copy.learning();
        let group = match self.lora {
            None => groups.into_values().max().unwrap_or(0),
            Some(_) => learning.iter().sum(),
        };
        let moved = (group + learning.into_iter().max().unwrap_or(0)) * F32;
        let work = copy.pass(pass).max(moved + copy.forward(pass));
        self.weights() + self.moments() + copied + copy.gradients() + copy.tables(pass) + work
    }

    /// `init_params`, `load_params`: every tensor in the model's type. `lora::attach`: adapters in f32.
    pub fn weights(&self) -> u64 {
        let model = self.spec.n_parameters() as u64 * self.element();
        let adapters = match self.lora {
            Some(_) => self.learning().iter().sum::<u64>() * F32,
            None => 0,
        };
        model + adapters
    }

    /// `Grads`: an f32 slot of every tensor that learns.
    pub fn gradients(&self) -> u64 {
        self.learning().iter().sum::<u64>() * F32
    }

    /// `AdamW`: both moments of every tensor that learns.
    pub fn moments(&self) -> u64 {
        let learning = self.learning();
        learning.iter().map(|n| state_bytes(self.states, *n)).sum()
    }

    /// Elements of each tensor that learns.
    pub fn learning(&self) -> Vec<u64> {
        let tensors = self.spec.tensors().into_iter();
        match self.lora {
            None => tensors
                .filter(|tensor| tensor.role != TensorRole::Constant)
                .map(|tensor| tensor.shape.iter().product::<usize>() as u64)
                .collect(),
            // `lora::attach`: `A [rank, in]` and `B [out, rank]`.
            Some(plan) => tensors
                .filter(|tensor| tensor.shape.len() == 2 && lora::is_target(plan, &tensor.name))
                .flat_map(|tensor| [tensor.shape[1], tensor.shape[0]])
                .map(|side| (plan.rank * side) as u64)
                .collect(),
        }
    }

    /// What stays on the device between passes: kernels/cuda/rotary.rs `angles` (a power of two of
    /// positions), the lists of kernels/cuda/memory.rs `indices`, each of up to a number per row, and
    /// those of kernels/cuda/addresses.rs: of the weights of the experts' projections and of what learns.
    pub fn tables(&self, pass: PassRows) -> u64 {
        let angles = pass.positions.next_power_of_two() * self.spec.rope.rotary_dim as u64 * F32;
        let lists = |layer| match self.spec.mlp.at(layer) {
            LayerMlp::Dense { .. } => 0,
            LayerMlp::Experts(moe) => {
                // Weights and their gradients, or those of both matrices of an adapter beside.
                let of_projection = if self.lora.is_some() { 5 } else { 2 };
                3 * of_projection * moe.n_experts as u64 * ADDRESS
            }
        };
        let addresses: u64 = (0..self.spec.n_layers).map(lists).sum();
        angles + KEPT_LISTS as u64 * pass.rows * F32 + addresses
    }

    /// Most bytes of one pass of training beside weights, gradients and moments: `accumulate::run`, from
    /// `Decoder::forward` over the head to `Decoder::backward`.
    pub fn pass(&self, pass: PassRows) -> u64 {
        let width = pass.rows * self.width();
        let layers = self.spec.n_layers;
        let blocks = match self.recompute {
            Recompute::None => 1,
            Recompute::Block => 1,
            Recompute::Every(n) => n.clamp(1, layers.max(1)),
        };
        // `Tape`: all that the blocks' backward passes need, or the inputs of the segments.
        let kept = match self.recompute {
            Recompute::None => self.saved(0..layers, pass.rows),
            _ => layers.div_ceil(blocks) as u64 * width,
        };
        // `Decoder::forward`: the last block while it runs.
        let running = match (self.recompute, layers) {
            (_, 0) => 0,
            (Recompute::None, _) => self.forward_beside_saved(layers - 1, pass.rows),
            // Inside of a segment its input, which is not the tape's.
            _ => {
                let inside = self.largest(|layer| self.forward_inside(layer, pass.rows));
                if blocks > 1 { width + inside } else { inside }
            }
        };
        // The final norm's input, which its `Saved` has; the hidden states; the head.
        let head = width + width + self.head(pass, Backward::Yes);
        // `Decoder::backward`, `RmsNorm::backward`: the input, the gradient, its copy.
        let final_norm = 3 * width + self.norm_sums(pass.rows);
        let ends = kept + running.max(head).max(final_norm);
        ends.max(self.blocks_backward(pass, blocks))
    }

    /// The loop of `Decoder::backward`: the segment that takes most, of the input gradient (`dx`), what
    /// the tape still has, and what the blocks do.
    fn blocks_backward(&self, pass: PassRows, blocks: usize) -> u64 {
        let rows = pass.rows;
        let width = rows * self.width();
        let layers = self.spec.n_layers;
        let segments = (0..layers).step_by(blocks).enumerate();
        let segment = segments.map(|(index, first)| {
            let end = (first + blocks).min(layers);
            let last = end - 1;
            let inside = self.backward_beside_saved(last, pass);
            let (tape, work) = match self.recompute {
                Recompute::None => (self.saved(0..first, rows), inside),
                // The inputs of the segments before this one; its blocks are run again.
                _ => {
                    let again = self.forward_beside_saved(last, rows);
                    (index as u64 * width, inside.max(again))
                }
            };
            tape + self.saved(first..end, rows) + width + work
        });
        segment.max().unwrap_or(0)
    }

    /// What the blocks `layers` save, their inputs included.
    fn saved(&self, layers: std::ops::Range<usize>, rows: u64) -> u64 {
        layers.map(|layer| rows * self.block_saved(layer)).sum()
    }

    /// `Saved` of a `Block`, per row.
    fn block_saved(&self, layer: usize) -> u64 {
        // The block's input and its norm; what attention came to and its norm.
        let norms = 4 * self.width();
        norms + self.attention_saved() + self.mlp_saved(layer)
    }

    /// `Saved` of an `Attention` but its input, per row: queries and keys before and after norm and
    /// rotary, values, the output, its log-sum-exp (f32).
    fn attention_saved(&self) -> u64 {
        3 * self.queries() + 3 * self.keys() + self.log_sums()
    }

    /// `Saved` of a feed-forward part but its input, per row: gate and up of a `SwiGlu`; of `Experts`
    /// the scores, gate and up of each pair, and what the shared expert saves.
    fn mlp_saved(&self, layer: usize) -> u64 {
        match self.spec.mlp.at(layer) {
            LayerMlp::Dense { hidden } => 2 * self.elements(hidden),
            LayerMlp::Experts(moe) => {
                let scores = moe.n_experts as u64 * F32;
                scores + 2 * self.elements(moe.n_chosen * moe.hidden + moe.shared_hidden)
            }
        }
    }

    /// `Block::forward` that saves nothing: most bytes beside its input.
    fn forward_inside(&self, layer: usize, rows: u64) -> u64 {
        // The norm's output, all of attention, its result.
        let attention = self.width() + self.attention_saved() + self.width();
        // Both norms' outputs, attention's result.
        let before = 3 * self.width();
        let mlp = match self.spec.mlp.at(layer) {
            // Gate, up and their product; the result.
            LayerMlp::Dense { hidden } => {
                rows * (3 * self.elements(hidden) + self.width()) + self.adapter(rows)
            }
            // `Experts::forward`: scores, routing, gate and up, what comes out of the experts; beside it
            // the product of gate and up that it is made of, or the shared expert.
            LayerMlp::Experts(moe) => {
                let mixture = self.mixture(moe, rows);
                let shared = rows * (3 * self.elements(moe.shared_hidden) + self.width());
                mixture.scores
                    + mixture.routing
                    + 2 * mixture.hidden
                    + mixture.width
                    + (mixture.hidden + mixture.adapter).max(shared + self.adapter(rows))
            }
        };
        (rows * attention + self.adapter(rows)).max(rows * before + mlp)
    }

    /// `Block::forward` that saves: most bytes beside what is saved, its input included.
    fn forward_beside_saved(&self, layer: usize, rows: u64) -> u64 {
        match self.spec.mlp.at(layer) {
            // The product of gate and up, and the result.
            LayerMlp::Dense { hidden } => {
                rows * (self.elements(hidden) + self.width()) + self.adapter(rows)
            }
            // As in `forward_inside`; what the shared expert saves is not there before it runs.
            LayerMlp::Experts(moe) => {
                let mixture = self.mixture(moe, rows);
                let later = 2 * rows * self.elements(moe.shared_hidden);
                let shared = rows * (self.elements(moe.shared_hidden) + self.width());
                let experts = (mixture.hidden + mixture.adapter).saturating_sub(later);
                mixture.routing + mixture.width + experts.max(shared + self.adapter(rows))
            }
        }
    }

    /// Backward of a feed-forward part: most bytes beside what is saved, its input included, and beside
    /// `dy`.
    fn mlp_backward(&self, layer: usize, rows: u64) -> u64 {
        match self.spec.mlp.at(layer) {
            // `SwiGlu::backward`: the product of gate and up again, then `dx`.
            LayerMlp::Dense { hidden } => {
                rows * self.elements(hidden).max(self.width()) + self.adapter(rows)
            }
            // `Experts::backward`: the shared expert; then, without what that one saved, `dx`, the
            // gradient of each pair's result or input, and of its hidden layer, beside which there is the
            // hidden layer itself or what adapters need twice.
            LayerMlp::Experts(moe) => {
                let mixture = self.mixture(moe, rows);
                let shared = self.elements(moe.shared_hidden);
                let first = rows * shared.max(self.width()) + self.adapter(rows);
                let gone = 2 * rows * shared;
                let then = rows * (self.width() + self.elements(moe.n_experts))
                    + mixture.width
                    + mixture.hidden
                    + mixture.hidden.max(mixture.adapter + mixture.low);
                mixture.routing + first.max(then.saturating_sub(gone))
            }
        }
    }

    /// The sizes of a mixture over `rows` rows.
    fn mixture(&self, moe: &MoeSpec, rows: u64) -> Mixture {
        let pairs = rows * moe.n_chosen as u64;
        let experts = moe.n_experts as u64;
        let names = [&moe.names.gate, &moe.names.up, &moe.names.down];
        let (rank, cast) = match self.lora {
            Some(plan) if names.iter().any(|name| lora::is_target(plan, name)) => {
                let widest = self.spec.width.max(moe.hidden) as u64;
                // kernels/cuda/experts.rs `Matrices`: copies, and where they are.
                let copies = plan.rank as u64 * widest * self.element() + ADDRESS;
                let cast = if self.dtype == DType::F32 { 0 } else { copies };
                (plan.rank, experts * cast)
            }
            _ => (0, 0),
        };
        let tiles = expert_tiles(pairs as usize, moe.n_experts) as u64;
        Mixture {
            scores: rows * experts * F32,
            // kernels/cuda/routing.rs `Sorted`: four lists of pairs, offsets, tiles.
            routing: (4 * pairs + experts + 1 + 3 * tiles) * F32,
            width: pairs * self.width(),
            hidden: pairs * self.elements(moe.hidden),
            low: pairs * self.elements(rank),
            adapter: pairs * self.elements(rank) + cast,
        }
    }

    /// `Block::backward`: most bytes beside what is saved, its input included, and beside `dy`.
    fn backward_beside_saved(&self, layer: usize, pass: PassRows) -> u64 {
        let rows = pass.rows;
        let mlp = self.mlp_backward(layer, rows);
        // The norm turns it into `d_middle`; what the feed-forward part saved is gone.
        let gone = rows * (self.mlp_saved(layer) + self.width());
        let norm = rows * self.width() + self.norm_sums(rows);
        // `Attention::backward` beside `d_middle`: `d_out`, `dq`, `dk`, `dv`; at first with what
        // `attention::backward` needs (delta, or cuDNN's room), then with the sums of the heads' norms, then with `dx` (and
        // one tensor of all three where they are one projection).
        let fused = match self.spec.fused_qkv() {
            true => self.queries() + 2 * self.keys(),
            false => 0,
        };
        let gradients = rows * (2 * self.queries() + 2 * self.keys());
        let room = match self.cudnn_room(pass) {
            0 => rows * self.log_sums(),
            room => room,
        };
        let input = rows * (self.width() + fused) + self.adapter(rows);
        let attention = rows * self.width() + gradients + room.max(self.head_sums(rows)).max(input);
        mlp.max(norm.max(attention).saturating_sub(gone))
    }

    /// kernels/cuda/cudnn.rs `parts`: what the backward pass of the part that takes most works in; 0 where
    /// this build, these heads or this pattern have no attention by cuDNN.
    fn cudnn_room(&self, pass: PassRows) -> u64 {
        let dim = self.spec.head_dim;
        let applies = cfg!(cudnn_attention)
            && self.dtype == DType::BF16
            && (64..=256).contains(&dim)
            && dim.is_multiple_of(16);
        let pattern = matches!(
            pass.attention,
            AttentionPattern::Causal | AttentionPattern::Bidirectional
        );
        if !applies || !pattern || pass.rows == 0 {
            return 0;
        }
        let heads = Heads {
            n_heads: self.spec.n_heads,
            n_kv_heads: self.spec.n_kv_heads,
            head_dim: dim,
        };
        let longest = pass.positions.max(1);
        let bytes = |examples| cudnn_score_bytes(heads, examples as usize, longest as usize);
        bytes(1).max(bytes(pass.rows.div_ceil(longest)).min(CUDNN_PART_SCORES))
    }

    /// kernels/cuda/cudnn/trial.rs `fault`, in the first block of the first pass: both passes of a small
    /// batch, in the room of a large one. A pass with a backward pass takes that room later, beside more.
    fn cudnn_trial(&self, pass: PassRows) -> u64 {
        let room = self.cudnn_room(pass);
        if room == 0 {
            return 0;
        }
        let rows = pass.rows.next_power_of_two().min(CUDNN_TRIAL_ROWS as u64);
        // Queries, output, its gradient and theirs, keys, values and their gradients; what cuDNN makes;
        // of a pair two copies in f32 and their difference.
        let inputs_and_portable = 4 * self.queries() + 4 * self.keys();
        let found = 2 * self.queries() + 2 * self.keys();
        let compared = 3 * self.queries() / self.element() * F32;
        room + rows * (inputs_and_portable + found + compared + 2 * self.log_sums())
    }

    /// kernels/cuda/rms_norm.rs `backward_in_place`: partial sums, where the norm learns.
    fn norm_sums(&self, rows: u64) -> u64 {
        let runs = rows.div_ceil(run_of(rows as usize) as u64);
        match self.lora {
            Some(_) => 0,
            None => runs * self.spec.width as u64 * F32,
        }
    }

    /// kernels/cuda/rotary.rs `backward_in_place`: partial sums, where heads have a norm that learns.
    fn head_sums(&self, rows: u64) -> u64 {
        let warps = rotary_warps(rows as usize * self.spec.n_heads) as u64;
        match self.spec.qk_norm && self.lora.is_none() {
            true => warps / ROTARY_WARPS as u64 * self.spec.head_dim as u64 * F32,
            false => 0,
        }
    }

    /// `Projection` with an adapter, while it is applied or its gradient taken: `x A^T` or `dy B`, and
    /// kernels/cuda/linear.rs `like`: the other matrix in the type of the activations.
    fn adapter(&self, rows: u64) -> u64 {
        let Some(plan) = self.lora else {
            return 0;
        };
        let adapted = self.spec.tensors().into_iter();
        let adapted = adapted.filter(|t| t.shape.len() == 2 && lora::is_target(plan, &t.name));
        let widest = adapted.flat_map(|t| t.shape).max().unwrap_or(0) as u64;
        let cast = match self.dtype {
            DType::F32 => 0,
            _ => widest,
        };
        plan.rank as u64 * (rows + cast) * self.element()
    }

    /// kernels/cuda/cross_entropy.rs `run`.
    fn head(&self, pass: PassRows, backward: Backward) -> u64 {
        let (vocab, width) = (self.spec.vocab as u64, self.spec.width as u64);
        let chunk = head_chunk_rows(self.spec.vocab, pass.asked as usize) as u64;
        let forward = chunk * vocab * F32            // logits
            + pass.asked * 4 * F32                   // statistics
            + chunk * self.width(); // h
        if backward == Backward::No {
            return forward;
        }
        let rounded = match self.dtype {
            DType::F32 => 0,
            _ => chunk * vocab * self.element(),
        };
        let d_hidden = pass.rows * self.width();
        let dh = chunk * width * F32;
        forward + d_hidden + rounded + dh
    }

    fn largest(&self, bytes: impl Fn(usize) -> u64) -> u64 {
        (0..self.spec.n_layers).map(bytes).max().unwrap_or(0)
    }

    /// Bytes of a weight or an activation.
    fn element(&self) -> u64 {
        self.dtype.size_in_bytes() as u64
    }

    /// Bytes of a row of hidden states.
    fn width(&self) -> u64 {
        self.spec.width as u64 * self.element()
    }

    /// Bytes of a row of all queries.
    fn queries(&self) -> u64 {
        (self.spec.n_heads * self.spec.head_dim) as u64 * self.element()
    }

    /// Bytes of a row of all keys, or of all values.
    fn keys(&self) -> u64 {
        (self.spec.n_kv_heads * self.spec.head_dim) as u64 * self.element()
    }

    /// Bytes of a row of log-sum-exps.
    fn log_sums(&self) -> u64 {
        self.spec.n_heads as u64 * F32
    }

    /// Bytes of `n` elements of an activation.
    fn elements(&self, n: usize) -> u64 {
        n as u64 * self.element()
    }
}

/// Bytes of a mixture of experts over some rows, of which each has its pairs with experts.
#[derive(Debug, Clone, Copy)]
struct Mixture {
    /// Of each expert for each row.
    scores: u64,
    /// Who reads what.
    routing: u64,
    /// Inputs or results of the pairs.
    width: u64,
    /// A hidden layer of the pairs.
    hidden: u64,
    /// `x A^T` or `dy B` of the pairs.
    low: u64,
    /// That, and a matrix of all experts in the type of the activations.
    adapter: u64,
}

/// Whether a backward pass follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backward {
    Yes,
    No,
}
