//! A mixture of experts: each token goes to a few of many SwiGLU experts, and to a shared one.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use candle_core::{Result, Tensor};

use super::{Context, Layer, Projection, Save, Saved, SwiGlu};
use crate::{
    grads::Grads,
    kernels::{
        experts, linear,
        routing::{self, Choice, Routing},
        swiglu,
    },
    params::ParamId,
};

/// Routed experts and the shared one.
#[derive(Debug, Clone)]
pub struct Experts {
    /// `[n_experts, width]`.
    pub router: ParamId,
    /// `[n_experts]`, added for choosing only; frozen.
    pub choice_bias: Option<ParamId>,
    /// How experts are chosen and weighted.
    pub choice: Choice,
    /// Of each expert, `[hidden, width]`.
    pub gate: Grouped,
    /// Of each expert, `[hidden, width]`.
    pub up: Grouped,
    /// Of each expert, `[width, hidden]`.
    pub down: Grouped,
    /// Reads every token; its output is added unweighted.
    pub shared: Option<SwiGlu>,
}

/// The same projection of every expert.
#[derive(Debug, Clone)]
pub struct Grouped(pub Vec<Projection>);

impl Grouped {
    /// The tensors that `id` names in each projection.
    fn tensors<'a>(
        &self,
        cx: &Context<'a>,
        id: impl Fn(&Projection) -> Option<ParamId>,
    ) -> Vec<&'a Tensor> {
        let ids = self.0.iter().filter_map(id);
        ids.map(|id| cx.params.tensor(id)).collect()
    }

    /// The plain weights, and `A`, `B` and the scale where the projections are adapted (all of a
    /// name are, or none).
    fn parts<'a>(&self, cx: &Context<'a>) -> (Vec<&'a Tensor>, Option<Low<'a>>) {
        let weights = self.tensors(cx, |p| Some(weight(p)));
        let low = match self.0.first() {
            Some(Projection::Adapted(lora)) => Some(Low {
                a: self.tensors(cx, |p| adapter(p).map(|(a, _)| a)),
                b: self.tensors(cx, |p| adapter(p).map(|(_, b)| b)),
                scale: lora.scale,
            }),
            _ => None,
        };
        (weights, low)
    }

    /// `[pairs, in]` to `[pairs, out]`.
    fn apply(&self, cx: &Context<'_>, routing: &Routing, x: &Tensor) -> Result<Tensor> {
        let (weights, low) = self.parts(cx);
        let y = experts::forward(routing, x, &weights, 1.0, None)?;
        let Some(Low { a, b, scale }) = low else {
            return Ok(y);
        };
        let xa = experts::forward(routing, x, &a, 1.0, None)?;
        experts::forward(routing, &xa, &b, scale, Some(y))
    }

    /// `dL/dx` of the pairs, added to `into` where given.
    fn input_gradient(
        &self,
        cx: &Context<'_>,
        routing: &Routing,
        dy: &Tensor,
        into: Option<Tensor>,
    ) -> Result<Tensor> {
        let (weights, low) = self.parts(cx);
        let dx = experts::backward_input(routing, dy, &weights, 1.0, into)?;
        let Some(Low { a, b, scale }) = low else {
            return Ok(dx);
        };
        let dxa = experts::backward_input(routing, dy, &b, scale, None)?;
        experts::backward_input(routing, &dxa, &a, 1.0, Some(dx))
    }

    /// Adds the gradients of what learns. An expert that no token chose gets a gradient of zero.
    fn add_param_gradients(
        &self,
        cx: &Context<'_>,
        routing: &Routing,
        dy: &Tensor,
        x: &Tensor,
        grads: &mut Grads,
    ) -> Result<()> {
        let mut slots = |id: &dyn Fn(&Projection) -> ParamId| {
            let slot = |p| {
                let slot = grads.product_slot(id(p), cx.params)?;
                Ok(slot.map(|(slot, into)| (slot.clone(), into)))
            };
            self.0.iter().map(slot).collect::<Result<Vec<_>>>()
        };
        let (_, low) = self.parts(cx);
        let Some(Low { a, b, scale }) = low else {
            let slots = slots(&weight)?;
            return experts::backward_weight(routing, dy, x, 1.0, &slots);
        };
        let of = |p: &Projection| adapter(p).expect("all projections are adapted, or none");
        let (a_slots, b_slots) = (slots(&|p| of(p).0)?, slots(&|p| of(p).1)?);
        let xa = experts::forward(routing, x, &a, 1.0, None)?;
        experts::backward_weight(routing, dy, &xa, scale, &b_slots)?;
        let dxa = experts::backward_input(routing, dy, &b, scale, None)?;
        experts::backward_weight(routing, &dxa, x, 1.0, &a_slots)
    }
}

/// A low-rank correction of every expert.
struct Low<'a> {
    a: Vec<&'a Tensor>,
    b: Vec<&'a Tensor>,
    scale: f32,
}

fn weight(projection: &Projection) -> ParamId {
    match projection {
        Projection::Plain(plain) => plain.weight,
        Projection::Adapted(lora) => lora.frozen.weight,
    }
}

fn adapter(projection: &Projection) -> Option<(ParamId, ParamId)> {
    match projection {
        Projection::Plain(_) => None,
        Projection::Adapted(lora) => Some((lora.a, lora.b)),
    }
}

/// The experts that each token chose, by router: what a mixture chooses first stays chosen.
///
/// A choice has no derivative: it stays, or it jumps. Differences of the loss tell its gradient only
/// while it stays.
#[derive(Debug, Default)]
pub struct Routes(Mutex<BTreeMap<ParamId, Tensor>>);

