//! Twin of `kernels::adamw`: all tensors in one launch. bfloat16 parameters are rounded at random, as
//! bfloat16 moments are.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Tensor};

use super::{
    launch::{Launch, Source, THREADS, source},
    memory::address,
    tensor_list::{CHUNK, TensorList},
};
use crate::kernels::{
    adamw::{BLOCK, Coefficients, Item, MAPS, MomentPair},
    gradients::Clip,
};

const SOURCE: Source = source!("adamw");

/// How the moments of a tensor are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32,
    Bf16,
    Bits8,
}

impl Kind {
    fn of(moments: &MomentPair<'_>) -> Self {
        match moments {
            MomentPair::Full(first, _) if first.dtype() == DType::BF16 => Self::Bf16,
            MomentPair::Full(..) => Self::F32,
            MomentPair::Quantised(..) => Self::Bits8,
        }
    }

    fn kernel(self) -> &'static str {
        match self {
            Self::F32 => "adamw_step",
            Self::Bf16 => "adamw_bf16_step",
            Self::Bits8 => "adamw_8bit_step",
        }
    }
}

/// One launch for all tensors of a type and kind of moments. Where the factor of `clip` is on the device and
/// NaN, nothing changes.
pub(in crate::kernels) fn step(items: &[Item<'_>], c: Coefficients, clip: &Clip) -> Result<()> {
    for kind in [Kind::F32, Kind::Bf16, Kind::Bits8] {
        for dtype in [DType::F32, DType::BF16] {
            let of_this = |item: &&Item<'_>| {
                Kind::of(&item.moments) == kind && item.parameter.dtype() == dtype
            };
            let items: Vec<&Item<'_>> = items.iter().filter(of_this).collect();
            step_of_a_kind(kind, &items, c, clip)?;
        }
    }
    Ok(())
}

fn step_of_a_kind(kind: Kind, items: &[&Item<'_>], c: Coefficients, clip: &Clip) -> Result<()> {
    let Some(first) = items.first() else {
        return Ok(());
    };
    let mut list = TensorList::default();
    for item in items {
        let at = |tensor: &Tensor| address("adamw", tensor);
        let moments = match item.moments {
            MomentPair::Full(first, second) => [at(first)?, at(second)?, 0, 0],
            MomentPair::Quantised(first, second) => [
                at(&first.codes)?,
                at(&second.codes)?,
                at(&first.scales)?,
                at(&second.scales)?,
            ],
        };
        let n = item.parameter.elem_count();
        let [m, v, m_scales, v_scales] = moments;
        let (parameter, gradient) = (at(item.parameter)?, at(item.gradient)?);
        let options = u64::from(item.index) | u64::from(item.decays) << 32;
        let entry = [
            parameter, gradient, m, v, m_scales, v_scales, n as u64, options,
        ];
        list.push(n, &entry);
    }
    let device = first.parameter.device();
    let (factor, on_device) = match clip {
        Clip::Known { factor, .. } => (*factor, None),
        Clip::OnDevice { factor, .. } => (1.0, Some(factor)),
    };
    let (entries, chunks) = list.on_device(device)?;
    let launch = Launch::of(SOURCE, kind.kernel(), first.parameter)?
        .tensor(&entries)?
        .tensor(&chunks)?
        .optional(on_device)?
        .u32(CHUNK)?
        .f32(factor)
        .f32(c.beta1)
        .f32(c.beta2)
        .f32(c.keep)
        .f32(c.step_size)
        .f32(c.inverse_root_correction)
        .f32(c.eps)
        .u32(c.rounding_seed as usize)?;
    let launch = match kind {
        Kind::Bits8 => launch.tensor(&maps(device)?)?,
        _ => launch,
    };
    launch.run((list.n_chunks(), 1), THREADS)
}

// Blocks of moments do not cross chunks.
const _: () = assert!(CHUNK.is_multiple_of(BLOCK));

thread_local! {
    /// On the device that asked last.
    static ON_DEVICE: RefCell<Option<Tensor>> = const { RefCell::new(None) };
}

/// Both maps on `device`, one after the other.
fn maps(device: &Device) -> Result<Tensor> {
    ON_DEVICE.with_borrow_mut(|kept| {
        if let Some(kept) = kept.as_ref().filter(|k| k.device().same_device(device)) {
            return Ok(kept.clone());
        }
        let made = Tensor::new([MAPS.signed, MAPS.unsigned].as_flattened(), device)?;
        *kept = Some(made.clone());
        Ok(made)
    })
}
