//! Grouped-query attention with per-head norms and rotary positions.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{Context, Layer, Projection, Save, Saved};
use crate::{
    grads::Grads,
    kernels::{
        attention::{self, Forwarded, Heads},
        rotary::{self, RotaryTable},
    },
    params::ParamId,
};

/// Projections to queries, keys and values, attention inside each example, projection back.
#[derive(Debug, Clone)]
pub struct Attention {
    /// `[n_heads * head_dim, width]`.
    pub query: Projection,
    /// `[n_kv_heads * head_dim, width]`.
    pub key: Projection,
    /// `[n_kv_heads * head_dim, width]`.
    pub value: Projection,
    /// `[width, n_heads * head_dim]`.
    pub output: Projection,
    /// `[head_dim]`, the RMSNorm of each query head.
    pub query_norm: Option<ParamId>,
    /// `[head_dim]`, the RMSNorm of each key head.
    pub key_norm: Option<ParamId>,
    /// Epsilon of those norms.
    pub norm_eps: f64,
    /// How many heads there are and how wide they are.
    pub heads: Heads,
    /// Angles by position; shared by all blocks.
    pub rotary: Arc<RotaryTable>,
}

/// Queries, keys and values, ready for attention (normed and rotated).
#[derive(Debug, Clone)]
pub struct Qkv {
    /// `[rows, n_heads * head_dim]`.
    pub q: Tensor,
    /// `[rows, n_kv_heads * head_dim]`.
    pub k: Tensor,
    /// `[rows, n_kv_heads * head_dim]`.
    pub v: Tensor,
    /// The queries before norm and rotary.
    raw_q: Tensor,
    /// The keys before norm and rotary.
    raw_k: Tensor,
}

impl Attention {
    /// The queries, keys and values of `x`, `[rows, width]`, at the batch's positions. Generation
    /// puts the keys and values into its cache.
    ///
    /// # Errors
    /// When shapes disagree or the device fails.
    pub fn project(&self, cx: &Context<'_>, x: &Tensor) -> Result<Qkv> {
        let raw_q = self.query.apply(cx, x)?;
        let raw_k = self.key.apply(cx, x)?;
        let v = self.value.apply(cx, x)?;
        let rotate = |x: &Tensor, norm: Option<ParamId>| {
            let norm = norm.map(|id| cx.params.tensor(id));
            let (eps, dim) = (self.norm_eps, self.heads.head_dim);
            rotary::forward(x, norm, eps, dim, &self.rotary, &cx.batch.positions)
        };
        Ok(Qkv {
            q: rotate(&raw_q, self.query_norm)?,
            k: rotate(&raw_k, self.key_norm)?,
            v,
            raw_q,
            raw_k,
        })
    }

    /// Turns `dy` (of rotated heads) into the gradient of what the projection gave, in place.
    fn unrotate(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        raw: &Tensor,
        norm: Option<ParamId>,
        grads: &mut Grads,
    ) -> Result<()> {
        let slot = match norm {
            Some(id) => grads.slot(id, cx.params)?,
            None => None,
        };
        let norm = norm.map(|id| cx.params.tensor(id));
        let (eps, dim) = (self.norm_eps, self.heads.head_dim);
        let positions = &cx.batch.positions;
        rotary::backward_in_place(dy, raw, norm, eps, dim, &self.rotary, positions, slot)
    }
}

impl Layer for Attention {
    fn forward(&self, cx: &Context<'_>, x: &Tensor, save: Save) -> Result<(Tensor, Saved)> {
        let Qkv {
            q,
            k,
            v,
            raw_q,
            raw_k,
        } = self.project(cx, x)?;
        let batch = cx.batch;
        let (out, lse) =
            attention::forward(&q, &k, &v, self.heads, &batch.offsets, batch.attention)?;
        let y = self.output.apply(cx, &out)?;
        let saved = Saved::of(save, [x.clone(), raw_q, raw_k, q, k, v, out, lse]);
        Ok((y, saved))
    }

    fn backward(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        saved: Saved,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let [x, raw_q, raw_k, q, k, v, out, lse] = saved.take("attention")?;
        self.output.add_param_gradients(cx, dy, &out, grads)?;
        let d_out = self.output.input_gradient(cx, dy, None)?;
        let forwarded = Forwarded {
            q: &q,
            k: &k,
            v: &v,
            out: &out,
            lse: &lse,
        };
        let batch = cx.batch;
        let (dq, dk, dv) = attention::backward(
            &d_out,
            forwarded,
            self.heads,
            &batch.offsets,
            batch.attention,
        )?;
        self.unrotate(cx, &dq, &raw_q, self.query_norm, grads)?;
        self.unrotate(cx, &dk, &raw_k, self.key_norm, grads)?;
        self.query.add_param_gradients(cx, &dq, &x, grads)?;
        self.key.add_param_gradients(cx, &dk, &x, grads)?;
        self.value.add_param_gradients(cx, &dv, &x, grads)?;
        let dx = self.query.input_gradient(cx, &dq, None)?;
        let dx = self.key.input_gradient(cx, &dk, Some(dx))?;
        self.value.input_gradient(cx, &dv, Some(dx))
    }
}
