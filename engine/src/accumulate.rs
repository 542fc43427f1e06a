//! Loss and gradients of one optimiser step: as many passes as it takes, one global normaliser.

use candle_core::Tensor;
use t3s_core::{
    AttentionPattern, Draw, Example, ModelBatch, NO_TARGET, Objective, packing,
    plan::{Normaliser, Recompute, TrainPlan},
};

use crate::{
    batch::Batch,
    decoder::{Decoder, Tape},
    error::EngineError,
    grads::Grads,
    layers::{
        Save,
        head::{HeadRow, PendingHead},
    },
    normaliser::{ExampleCounts, divisors, part_divisor, total_divisor},
    online::OnlineSelection,
    score::{PackedExamples, batch_of, head_rows},
};

/// How a step is accumulated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accumulation {
    /// What the summed loss is divided by.
    pub normaliser: Normaliser,
    /// Most tokens per pass.
    pub micro_batch_tokens: usize,
    /// Several examples per pass.
    pub packing: bool,
    /// Which activations are recomputed.
    pub recompute: Recompute,
    /// Seed of the objective's draws.
    pub seed: u64,
    /// Whether the loss of targets without a weight is computed too: one more pass of the head over
    /// those rows alone. It changes nothing that is learnt.
    pub dropped_loss: bool,
}

impl Accumulation {
    /// As `plan` says.
    pub fn of(plan: &TrainPlan, seed: u64) -> Self {
        Self {
            dropped_loss: false,
            normaliser: plan.normaliser,
            micro_batch_tokens: plan.micro_batch_tokens,
            packing: plan.packing,
            recompute: plan.recompute,
            seed,
        }
    }
}

/// Examples of a step that share a draw of the objective: an epoch's.
#[derive(Debug, Clone)]
pub struct Part<'e> {
    /// In the order of the step.
    pub examples: Vec<&'e Example>,
    /// Which draw, see [`Objective::prepare`].
    pub draw: u64,
}

/// What a step's forward and backward passes came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BatchLoss {
    /// Weighted loss over the normaliser, nats; 0 when nothing is kept.
    pub loss: f64,
    /// Tokens that the model read.
    pub tokens: usize,
    /// Rows with a weight above zero.
    pub kept_tokens: usize,
    /// Tokens that may be trained on.
    pub response_tokens: usize,
    /// Mean of `-logp` over the kept tokens, each counted once whatever its weight, nats.
    pub kept_loss: Option<f64>,
    /// The same over the targets with the weight 0, where it was asked for and there are any.
    pub dropped_loss: Option<f64>,
}

/// Sums over the passes of a step.
#[derive(Debug, Default)]
struct Sums {
    /// Weighted and divided.
    loss: f64,
    kept: Mean,
    dropped: Mean,
    /// What the sums above do not hold yet: it is read when every pass is under way, so that the
    /// device never waits for the host between two of them.
    unread: Vec<PendingHead>,
}

/// The passes of a step, under way; their gradients are added up.
#[derive(Debug)]
pub(crate) struct Learnt {
    sums: Sums,
    /// What is known without the sums.
    counted: BatchLoss,
    /// What the loss still has to be divided by.
    divisor: f64,
}

impl Learnt {
    /// How many tokens there are, and how many of them are kept.
    pub(crate) fn counted(&self) -> BatchLoss {
        self.counted
    }

    /// The log-probs that are still on a device, see [`gradients::clip`].
    pub(crate) fn on_device_rows(&self) -> Vec<&Tensor> {
        let unread = self.sums.unread.iter();
        unread.filter_map(PendingHead::on_device_rows).collect()
    }

    /// Waits for the loss.
    ///
    /// # Errors
    /// When it is not finite, or the device fails.
    pub(crate) fn read(mut self) -> Result<BatchLoss, EngineError> {
        self.sums.read()?;
        Ok(BatchLoss {
            loss: self.sums.loss / self.divisor,
            kept_loss: self.sums.kept.value(),
            dropped_loss: self.sums.dropped.value(),
            ..self.counted
        })
    }
}

impl Sums {
    /// Waits for what is unread.
    fn read(&mut self) -> Result<(), EngineError> {
        for pending in self.unread.drain(..) {
            let output = pending.read()?;
            if !output.loss_sum.is_finite() {
                return Err(EngineError::NotFinite {
                    what: "the loss".to_owned(),
                });
            }
            self.loss += output.loss_sum;
            self.kept.add(output.logp);
        }
        Ok(())
    }
}

