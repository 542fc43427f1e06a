//! Generation: answers to prompts, by the family's decode rule.

mod blocks;
mod canvas;
mod frozen;
mod left_to_right;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod on_device;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::ControlFlow;

use t3s_core::{DecodeRule, plan::sections::GeneratePlan};

use crate::{
    Decoder, EngineError,
    layers::{Block, Mlp},
    sample::Sampler,
};

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Index of the prompt.
    pub prompt: usize,
    /// Which of the prompt's answers.
    pub sample: usize,
    /// The answer's token ids, without the one that ended it.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model wrote one of its end tokens.
    Eos,
    /// It reached `max_new_tokens`, or the last position of the model.
    Length,
}

/// How far a generation is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GenerateProgress {
    /// Finished answers.
    pub answers_done: usize,
    /// All answers.
    pub answers: usize,
    /// Finished answers that were cut off ([`Finish::Length`]).
    pub truncated: usize,
    /// Tokens drawn so far, end tokens included; a copied answer counts once.
    pub tokens: usize,
}

/// Generates `samples` answers to each of `prompts` (token ids), ordered by prompt, then sample.
///
/// Every answer has a random stream of its own, keyed by (`seed`, prompt index, sample index, token
/// index), and no row's arithmetic depends on the rows beside it: the same prompt at the same index
/// gets the same answer, bit for bit, whatever `plan.batch`, the number of threads, the other
/// prompts and `samples` are. (The last bit of a logit may differ from that of [`Decoder::logits`],
/// whose matrix product orders its sums by the number of rows.)
///
/// Answers to one prompt share its key-value cache. At temperature 0 they are all the same, so one is
/// generated and copied. `progress` is called about twenty times a second.
///
/// Where the weights are on a GPU, models are decoded there, in the weights' type. The random streams are
/// the same, and the same call gives the same answers. No row is computed together with another; but
/// another number of rows of a matrix product may take another kernel, which changes last bits of logits.
/// Logits are the CPU's up to rounding, so a token may be another where two are nearly tied.
///
/// From left to right, adapters are merged there (the sums rounded to the weights' type), and `progress`
/// is called after every eighth step at most. A step has `plan.batch` rows; when there are no prompts left
/// it has half as many whenever half of the answers have ended, down to 64. So up to a batch of 64 an
/// answer does not depend on the other prompts or on `samples`, as far as the matrix library treats all
/// rows alike; of larger ones it may in last bits.
///
/// In blocks, adapters stay apart, and `progress` is called between passes. Products always have the same
/// number of rows (a function of `plan.batch` and the rule, filled or not), so that answers do not depend
/// on each other either; but of models in which everything sees everything whole texts are read side by
/// side, and last bits may depend on the other prompts.
///
/// # Errors
/// A prompt that is empty, longer than the model's positions or has an id outside the vocabulary; a
/// plan that makes no sense; logits that are no numbers; a GPU without room for the keys and values of
/// `plan.batch` answers; [`EngineError::Interrupted`] when `progress` breaks.
pub fn generate(
    decoder: &Decoder,
    rule: &DecodeRule,
    prompts: &[Vec<u32>],
    samples: usize,
    plan: &GeneratePlan,
    seed: u64,
    progress: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Generation>, EngineError> {
    let sampler = Sampler::new(plan)?;
    if plan.batch == 0 {
        return Err(EngineError::Spec {
            key: "generate.batch".to_owned(),
            message: "0; at least one answer has to be generated at a time".to_owned(),
        });
    }
    check_prompts(decoder, prompts)?;
    check_rule(decoder, rule)?;
    let task = Task {
        decoder,
        prompts,
        samples,
        plan,
        sampler,
        seed,
    };
    #[cfg(any(test, feature = "cuda"))]
    if crate::kernels::cuda::runs(decoder.params.tensor(decoder.embedding.weight)) {
        match rule {
            DecodeRule::LeftToRight => {
                return on_device::generate(task, on_device::Steps::default(), progress);
            }
            DecodeRule::Blocks(rule) => return on_device::blocks::generate(task, rule, progress),
            _ => {}
        }
    }
    match rule {
        DecodeRule::LeftToRight => left_to_right::generate(task, progress),
        DecodeRule::Blocks(rule) => blocks::generate(task, rule, true, progress),
        other => Err(EngineError::Spec {
            key: "decode".to_owned(),
            message: format!("{other:?} is not known to this build; known: left-to-right, blocks"),
        }),
    }
}

/// What is to be generated: the arguments of [`generate`], checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task<'a> {
    pub decoder: &'a Decoder,
    pub prompts: &'a [Vec<u32>],
    pub samples: usize,
    pub plan: &'a GeneratePlan,
    pub sampler: Sampler,
    pub seed: u64,
}

impl Task<'_> {
    /// How many answers there will be.
    fn answers(&self) -> usize {
        self.prompts.len() * self.samples
    }

    /// For how many samples of a prompt one answer stands: at temperature 0 all are the same.
    fn copies(&self) -> usize {
        match self.sampler.is_greedy() {
            true => self.samples.max(1),
            false => 1,
        }
    }

    /// Different answers to a prompt.
    fn different(&self) -> usize {
        self.samples / self.copies()
    }

    /// Positions of the longest sequence that may come to be.
    fn most_positions(&self) -> usize {
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let most = self.decoder.spec.max_positions;
        most.min(longest.saturating_add(self.plan.max_new_tokens))
    }
}

/// Orders answers by prompt, then sample; each stands for `copies` samples.
fn with_copies(mut generations: Vec<Generation>, copies: usize) -> Vec<Generation> {
    generations.sort_unstable_by_key(|answer| (answer.prompt, answer.sample));
    if copies == 1 {
        return generations;
    }
    let all = generations.into_iter().flat_map(|answer| {
        (0..copies).map(move |sample| Generation {
            sample,
            ..answer.clone()
        })
    });
    all.collect()
}

fn check_rule(decoder: &Decoder, rule: &DecodeRule) -> Result<(), EngineError> {
    let experts = |block: &Block| matches!(block.mlp, Mlp::Experts(_));
    if matches!(rule, DecodeRule::LeftToRight) && decoder.blocks.iter().any(experts) {
        return Err(EngineError::Spec {
            key: "mlp".to_owned(),
            message: "left-to-right decoding of a mixture of experts is not implemented".to_owned(),
        });
    }
    Ok(())
}

fn check_prompts(decoder: &Decoder, prompts: &[Vec<u32>]) -> Result<(), EngineError> {
    let spec = &decoder.spec;
    for (prompt, ids) in prompts.iter().enumerate() {
        if ids.is_empty() || ids.len() > spec.max_positions {
            return Err(EngineError::Prompt {
                prompt,
                tokens: ids.len(),
                max_positions: spec.max_positions,
            });
        }
        if let Some(row) = ids.iter().position(|id| *id as usize >= spec.vocab) {
            return Err(EngineError::TokenId {
                row,
                id: ids[row],
                vocab: spec.vocab,
            });
        }
    }
    Ok(())
}
