//! Twin of `kernels::normal`.

use candle_core::{DType, Device, Result, Tensor};
use t3s_core::CounterRng;

use super::{
    launch::{Launch, Source, source},
    memory::overwritten,
};

const SOURCE: Source = source!("normal");

pub(in crate::kernels) fn draw(
    stream: &CounterRng,
    deviation: f64,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let values = overwritten(shape, dtype, device)?;
    let n = values.elem_count();
    Launch::of(SOURCE, "normal_draws", &values)?
        .tensor(&values)?
        .u64(n as u64)
        .u64(stream.key())
        .f64(deviation)
        .per_element(n.div_ceil(2))?;
    Ok(values)
}
