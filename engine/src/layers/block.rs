//! One decoder block: pre-norm attention and pre-norm feed-forward, each with a residual path.

use candle_core::{Result, Tensor};

use super::{Attention, Context, Layer, Mlp, RmsNorm, Save, Saved, attention::Qkv};
use crate::{grads::Grads, kernels::residual};

/// `m = x + attention(norm(x))`, `y = m + mlp(norm(m))`.
#[derive(Debug, Clone)]
pub struct Block {
    /// The norm before attention.
    pub attention_norm: RmsNorm,
    /// The attention.
    pub attention: Attention,
    /// The norm before the feed-forward part.
    pub mlp_norm: RmsNorm,
    /// The feed-forward part.
    pub mlp: Mlp,
}

impl Block {
    /// The forward pass of who has keys and values of other rows besides: `attend` makes of those of
    /// `x`, `[rows, width]`, what goes through the output projection, `[rows, n_heads * head_dim]`.
    pub(crate) fn forward_attending(
        &self,
        cx: &Context<'_>,
        x: &Tensor,
        attend: impl FnOnce(&Qkv) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (normed, _) = self.attention_norm.forward(cx, x, Save::Nothing)?;
        let attended = attend(&self.attention.project(cx, &normed)?)?;
        let middle = self.attention.output.apply(cx, &attended)?;
        residual::add_assign(&middle, x)?;
        let (normed, _) = self.mlp_norm.forward(cx, &middle, Save::Nothing)?;
        let (y, _) = self.mlp.forward(cx, &normed, Save::Nothing)?;
        residual::add_assign(&y, &middle)?;
        Ok(y)
    }
}

impl Layer for Block {
    fn forward(&self, cx: &Context<'_>, x: &Tensor, save: Save) -> Result<(Tensor, Saved)> {
        let (normed, norm1) = self.attention_norm.forward(cx, x, save)?;
        let (middle, attention) = self.attention.forward(cx, &normed, save)?;
        residual::add_assign(&middle, x)?;
        let (normed, norm2) = self.mlp_norm.forward(cx, &middle, save)?;
        let (y, mlp) = self.mlp.forward(cx, &normed, save)?;
        residual::add_assign(&y, &middle)?;
        let saved = match save {
            Save::ForBackward => Saved {
                tensors: Vec::new(),
                inner: vec![norm1, attention, norm2, mlp],
            },
            Save::Nothing => Saved::default(),
        };
        Ok((y, saved))
    }

    fn backward(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        saved: Saved,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let [norm1, attention, norm2, mlp] = <[Saved; 4]>::try_from(saved.inner).map_err(|_| {
            candle_core::Error::Msg("block: forward was run with Save::Nothing".into())
        })?;
        let d_normed = self.mlp.backward(cx, dy, mlp, grads)?;
        let [middle] = norm2.take("block")?;
        let d_middle = self
            .mlp_norm
            .backward_past(cx, d_normed, &middle, Some(dy), grads)?;
        let d_normed = self.attention.backward(cx, &d_middle, attention, grads)?;
        let [x] = norm1.take("block")?;
        self.attention_norm
            .backward_past(cx, d_normed, &x, Some(&d_middle), grads)
    }
}