/// A mean of `-logp`, as it grows.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    n: usize,
}

impl Mean {
    fn add(&mut self, logp: impl IntoIterator<Item = f32>) {
        for logp in logp {
            self.sum -= f64::from(logp);
            self.n += 1;
        }
    }

    fn value(self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }
}

/// The passes of a step, packed, corrupted and aligned: nothing of it needs the model.
#[derive(Debug)]
pub(crate) struct Prepared(Vec<Pass>);

/// One pass, prepared.
#[derive(Debug)]
struct Pass {
    packed: PackedExamples,
    rows: ModelBatch,
    counts: Vec<ExampleCounts>,
}

/// Adds the gradients of the normalised loss of `parts` into `grads`, and returns the loss.
///
/// Whatever packing, micro-batch size and recomputation say, the result is that of one pass over
/// everything, up to the rounding of sums.
///
/// # Errors
/// When the objective refuses an example, a token is outside the vocabulary, or the loss is not
/// finite ([`EngineError::NotFinite`]; `grads` are then of no use).
pub fn loss_and_gradients(
    decoder: &Decoder,
    objective: &dyn Objective,
    parts: &[Part<'_>],
    how: &Accumulation,
    grads: &mut Grads,
) -> Result<BatchLoss, EngineError> {
    let prepared = prepare(objective, parts, how)?;
    learn(decoder, objective, &prepared, how, grads)?.read()
}

/// [`loss_and_gradients`] of what is prepared.
pub(crate) fn learn(
    decoder: &Decoder,
    objective: &dyn Objective,
    Prepared(passes): &Prepared,
    how: &Accumulation,
    grads: &mut Grads,
) -> Result<Learnt, EngineError> {
    let counts: Vec<ExampleCounts> = passes.iter().flat_map(|p| p.counts.clone()).collect();
    let divisors = divisors(how.normaliser, &counts);
    let mut sums = Sums::default();
    let mut next_divisors = divisors.as_slice();
    for pass in passes {
        let (divisors, rest) = next_divisors.split_at(pass.counts.len());
        next_divisors = rest;
        run(decoder, objective, pass, divisors, how, grads, &mut sums)?;
    }
    Ok(Learnt {
        sums,
        counted: counted(passes),
        divisor: 1.0,
    })
}

/// The loss that [`loss_and_gradients`] would return, from forward passes alone.
///
/// # Errors
/// As [`loss_and_gradients`].
pub(crate) fn loss_alone(
    decoder: &Decoder,
    objective: &dyn Objective,
    parts: &[Part<'_>],
    how: &Accumulation,
) -> Result<f64, EngineError> {
    let Prepared(passes) = prepare(objective, parts, how)?;
    let counts: Vec<ExampleCounts> = passes.iter().flat_map(|p| p.counts.clone()).collect();
    let divisors = divisors(how.normaliser, &counts);
    let (mut loss, mut next_divisors) = (0.0, divisors.as_slice());
    for pass in &passes {
        let (divisors, rest) = next_divisors.split_at(pass.counts.len());
        next_divisors = rest;
        let asked = asked(pass, divisors)?;
        if asked.is_empty() {
            continue;
        }
        let batch = batch_of(&pass.rows, objective);
        let ids = &pass.rows.input_ids;
        let (hidden, _) = decoder.forward(ids, &batch, how.recompute, Save::Nothing)?;
        loss += decoder.head_forward(&hidden, &asked, None)?.loss_sum;
    }
    match loss.is_finite() {
        true => Ok(loss),
        false => Err(EngineError::NotFinite {
            what: "the loss".to_owned(),
        }),
    }
}

/// [`loss_and_gradients`] with the weights of the data multiplied by those of `online`, which is asked
/// about each pass when its log-probabilities are known: the model reads everything once, and only the
/// head's logits are computed twice. `step` counts from 1.
///
/// # Errors
/// As [`loss_and_gradients`], and when the strategy fails.
pub fn loss_and_gradients_online(
    decoder: &Decoder,
    objective: &dyn Objective,
    parts: &[Part<'_>],
    how: &Accumulation,
    online: (&OnlineSelection, u64),
    grads: &mut Grads,
) -> Result<BatchLoss, EngineError> {
    let prepared = prepare(objective, parts, how)?;
    learn_online(decoder, objective, prepared, how, online, grads)?.read()
}

/// [`loss_and_gradients_online`] of what is prepared.
pub(crate) fn learn_online(
    decoder: &Decoder,
    objective: &dyn Objective,
    Prepared(mut passes): Prepared,
    how: &Accumulation,
    online: (&OnlineSelection, u64),
    grads: &mut Grads,
) -> Result<Learnt, EngineError> {
    let mut sums = Sums::default();
    for pass in &mut passes {
        run_online(decoder, objective, pass, how, online, grads, &mut sums)?;
    }
    // What is divided by is known only now.
    let counts: Vec<ExampleCounts> = passes.iter().flat_map(|p| p.counts.clone()).collect();
    let total = total_divisor(how.normaliser, &counts);
    if total > 0.0 {
        grads.scale((1.0 / total) as f32)?;
    }
    Ok(Learnt {
        sums,
        counted: counted(&passes),
        divisor: if total > 0.0 { total } else { 1.0 },
    })
}

/// The tokens of `passes`.
fn counted(passes: &[Pass]) -> BatchLoss {
    let counts = || passes.iter().flat_map(|pass| &pass.counts);
    BatchLoss {
        tokens: passes.iter().map(|pass| pass.rows.input_ids.len()).sum(),
        kept_tokens: counts().map(|example| example.kept).sum(),
        response_tokens: counts().map(|example| example.response).sum(),
        ..BatchLoss::default()
    }
}

/// Packs, corrupts and aligns the examples of `parts`.
///
/// # Errors
/// When the objective refuses an example, or gives a row a weight that is none.
pub(crate) fn prepare(
    objective: &dyn Objective,
    parts: &[Part<'_>],
    how: &Accumulation,
) -> Result<Prepared, EngineError> {
    let mut passes = Vec::new();
    for part in parts {
        let lengths: Vec<usize> = part.examples.iter().map(|e| e.n_tokens()).collect();
        for range in packing::pack(&lengths, how.micro_batch_tokens, how.packing) {
            let packed = PackedExamples::new(part.examples[range].iter().copied());
            let mut rows = ModelBatch::default();
            let draw = Draw::new(how.seed, part.draw);
            objective.prepare(&packed.as_batch(), draw, &mut rows)?;
            let counts = count(&packed, &rows, objective.attention())?;
            passes.push(Pass {
                packed,
                rows,
                counts,
            });
        }
    }
    Ok(Prepared(passes))
}

/// Counts each example of a pass.
fn count(
    packed: &PackedExamples,
    rows: &ModelBatch,
    attention: AttentionPattern,
) -> Result<Vec<ExampleCounts>, EngineError> {
    // Nothing comes before the first token of an example, so nothing can predict it.
    let unpredicted = match attention {
        AttentionPattern::Causal => 1,
        _ => 0,
    };
    let mut counts: Vec<ExampleCounts> = packed
        .offsets
        .windows(2)
        .map(|tokens| {
            let (start, end) = (tokens[0] as usize, tokens[1] as usize);
            let may = &packed.trainable[(start + unpredicted).min(end)..end];
            ExampleCounts {
                response: may.iter().filter(|t| **t).count(),
                ..ExampleCounts::default()
            }
        })
        .collect();
    for (counts, range) in counts.iter_mut().zip(rows.offsets.windows(2)) {
        for row in range[0] as usize..range[1] as usize {
            if rows.target_pos[row] == NO_TARGET {
                continue;
            }
            let weight = rows.weights[row];
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(EngineError::Batch {
                    message: format!("row {row} has the loss weight {weight}"),
                });
            }
            counts.weight_sum += f64::from(weight);
            counts.kept += usize::from(weight > 0.0);
        }
    }
    Ok(counts)
}

/// Forward and backward of one pass; adds its share of the loss to `sums`.
fn run(
    decoder: &Decoder,
    objective: &dyn Objective,
    pass: &Pass,
    divisors: &[Option<f64>],
    how: &Accumulation,
    grads: &mut Grads,
    sums: &mut Sums,
) -> Result<(), EngineError> {
    let asked = asked(pass, divisors)?;
    let dropped = match how.dropped_loss {
        true => dropped(pass)?,
        false => Vec::new(),
    };
    let save = match (asked.is_empty(), dropped.is_empty()) {
        (true, true) => return Ok(()),
        (true, false) => Save::Nothing,
        (false, _) => Save::ForBackward,
    };
    let batch = batch_of(&pass.rows, objective);
    let forward = decoder.forward(&pass.rows.input_ids, &batch, how.recompute, save)?;
    if !dropped.is_empty() {
        let output = decoder.head_forward(&forward.0, &dropped, None)?;
        sums.dropped.add(output.logp);
    }
    if asked.is_empty() {
        return Ok(());
    }
    backward(decoder, forward, &batch, &asked, grads, sums)
}

/// [`run`] with weights that depend on the forward pass; they replace those of the pass. The loss
/// and the gradients still have to be divided by [`total_divisor`].
fn run_online(
    decoder: &Decoder,
    objective: &dyn Objective,
    pass: &mut Pass,
    how: &Accumulation,
    (online, step): (&OnlineSelection, u64),
    grads: &mut Grads,
    sums: &mut Sums,
) -> Result<(), EngineError> {
    let targets = head_rows(&pass.rows, &pass.packed.ids, |_| Some(0.0))?;
    if targets.is_empty() {
        return Ok(());
    }
    let batch = batch_of(&pass.rows, objective);
    let ids = &pass.rows.input_ids;
    let (hidden, tape) = decoder.forward(ids, &batch, how.recompute, Save::ForBackward)?;
    let output = decoder.head_forward(&hidden, &targets, None)?;
    if output.logp.iter().any(|logp| !logp.is_finite()) {
        return Err(EngineError::NotFinite {
            what: "the loss".to_owned(),
        });
    }
    let chosen = online.weigh(&pass.packed, &pass.rows, &targets, &output, step)?;
    for (target, weight) in targets.iter().zip(chosen) {
        pass.rows.weights[target.row as usize] *= weight;
    }
    // They are known already.
    let weight_of = |target: &HeadRow| pass.rows.weights[target.row as usize];
    let known = targets.iter().zip(&output.logp);
    let dropped = known.filter(|(target, _)| weight_of(target) <= 0.0);
    sums.dropped.add(dropped.map(|(_, logp)| *logp));
    pass.counts = count(&pass.packed, &pass.rows, objective.attention())?;
    let part = |example| part_divisor(how.normaliser, example);
    let divisors: Vec<Option<f64>> = pass.counts.iter().map(part).collect();
    let asked = asked(pass, &divisors)?;
    if asked.is_empty() {
        return Ok(());
    }
    backward(decoder, (hidden, tape), &batch, &asked, grads, sums)
}

/// The rows of a pass whose target has no weight.
fn dropped(pass: &Pass) -> Result<Vec<HeadRow>, EngineError> {
    let weights = &pass.rows.weights;
    head_rows(&pass.rows, &pass.packed.ids, |row| {
        (weights[row] <= 0.0).then_some(0.0)
    })
}

/// The rows of a pass that are trained on, each example's divided by its divisor.
fn asked(pass: &Pass, divisors: &[Option<f64>]) -> Result<Vec<HeadRow>, EngineError> {
    let rows = &pass.rows;
    // Of each row, by what its term is divided.
    let mut divisor_of = vec![None; rows.input_ids.len()];
    for (divisor, range) in divisors.iter().zip(rows.offsets.windows(2)) {
        divisor_of[range[0] as usize..range[1] as usize].fill(*divisor);
    }
    head_rows(rows, &pass.packed.ids, |row| {
        let weight = rows.weights[row];
        let divisor = divisor_of[row].filter(|_| weight > 0.0)?;
        Some((f64::from(weight) / divisor) as f32)
    })
}

/// From the hidden states back; adds the weighted loss of `asked` to `sums`.
fn backward(
    decoder: &Decoder,
    (hidden, tape): (Tensor, Tape),
    batch: &Batch,
    asked: &[HeadRow],
    grads: &mut Grads,
    sums: &mut Sums,
) -> Result<(), EngineError> {
    let (pending, d_hidden) =
        decoder
            .head
            .forward_backward(&decoder.params, &hidden, asked, None, grads)?;
    drop(hidden);
    sums.unread.push(pending);
    decoder.backward(d_hidden, tape, batch, grads)
}
