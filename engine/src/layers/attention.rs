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
    /// Vectors to queries, keys and values.
    pub qkv: QkvProjection,
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

/// The projections to queries, `[n_heads * head_dim, width]`, and to keys and values,
/// `[n_kv_heads * head_dim, width]` each.
#[derive(Debug, Clone, Copy)]
pub enum QkvProjection {
    /// Three matrices.
    Apart([Projection; 3]),
    /// One matrix that holds the rows of all three, in this order.
    Fused(Projection),
}

impl QkvProjection {
    /// The projections, whose outputs side by side are queries, keys and values.
    pub fn parts(&self) -> Vec<&Projection> {
        match self {
            Self::Apart(parts) => parts.iter().collect(),
            Self::Fused(one) => vec![one],
        }
    }

    fn apply(&self, cx: &Context<'_>, x: &Tensor, heads: Heads) -> Result<[Tensor; 3]> {
        match self {
            Self::Apart([q, k, v]) => Ok([q.apply(cx, x)?, k.apply(cx, x)?, v.apply(cx, x)?]),
            Self::Fused(one) => {
                let all = one.apply(cx, x)?;
                let (q, kv) = (heads.width(), heads.kv_width());
                let part = |start, len| all.narrow(1, start, len)?.contiguous();
                Ok([part(0, q)?, part(q, kv)?, part(q + kv, kv)?])
            }
        }
    }

    /// Adds parameter gradients; returns `dL/dx`.
    fn backward(
        &self,
        cx: &Context<'_>,
        d: [Tensor; 3],
        x: &Tensor,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        match self {
            Self::Apart(parts) => {
                let mut dx = None;
                for (part, d) in parts.iter().zip(&d) {
                    dx = Some(part.gradients(cx, d, x, dx, grads)?);
                }
                Ok(dx.expect("there are three"))
            }
            Self::Fused(one) => {
                let d = Tensor::cat(&d, 1)?.contiguous()?;
                one.gradients(cx, &d, x, None, grads)
            }
        }
    }
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
        let [raw_q, raw_k, v] = self.qkv.apply(cx, x, self.heads)?;
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
        let d_out = self.output.gradients(cx, dy, &out, None, grads)?;
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
        self.qkv.backward(cx, [dq, dk, dv], &x, grads)
    }
}
