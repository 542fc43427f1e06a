//! The laws of an adapter's objective: what it makes of examples.

use super::adapter::{Fault, Subject, fault};
use crate::{
    AttentionPattern, CounterRng, ExampleBatch, ModelBatch, NO_TARGET, Objective, objective::Draw,
};

/// Examples, in the columns of an [`ExampleBatch`].
#[derive(Debug, Clone, Default)]
struct Batch {
    example_ids: Vec<u64>,
    offsets: Vec<u32>,
    ids: Vec<u32>,
    trainable: Vec<bool>,
    weights: Vec<f32>,
}

/// Lengths of prompt and response, for the examples of each batch; the smallest first.
const LENGTHS: [&[(usize, usize)]; 8] = [
    &[],
    &[(1, 1)],
    &[(2, 0)],
    &[(0, 2)],
    &[(2, 3)],
    &[(1, 1), (3, 5)],
    &[(3, 7), (0, 1), (2, 2)],
    &[(5, 40), (9, 64), (1, 33)],
];

impl Batch {
    /// The examples of `lengths`, of ids below `vocab`, without `mask`.
    fn new(lengths: &[(usize, usize)], vocab: u32, mask: Option<u32>) -> Self {
        let rng = CounterRng::new(7, "law-examples");
        let mut batch = Self {
            offsets: vec![0],
            ..Self::default()
        };
        for (index, (prompt, response)) in lengths.iter().enumerate() {
            let example = (index as u64 * 5 + 3) % 7;
            batch.example_ids.push(example);
            for position in 0..prompt + response {
                let bits = rng.bits(example, position as u64);
                let id = (bits % u64::from(vocab)) as u32;
                batch.ids.push(match mask == Some(id) {
                    true => (id + 1) % vocab,
                    false => id,
                });
                let trainable = position >= *prompt;
                batch.trainable.push(trainable);
                let weight = [1.0, 0.0, 0.25][(bits >> 40) as usize % 3];
                batch.weights.push(if trainable { weight } else { 0.0 });
            }
            batch.offsets.push(batch.ids.len() as u32);
        }
        batch
    }

    fn view(&self) -> ExampleBatch<'_> {
        ExampleBatch {
            example_ids: &self.example_ids,
            offsets: &self.offsets,
            ids: &self.ids,
            trainable: &self.trainable,
            weights: &self.weights,
            noisy_ids: &[],
        }
    }

    /// One line per token.
    fn show(&self) -> String {
        let mut text = String::new();
        for (window, example) in self.offsets.windows(2).zip(&self.example_ids) {
            let tokens = window[0] as usize..window[1] as usize;
            for (position, token) in tokens.enumerate() {
                let kind = match self.trainable[token] {
                    true => "response",
                    false => "prompt",
                };
                text.push_str(&format!(
                    "example {example}, position {position}, {kind}: id {}, weight {}\n",
                    self.ids[token], self.weights[token]
                ));
            }
        }
        match text.is_empty() {
            true => "no examples".to_owned(),
            false => text.trim_end().to_owned(),
        }
    }
}

fn made(subject: &Subject<'_>) -> Result<Box<dyn Objective>, Fault> {
    let refused = |error| fault("", format!("the objective's options were refused: {error}"));
    (subject.make)()
        .objective(&subject.all_options()?.objective)
        .map_err(refused)
}

/// The options make one objective, with an attention pattern that exists.
pub(super) fn objective(subject: &Subject<'_>) -> Result<(), Fault> {
    let told = |objective: Box<dyn Objective>| (objective.attention(), objective.weighting());
    let (once, again) = (told(made(subject)?), told(made(subject)?));
    if once != again {
        return Err(fault("", format!("{once:?} became {again:?}")));
    }
    let (pattern, _) = once;
    let legal = match pattern {
        AttentionPattern::Causal | AttentionPattern::Bidirectional => true,
        AttentionPattern::BlockCausal { block } => block > 0,
        AttentionPattern::BlockDiffusion { block, views } => block > 0 && views > 0,
    };
    match legal {
        true => Ok(()),
        false => Err(fault("", format!("{pattern:?}: a count of 0"))),
    }
}

/// Runs `law` over examples of the vocabulary, the smallest first.
fn each(
    subject: &Subject<'_>,
    law: impl Fn(&Batch, &dyn Objective, u32) -> Result<(), String>,
) -> Result<(), Fault> {
    let objective = made(subject)?;
    let vocab = u32::try_from(subject.spec()?.vocab).unwrap_or(u32::MAX);
    let mask = match (subject.make)().decode(&subject.all_options()?.decode) {
        Ok(crate::DecodeRule::Blocks(blocks)) => Some(blocks.mask_id),
        _ => None,
    };
    for lengths in LENGTHS {
        let batch = Batch::new(lengths, vocab, mask);
        law(&batch, objective.as_ref(), vocab).map_err(|message| (batch.show(), message))?;
    }
    Ok(())
}

