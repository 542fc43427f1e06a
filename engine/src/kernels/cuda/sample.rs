//! Launch of sample.cu: the next token of every slot. Twin of `crate::sample`.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{
    decode::State,
    launch::{Launch, Source, source, threads_for},
    memory::{overwritten, zeros},
};
use crate::sample::Sampler;

const SOURCE: Source = source!("sample");

/// Threads per slot, at most.
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
        let lists = match sampler.filters(vocab) {
            true => Some(overwritten((slots, vocab), DType::U32, device)?),
            false => None,
        };
        Ok(Self {
            sampler,
            vocab,
            eos,
            n_eos: eos_ids.len(),
            answers: zeros((slots, most), DType::U32, device)?,
            lists,
        })
    }

    /// The next token of the first slots, those whose status is `which`, from their `logits [rows,
    /// vocab]`, f32.
    pub(crate) fn draw(&self, logits: &Tensor, state: &State, which: u32) -> Result<()> {
        let (rows, vocab) = logits.dims2()?;
        if logits.dtype() != DType::F32 || vocab != self.vocab {
            bail!(
                "sample: logits {:?} of {vocab} tokens, not f32 of {}",
                logits.dtype(),
                self.vocab
            );
        }
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
