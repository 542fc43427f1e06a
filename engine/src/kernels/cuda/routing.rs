//! Twin of `kernels::routing`: the lists are made on the device and stay there.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{
    embedding,
    gemm::{Matrix, gemm},
    launch::{Launch, Source, THREADS, source, threads_for, threads_for_eights},
    memory::{one_dtype, overwritten},
};
use crate::kernels::{Into, buffers::expert_tiles, routing::Choice};

const SOURCE: Source = source!("routing");

/// Numbers of an `ExpertTile`.
const TILE_WORDS: usize = 3;

/// A list of `n` numbers that a kernel writes.
fn list(n: usize, device: &Device) -> Result<Tensor> {
    overwritten(n, DType::U32, device)
}

pub(in crate::kernels) fn scores(x: &Tensor, router: &Tensor) -> Result<Tensor> {
    let shape = (x.dim(0)?, router.dim(0)?);
    let logits = overwritten(shape, DType::F32, x.device())?;
    let router = Matrix::new(router)?.t();
    gemm(
        "router",
        &logits,
        Into::Overwrite,
        Matrix::new(x)?,
        router,
        1.0,
    )?;
    Ok(logits)
}

/// The `[rows, n_experts]` of scores, which are f32 whatever the model is.
fn shape_of(logits: &Tensor) -> Result<(usize, usize)> {
    match logits.dtype() {
        DType::F32 => logits.dims2(),
        other => bail!("router scores: found {other:?}; they are F32"),
    }
}

pub(in crate::kernels) fn chosen(
    logits: &Tensor,
    bias: Option<&Tensor>,
    choice: &Choice,
) -> Result<Tensor> {
    let (rows, n_experts) = shape_of(logits)?;
    let expert = overwritten((rows, choice.n_chosen), DType::U32, logits.device())?;
    let numbers = 2 * (n_experts + choice.n_groups);
    Launch::of(SOURCE, "choose_experts", bias.unwrap_or(logits))?
        .tensor(logits)?
        .optional(bias)?
        .tensor(&expert)?
        .u32(n_experts)?
        .u32(choice.n_chosen)?
        .u32(choice.n_groups)?
        .u32(choice.n_groups_kept)?
        .shared(numbers * size_of::<f32>())
        .run((rows, 1), 32)?;
    Ok(expert)
}

/// The lists of `kernels::routing::Sorted` on the device, in `u32` but for the weights.
#[derive(Debug, Clone)]
pub(in crate::kernels) struct Sorted {
    expert: Tensor,
    weight: Tensor,
    place: Tensor,
    token: Tensor,
    pub(super) offsets: Tensor,
    /// `[expert_tiles, 3]`: the sorted pairs in tiles of one expert each; see experts.cuh.
    pub(super) tiles: Tensor,
    n_chosen: usize,
}

impl Sorted {
    pub(in crate::kernels) fn new(
        logits: &Tensor,
        expert: &Tensor,
        choice: &Choice,
    ) -> Result<Self> {
        let (rows, n_experts) = shape_of(logits)?;
        let (device, n_chosen) = (logits.device(), choice.n_chosen);
        let n_pairs = rows * n_chosen;
        let weight = overwritten(n_pairs, DType::F32, device)?;
        Launch::plain(SOURCE, "weigh_experts", device)
            .tensor(logits)?
            .tensor(expert)?
            .tensor(&weight)?
            .u32(rows)?
            .u32(n_experts)?
            .u32(n_chosen)?
            .u32(usize::from(choice.normalise))?
            .f32(choice.scale)
            .per_element(rows)?;
        let counts = list(n_experts, device)?;
        Launch::plain(SOURCE, "count_pairs", device)
            .tensor(expert)?
            .tensor(&counts)?
            .u32(n_pairs)?
            .run((n_experts, 1), THREADS)?;
        let n_tiles = expert_tiles(n_pairs, n_experts);
        let sorted = Self {
            expert: expert.clone(),
            weight,
            place: list(n_pairs, device)?,
            token: list(n_pairs, device)?,
            offsets: list(n_experts + 1, device)?,
            tiles: list(n_tiles * TILE_WORDS, device)?,
            n_chosen,
        };
        Launch::plain(SOURCE, "sort_pairs", device)
            .tensor(expert)?
            .tensor(&counts)?
            .tensor(&sorted.place)?
            .tensor(&sorted.token)?
            .tensor(&sorted.offsets)?
            .tensor(&sorted.tiles)?
            .u32(n_pairs)?
            .u32(n_chosen)?
            .u32(n_tiles)?
            .run((n_experts, 1), THREADS)?;
        Ok(sorted)
    }

    /// How many tiles there are at most.
    pub(super) fn n_tiles(&self) -> usize {
        self.tiles.elem_count() / TILE_WORDS
    }

    pub(in crate::kernels) fn gather(&self, x: &Tensor) -> Result<Tensor> {
        let dtype = one_dtype("experts", &[x])?;
        let shape = (self.token.elem_count(), x.dim(1)?);
        let sorted = overwritten(shape, dtype, x.device())?;
        embedding::forward_into(x, &self.token, &sorted)?;
        Ok(sorted)
    }

    pub(in crate::kernels) fn scatter_add(
        &self,
        sorted: &Tensor,
        weighted: bool,
        into: &Tensor,
    ) -> Result<()> {
        one_dtype("experts", &[sorted, into])?;
        let (rows, width) = into.dims2()?;
        Launch::of(SOURCE, "scatter_add_pairs", into)?
            .tensor(sorted)?
            .tensor(&self.place)?
            .optional(weighted.then_some(&self.weight))?
            .tensor(into)?
            .u32(width)?
            .u32(self.n_chosen)?
            .run((rows, 1), threads_for_eights(width, THREADS))
    }

    pub(in crate::kernels) fn weigh(&self, sorted: &Tensor) -> Result<()> {
        let (pairs, width) = sorted.dims2()?;
        Launch::of(SOURCE, "weigh_pairs", sorted)?
            .tensor(sorted)?
            .tensor(&self.place)?
            .tensor(&self.weight)?
            .u32(width)?
            .run((pairs, 1), threads_for_eights(width, THREADS))
    }

    pub(in crate::kernels) fn logit_gradient(
        &self,
        logits: &Tensor,
        a: &Tensor,
        b: &Tensor,
        choice: &Choice,
    ) -> Result<Tensor> {
        let dtype = one_dtype("experts", &[a, b])?;
        let ((rows, n_experts), (_, width)) = (shape_of(logits)?, a.dims2()?);
        let gradient = overwritten((rows, n_experts), dtype, a.device())?;
        Launch::of(SOURCE, "expert_logit_gradient", a)?
            .tensor(logits)?
            .tensor(&self.expert)?
            .tensor(&self.place)?
            .tensor(a)?
            .tensor(b)?
            .tensor(&gradient)?
            .u32(n_experts)?
            .u32(self.n_chosen)?
            .u32(width)?
            .u32(usize::from(choice.normalise))?
            .f32(choice.scale)
            .shared(self.n_chosen * size_of::<f32>())
            // A warp per expert that the row chose.
            .run((rows, 1), threads_for(32 * self.n_chosen, THREADS))?;
        Ok(gradient)
    }
}