fn prepare(objective: &dyn Objective, batch: &Batch, draw: Draw) -> Result<ModelBatch, String> {
    // What is in it already is nobody's.
    let mut out = ModelBatch {
        input_ids: vec![1],
        positions: vec![9],
        offsets: vec![0, 1],
        target_pos: vec![0],
        weights: vec![1.0],
    };
    objective
        .prepare(&batch.view(), draw, &mut out)
        .map_err(|error| format!("good examples were refused: {error}"))?;
    Ok(out)
}

/// The rows are legal: see [`legal`].
pub(super) fn rows(subject: &Subject<'_>) -> Result<(), Fault> {
    each(subject, |batch, objective, vocab| {
        let third = Draw {
            strata: 4,
            ..Draw::new(1, 3)
        };
        for draw in [Draw::new(0, 0), Draw::new(1, 0), third] {
            let rows = prepare(objective, batch, draw)?;
            legal(batch, &rows, vocab, objective.attention())?;
        }
        Ok(())
    })
}

/// The columns have one length and the offsets cover it; ids are of the vocabulary; a target is a
/// response token of the row's own example and has a finite weight, no other row has one; a row at a
/// prompt token's position reads that token.
fn legal(
    batch: &Batch,
    rows: &ModelBatch,
    vocab: u32,
    pattern: AttentionPattern,
) -> Result<(), String> {
    let n = rows.input_ids.len();
    let lengths = [
        rows.positions.len(),
        rows.target_pos.len(),
        rows.weights.len(),
    ];
    if lengths != [n; 3] {
        return Err(format!(
            "{n} ids, but {lengths:?} positions, targets and weights"
        ));
    }
    let covers = rows.offsets.len() == batch.offsets.len()
        && rows.offsets.first() == Some(&0)
        && rows.offsets.last() == Some(&(n as u32))
        && rows.offsets.is_sorted();
    if !covers {
        return Err(format!(
            "offsets {:?} do not give {} examples {n} rows",
            rows.offsets,
            batch.example_ids.len()
        ));
    }
    for (example, (own, tokens)) in rows
        .offsets
        .windows(2)
        .zip(batch.offsets.windows(2))
        .enumerate()
    {
        if let AttentionPattern::BlockDiffusion { views, .. } = pattern
            && (own[1] - own[0]) % (views + 1) != 0
        {
            let found = own[1] - own[0];
            return Err(format!(
                "{found} rows are not {views} copies and a clean one"
            ));
        }
        for row in own[0] as usize..own[1] as usize {
            let (id, position) = (rows.input_ids[row], rows.positions[row]);
            let (target, weight) = (rows.target_pos[row], rows.weights[row]);
            if id >= vocab {
                return Err(format!("row {row} reads id {id} of {vocab}"));
            }
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(format!("row {row} has the weight {weight}"));
            }
            if target == NO_TARGET && weight > 0.0 {
                return Err(format!("row {row} has the weight {weight} and no target"));
            }
            let inside = (tokens[0]..tokens[1]).contains(&target);
            if target != NO_TARGET && !inside {
                return Err(format!(
                    "row {row} predicts token {target}, which is not of its example {}",
                    batch.example_ids[example]
                ));
            }
            if target != NO_TARGET && !batch.trainable[target as usize] {
                return Err(format!("row {row} predicts token {target}, a prompt token"));
            }
            let token = tokens[0].saturating_add(position);
            if token < tokens[1]
                && !batch.trainable[token as usize]
                && id != batch.ids[token as usize]
            {
                return Err(format!(
                    "row {row} reads id {id} in place of the prompt's {}",
                    batch.ids[token as usize]
                ));
            }
        }
    }
    Ok(())
}

/// Seed and draw decide: asked again and made again, the rows are the same.
pub(super) fn draws(subject: &Subject<'_>) -> Result<(), Fault> {
    let other = made(subject)?;
    each(subject, |batch, objective, _| {
        let rows = prepare(objective, batch, Draw::new(5, 2))?;
        for (what, found) in [
            ("asked again", prepare(objective, batch, Draw::new(5, 2))?),
            (
                "made again",
                prepare(other.as_ref(), batch, Draw::new(5, 2))?,
            ),
        ] {
            if found != rows {
                return Err(format!("{rows:?} became {found:?} when {what}"));
            }
        }
        Ok(())
    })
}