impl Routes {
    /// The choice of `router`, made by `choose` the first time.
    fn of(&self, router: ParamId, choose: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let mut routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = routes.get(&router) {
            return Ok(known.clone());
        }
        let chosen = choose()?;
        routes.insert(router, chosen.clone());
        Ok(chosen)
    }

    /// The same choices where another copy of the model is.
    #[cfg(test)]
    pub(crate) fn to_device(&self, device: &candle_core::Device) -> Self {
        let routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let moved = routes
            .iter()
            .map(|(router, chosen)| (*router, chosen.to_device(device).expect("there is room")));
        Self(Mutex::new(moved.collect()))
    }
}

impl Experts {
    fn route(&self, cx: &Context<'_>, logits: &Tensor) -> Result<Routing> {
        let bias = self.choice_bias.map(|id| cx.params.tensor(id));
        let choose = || routing::chosen(logits, bias, &self.choice);
        let expert = match cx.routes {
            Some(routes) => routes.of(self.router, choose)?,
            None => choose()?,
        };
        Routing::new(logits, &expert, &self.choice)
    }

    /// The parameters of which each belongs to one expert, and which only its tokens reach.
    pub fn routed(&self) -> impl Iterator<Item = ParamId> {
        let projections = [&self.gate, &self.up, &self.down];
        projections
            .into_iter()
            .flat_map(|grouped| &grouped.0)
            .flat_map(|projection| match adapter(projection) {
                Some((a, b)) => vec![weight(projection), a, b],
                None => vec![weight(projection)],
            })
    }
}

impl Layer for Experts {
    fn forward(&self, cx: &Context<'_>, x: &Tensor, save: Save) -> Result<(Tensor, Saved)> {
        let logits = routing::scores(x, cx.params.tensor(self.router))?;
        let routing = self.route(cx, &logits)?;
        let sorted = routing.gather(x)?;
        let gate = self.gate.apply(cx, &routing, &sorted)?;
        let up = self.up.apply(cx, &routing, &sorted)?;
        drop(sorted);
        let hidden = swiglu::forward(&gate, &up)?;
        let out = self.down.apply(cx, &routing, &hidden)?;
        drop(hidden);
        let (y, shared) = match &self.shared {
            Some(shared) => {
                let (y, saved) = shared.forward(cx, x, save)?;
                (y, vec![saved])
            }
            None => (x.zeros_like()?, Vec::new()),
        };
        routing.scatter_add(&out, true, &y)?;
        let mut saved = Saved::of(save, [x.clone(), logits, gate, up]);
        if save == Save::ForBackward {
            saved.inner = shared;
        }
        Ok((y, saved))
    }

    fn backward(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        mut saved: Saved,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let shared = saved.inner.pop();
        let [x, logits, gate, up] = saved.take("experts")?;
        let routing = self.route(cx, &logits)?;
        let dx = match (&self.shared, shared) {
            (Some(layer), Some(saved)) => layer.backward(cx, dy, saved, grads)?,
            _ => x.zeros_like()?,
        };

        // Of the unweighted outputs of the experts: `d_hidden` times `hidden` is the weight's.
        let dy = routing.gather(dy)?;
        let d_hidden = self.down.input_gradient(cx, &routing, &dy, None)?;
        let hidden = swiglu::forward(&gate, &up)?;
        let d_logits = routing.logit_gradient(&logits, &d_hidden, &hidden, &self.choice)?;
        drop(hidden);
        if let Some((slot, into)) = grads.product_slot(self.router, cx.params)? {
            linear::backward_weight(&d_logits, &x, 1.0, slot, into)?;
        }
        let router = cx.params.tensor(self.router);
        let dx = linear::backward_input(&d_logits, router, 1.0, Some(dx))?;

        routing.weigh(&dy)?;
        routing.weigh(&d_hidden)?;
        swiglu::backward_in_place(&gate, &up, &d_hidden)?;
        let (hidden, d_gate, d_up) = (d_hidden, gate, up);
        self.down
            .add_param_gradients(cx, &routing, &dy, &hidden, grads)?;
        drop((hidden, dy));
        let sorted = routing.gather(&x)?;
        self.gate
            .add_param_gradients(cx, &routing, &d_gate, &sorted, grads)?;
        self.up
            .add_param_gradients(cx, &routing, &d_up, &sorted, grads)?;
        drop(sorted);
        let d_sorted = self.gate.input_gradient(cx, &routing, &d_gate, None)?;
        let d_sorted = self
            .up
            .input_gradient(cx, &routing, &d_up, Some(d_sorted))?;
        routing.scatter_add(&d_sorted, false, &dx)?;
        Ok(dx)
    }
}

/// The feed-forward part of a block.
#[derive(Debug, Clone)]
pub enum Mlp {
    /// One SwiGLU.
    Dense(SwiGlu),
    /// A mixture of experts.
    Experts(Experts),
}

impl Layer for Mlp {
    fn forward(&self, cx: &Context<'_>, x: &Tensor, save: Save) -> Result<(Tensor, Saved)> {
        match self {
            Self::Dense(layer) => layer.forward(cx, x, save),
            Self::Experts(layer) => layer.forward(cx, x, save),
        }
    }

    fn backward(
        &self,
        cx: &Context<'_>,
        dy: &Tensor,
        saved: Saved,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        match self {
            Self::Dense(layer) => layer.backward(cx, dy, saved, grads),
            Self::Experts(layer) => layer.backward(cx, dy, saved, grads),
        }
    }
}
