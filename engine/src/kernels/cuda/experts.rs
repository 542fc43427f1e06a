//! Twin of `kernels::experts`: one launch for all experts. The host does not know how many pairs each of
//! them has, so a grid has room for any share of them.

use candle_core::{DType, Result, Tensor, bail};

use super::{
    addresses,
    launch::{Launch, Source, THREADS, source},
    memory::{address, one_dtype, overwritten},
    routing::Sorted,
};
use crate::kernels::{Into, buffers::EXPERT_ROWS, gradients};

const SOURCE: Source = source!("experts");
const MMA: Source = source!("experts_mma");

/// The kernels of one type and width of a result; the constants of experts.cu and experts_mma.cu.
#[derive(Debug, Clone, Copy)]
struct Kernels {
    source: Source,
    /// What the names of its kernels start and end with.
    name: [&'static str; 2],
    /// Columns of a tile.
    width: usize,
    threads: u32,
    /// Bytes of shared memory.
    shared: usize,
}

impl Kernels {
    /// Those for products of activations of `dtype` into `columns`: on tensor cores where the type, the
    /// sizes along memory and the addresses (to 16 bytes) allow.
    fn of(dtype: DType, columns: usize, sizes: [usize; 2], addresses: &[u64]) -> Self {
        let whole = sizes.iter().all(|size| size.is_multiple_of(8));
        let aligned = addresses.iter().all(|at| at.is_multiple_of(16));
        if dtype != DType::BF16 || !whole || !aligned {
            return Self {
                source: SOURCE,
                name: ["experts", ""],
                width: EXPERT_ROWS,
                threads: THREADS,
                shared: 0,
            };
        }
        let (suffix, width) = if columns <= 32 {
            ("_32", 32)
        } else {
            ("_128", 128)
        };
        Self {
            source: MMA,
            name: ["experts_mma", suffix],
            width,
            threads: 128,
            // Two steps of both operands, of 32 elements and eight that keep rows apart.
            shared: 2 * (EXPERT_ROWS + width) * (32 + 8) * dtype.size_in_bytes(),
        }
    }

    /// The product `name` of tensors of the type of `like`.
    fn launch(self, name: &str, like: &Tensor) -> Result<Launch> {
        let [prefix, suffix] = self.name;
        let launch = Launch::of(self.source, &format!("{prefix}_{name}{suffix}"), like)?;
        Ok(launch.shared(self.shared))
    }
}

/// The matrices of all experts in the type of what they are multiplied with.
struct Matrices {
    /// Where they are, for the device.
    list: Tensor,
    /// The same here: as far as their alignment goes, where they were copied.
    addresses: Vec<u64>,
    /// What they are in where they were copied.
    _copies: Option<Tensor>,
}

impl Matrices {
    /// `weights` as they are, or rounded: adapters are kept in f32 beside bfloat16 weights.
    fn of(weights: &[&Tensor], dtype: DType) -> Result<Self> {
        let found = one_dtype("expert weights", weights)?;
        let (n, device) = (weights.len(), weights[0].device());
        let at = |w: &&Tensor| address("expert weights", w);
        let addresses: Vec<u64> = weights.iter().map(at).collect::<Result<_>>()?;
        let list = addresses::on_device(addresses.clone(), device)?;
        match (found, dtype) {
            _ if found == dtype => Ok(Self {
                list,
                addresses,
                _copies: None,
            }),
            (DType::F32, DType::BF16) => {
                let size = weights[0].elem_count();
                let copies = overwritten((n, size), dtype, device)?;
                let rounded = overwritten(2 * n, DType::U32, device)?;
                Launch::plain(SOURCE, "round_experts", device)
                    .tensor(&list)?
                    .tensor(&copies)?
                    .tensor(&rounded)?
                    .u64(size as u64)
                    .run((size.div_ceil(8 * THREADS as usize), n), THREADS)?;
                let first = address("expert weights", &copies)?;
                let bytes = (size * dtype.size_in_bytes()) as u64;
                Ok(Self {
                    list: rounded,
                    addresses: (0..n as u64).map(|e| first + e * bytes).collect(),
                    _copies: Some(copies),
                })
            }
            _ => bail!("experts: weights of {found:?} with activations of {dtype:?}; convert one"),
        }
    }
}

/// `scale * x op(W_e)` for the pairs of each expert `e`, added to `into` where given; `op` transposes
/// where `transposed`.
pub(in crate::kernels) fn grouped(
    routing: &Sorted,
    x: &Tensor,
    weights: &[&Tensor],
    scale: f32,
    transposed: bool,
    into: Option<Tensor>,
) -> Result<Tensor> {
    let dtype = one_dtype("experts", &[x])?;
    let (pairs, inner) = x.dims2()?;
    let (name, columns) = match transposed {
        true => ("forward", weights[0].dim(0)?),
        false => ("backward_input", weights[0].dim(1)?),
    };
    let matrices = Matrices::of(weights, dtype)?;
    let add = into.is_some();
    let y = match into {
        Some(y) => y,
        None => overwritten((pairs, columns), dtype, x.device())?,
    };
    one_dtype("experts", &[x, &y])?;
    let mut addresses = matrices.addresses;
    addresses.extend([address("experts", x)?, address("experts", &y)?]);
    let kernels = Kernels::of(dtype, columns, [inner, columns], &addresses);
    kernels
        .launch(name, x)?
        .tensor(x)?
        .tensor(&matrices.list)?
        .tensor(&routing.tiles)?
        .tensor(&y)?
        .u32(inner)?
        .u32(columns)?
        .u32(usize::from(add))?
        .f32(scale)
        .run(
            (routing.n_tiles() * columns.div_ceil(kernels.width), 1),
            kernels.threads,
        )?;
    Ok(y)
}

pub(in crate::kernels) fn backward_weight(
    routing: &Sorted,
    dy: &Tensor,
    x: &Tensor,
    scale: f32,
    slots: &[Option<(Tensor, Into)>],
) -> Result<()> {
    let dtype = one_dtype("experts", &[dy, x])?;
    let (rows, columns) = (dy.dim(1)?, x.dim(1)?);
    let filled = || slots.iter().flatten();
    if let Some((slot, _)) = filled().find(|(slot, _)| slot.dtype() != DType::F32) {
        bail!(
            "expert weight gradient: found {:?}; it is F32",
            slot.dtype()
        );
    }
    // One launch does the same with all of them.
    let add = filled().any(|(_, into)| *into == Into::Add);
    for (slot, into) in filled() {
        if add && *into == Into::Overwrite {
            gradients::zero(slot)?;
        }
    }
    let at = |slot: &Option<(Tensor, Into)>| match slot {
        Some((slot, _)) => address("expert weight gradient", slot),
        None => Ok(0),
    };
    let addresses: Vec<u64> = slots.iter().map(at).collect::<Result<_>>()?;
    let list = addresses::on_device(addresses.clone(), dy.device())?;
    let mut all = addresses;
    all.extend([address("experts", dy)?, address("experts", x)?]);
    let kernels = Kernels::of(dtype, columns, [rows, columns], &all);
    let tiles = rows.div_ceil(EXPERT_ROWS) * columns.div_ceil(kernels.width);
    kernels
        .launch("backward_weight", dy)?
        .tensor(dy)?
        .tensor(x)?
        .tensor(&routing.offsets)?
        .tensor(&list)?
        .u32(rows)?
        .u32(columns)?
        .u32(usize::from(add))?
        .f32(scale)
        .run((tiles, slots.len()), kernels.threads)
}
