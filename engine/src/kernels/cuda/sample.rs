//! Launches of sample.cu: the next token of every slot, and tokens for masked positions. Twin of
//! `crate::sample`.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{
    decode::State,
    launch::{Launch, Source, source, threads_for},
    memory::{one_dtype, overwritten, upload, zeros},
};
use crate::sample::Sampler;

const SOURCE: Source = source!("sample");

/// Threads per row, at most.
const THREADS: u32 = 1024;

/// Draws tokens, with the memory that takes.
#[derive(Debug)]
pub(crate) struct TokenSampler {
    sampler: Sampler,
    vocab: usize,
    /// At least one word.
    eos: Tensor,
    n_eos: usize,
    /// `[slots, most]`: what has been written of every answer.
    pub answers: Tensor,
    /// `[slots, vocab]`: ids that a filter has left.
    lists: Option<Tensor>,
}

/// Scratch for a filter's ids, where something is filtered.
fn lists(
    sampler: Sampler,
    (rows, vocab): (usize, usize),
    device: &Device,
) -> Result<Option<Tensor>> {
    match sampler.filters(vocab) {
        true => Ok(Some(overwritten((rows, vocab), DType::U32, device)?)),
        false => Ok(None),
    }
}

fn check(logits: &Tensor, vocab: usize) -> Result<()> {
    let (_, columns) = logits.dims2()?;
    if logits.dtype() != DType::F32 || columns != vocab {
        bail!(
            "sample: logits {:?} of {columns} tokens, not f32 of {vocab}",
            logits.dtype()
        );
    }
    Ok(())
}

impl TokenSampler {
    /// For `slots` answers of at most `most` tokens.
    pub(crate) fn new(
        sampler: Sampler,
        (slots, most, vocab): (usize, usize, usize),
        eos_ids: &[u32],
        device: &Device,
    ) -> Result<Self> {
        let eos = match eos_ids {
            [] => Tensor::new(&[0u32], device)?,
            ids => Tensor::new(ids, device)?,
        };
        Ok(Self {
            sampler,
            vocab,
            eos,
            n_eos: eos_ids.len(),
            answers: zeros((slots, most), DType::U32, device)?,
            lists: lists(sampler, (slots, vocab), device)?,
        })
    }

    /// The next token of the first slots, those whose status is `which`, from their `logits [rows,
    /// vocab]`, f32.
    pub(crate) fn draw(&self, logits: &Tensor, state: &State, which: u32) -> Result<()> {
        let (rows, vocab) = (logits.dim(0)?, self.vocab);
        check(logits, vocab)?;
        Launch::plain(SOURCE, "sample_tokens", logits.device())
            .tensor(logits)?
            .tensor(&state.0)?
            .tensor(&self.answers)?
            .tensor(&self.eos)?
            .u32(self.n_eos)?
            .optional(self.lists.as_ref())?
            .u32(vocab)?
            .u32(state.slots()?)?
            .u32(self.answers.dim(1)?)?
            .u32(which as usize)?
            .f32(self.sampler.inverse_temperature().unwrap_or(-1.0))
            .u32(self.sampler.top_k())?
            .f64(self.sampler.top_p())
            .run((rows, 1), threads_for(vocab, THREADS))
    }

    /// Slots move, with their answers: see [`State::move_slots`].
    pub(crate) fn move_answers(&self, state: &State, moves: &[[u32; 3]]) -> Result<()> {
        state.move_slots(&self.answers, moves)
    }

    /// The answer of `slot`, `written` tokens. Waits for the device.
    pub(crate) fn answer(&self, slot: usize, written: usize) -> Result<Vec<u32>> {
        // A copy first: what is read back is a tensor's whole storage.
        let row = self.answers.narrow(0, slot, 1)?.narrow(1, 0, written)?;
        row.force_contiguous()?.flatten_all()?.to_vec1()
    }
}

/// Which random number decides over a row of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Draw {
    /// Of the answer's random stream.
    pub key: u64,
    /// `AnswerStream::uniform` of it.
    pub counter: u64,
}

/// Draws a token for each row of logits and says how likely it is, with the memory that takes.
#[derive(Debug)]
pub(crate) struct CandidateSampler {
    sampler: Sampler,
    vocab: usize,
    never: Tensor,
    /// `[rows, vocab]`: ids that a filter has left.
    lists: Option<Tensor>,
}

impl CandidateSampler {
    /// For up to `rows` rows at a time; the ids `never`, at least one, are not drawn.
    pub(crate) fn new(
        sampler: Sampler,
        (rows, vocab): (usize, usize),
        never: &[u32],
        device: &Device,
    ) -> Result<Self> {
        Ok(Self {
            sampler,
            vocab,
            never: Tensor::new(never, device)?,
            lists: lists(sampler, (rows, vocab), device)?,
        })
    }

    /// A token for each of the first rows of `logits [rows or more, vocab]`, f32, as many as there are
    /// `draws`: its id and its probability at temperature 1 into `found [draws, 2]`, f64, or {-1, 0} where
    /// a logit is no finite number. Logits of the ids that are never drawn are overwritten.
    pub(crate) fn draw(&self, logits: &Tensor, draws: &[Draw], found: &Tensor) -> Result<()> {
        check(logits, self.vocab)?;
        debug_assert!(draws.len() <= logits.dim(0)? && found.dims() == [draws.len(), 2]);
        let words = draws.iter().flat_map(|Draw { key, counter }| {
            [key, counter].map(|word| [*word as u32, (word >> 32) as u32])
        });
        let words = words.flatten().collect::<Vec<u32>>();
        let device = logits.device();
        Launch::plain(SOURCE, "sample_candidates", device)
            .tensor(logits)?
            .tensor(&upload(&words, device)?)?
            .tensor(&self.never)?
            .u32(self.never.elem_count())?
            .optional(self.lists.as_ref())?
            .tensor(found)?
            .u32(self.vocab)?
            .f32(self.sampler.inverse_temperature().unwrap_or(-1.0))
            .u32(self.sampler.top_k())?
            .f64(self.sampler.top_p())
            .run((draws.len(), 1), threads_for(self.vocab, THREADS))
    }
}

/// `with = without + scale (with - without)`, f32, in place.
pub(crate) fn guide(with: &Tensor, without: &Tensor, scale: f32) -> Result<()> {
    one_dtype("guidance", &[with, without])?;
    let n = with.elem_count();
    Launch::plain(SOURCE, "sample_guide", with.device())
        .tensor(with)?
        .tensor(without)?
        .f32(scale)
        .u64(n as u64)
        .per_element(n)
}
