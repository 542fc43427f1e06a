//! Any candle closure as a layer, so that a new block needs no hand-written backward.

use candle_core::{Error, Result, Tensor, Var};

use super::{Context, Layer, Save, Saved};
use crate::{grads::Grads, params::ParamId};

/// `y = f(x, params)` with the backward pass of candle's autograd.
///
/// `f` is run again in `backward`, on variables. Some fused candle operations (`softmax_last_dim`,
/// `rms_norm`, `rope`, ...) have no gradient and say nothing; a gradient that does not arrive is an
/// error here. What cannot be seen here is such an operation beside a residual path: the gradient
/// that arrives is then wrong, and only the trainer's check against finite differences finds it.
pub struct Autograd<F> {
    name: String,
    params: Vec<ParamId>,
    f: F,
}

impl<F> Autograd<F>
where
    F: Fn(&Tensor, &[Tensor]) -> Result<Tensor> + Send + Sync,
{
    /// The layer `name` (for messages) that calls `f(x, tensors of params)`.
    pub fn new(name: impl Into<String>, params: Vec<ParamId>, f: F) -> Self {
        Self {
            name: name.into(),
            params,
            f,
        }
    }

    fn missing(&self, of: &str) -> Error {
        Error::Msg(format!(
            "{}: no gradient reaches {of}; an operation on the way has no backward pass in candle \
             (softmax_last_dim, rms_norm, rope, flash_attn and other fused ones), use their \
             composed forms",
            self.name
        ))
    }
}

impl<F> Layer for Autograd<F>
where
    F: Fn(&Tensor, &[Tensor]) -> Result<Tensor> + Send + Sync,
{
    fn forward(&self, cx: &Context<'_>, x: &Tensor, save: Save) -> Result<(Tensor, Saved)> {
        let tensors: Vec<Tensor> = self
            .params
            .iter()
            .map(|id| cx.params.tensor(*id).detach())
            .collect();
        let y = (self.f)(&x.detach(), &tensors)?.detach().contiguous()?;
        Ok((y, Saved::of(save, [x.clone()])))
    }

    fn backward(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        saved: Saved,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let [x] = saved.take(&self.name)?;
        let x = Var::from_tensor(&x)?;
        let tensors = self
            .params
            .iter()
            .map(|id| match (cx.params.tensor(*id), grads.wants(*id)) {
                (tensor, true) => Ok(Var::from_tensor(tensor)?.into_inner()),
                (tensor, false) => Ok(tensor.detach()),
            })
            .collect::<Result<Vec<Tensor>>>()?;
        let y = (self.f)(x.as_tensor(), &tensors)?;
        if y.dims() != dy.dims() {
            candle_core::bail!(
                "{}: the output has shape {:?}, its gradient {:?}",
                self.name,
                y.dims(),
                dy.dims()
            );
        }
        let store = (y * dy)?.sum_all()?.backward()?;
        for (id, tensor) in self.params.iter().zip(&tensors) {
            if let Some(slot) = grads.slot(*id, cx.params)? {
                let grad = store
                    .get(tensor)
                    .ok_or_else(|| self.missing(&cx.params.param(*id).name))?;
                crate::kernels::residual::add_assign(slot, &grad.contiguous()?)?;
            }
        }
        let dx = store.get(&x).ok_or_else(|| self.missing("its input"))?;
        dx.detach().contiguous()
    }
}

impl<F> std::fmt::Debug for Autograd<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Autograd")
            .field("name", &self.name)
            .field("params", &self.params)
            .finish_non_exhaustive()
    }
}
