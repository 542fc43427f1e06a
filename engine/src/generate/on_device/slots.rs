//! Sequences side by side on the device: their caches, their state, and what a step needs.

use candle_core::{DType, Result, Tensor};
use t3s_core::AttentionPattern;

use super::{
    cache_error,
    frozen::{Activations, Frozen},
};
use crate::{
    Decoder, EngineError,
    kernels::{
        Into,
        buffers::PROMPT_ROWS,
        cuda::{
            attention,
            decode::{self, Attend, LayerCache, Rows, Start, State, status},
            embedding,
            graph::{Recording, Workspace},
            memory::{overwritten, upload, zeros},
            rms_norm,
            sample::TokenSampler,
        },
    },
    sample::Sampler,
};

/// How many sequences there are, and how long they get.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Rows of every matrix product of a step, at first.
    pub rows: usize,
    /// Sequences with a cache: the first of the rows.
    pub slots: usize,
    /// Positions per cache.
    pub capacity: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
}

/// All slots. Everything is allocated once, but for the activations, which shrink with the rows.
pub(super) struct Slots {
    frozen: Frozen,
    size: Size,
    state: State,
    caches: Vec<LayerCache>,
    attend: Attend,
    step: Activations,
    /// `[rows, width]`: where each slot's prompt ended, before the final norm.
    prompt_ends: Tensor,
    /// `[rows, vocab]`, f32.
    logits: Tensor,
    sampler: TokenSampler,
    how: StepStart,
    // Before the workspace: a recording computes in it.
    recording: Option<Recording>,
    _workspace: Workspace,
}

/// How the launches of a step are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepStart {
    /// One by one.
    Plain,
    /// One by one the first time, which loads the kernels; recorded the second time.
    Recorded {
        /// Whether the first step has run.
        warm: bool,
    },
}

impl Slots {
    pub(super) fn new(
        decoder: &Decoder,
        size: Size,
        sampler: Sampler,
        how: StepStart,
    ) -> std::result::Result<Self, EngineError> {
        let frozen = Frozen::new(decoder, size.capacity)?;
        let (heads, vocab) = (frozen.heads, decoder.spec.vocab);
        let (dtype, device) = (frozen.embedding.dtype(), frozen.embedding.device().clone());
        let caches = (0..frozen.blocks.len())
            .map(|_| LayerCache::new(size.slots, size.capacity, heads, dtype, &device))
            .collect::<Result<_>>()
            .map_err(|error| {
                cache_error(error, &decoder.spec, dtype, (size.slots, size.capacity))
            })?;
        let answers = (size.rows, size.max_new_tokens, vocab);
        let width = decoder.spec.width;
        Ok(Self {
            size,
            state: State::new(size.rows, &device)?,
            caches,
            attend: Attend::new(size.slots, size.capacity, heads, &device)?,
            step: frozen.activations(size.rows)?,
            prompt_ends: zeros((size.rows, width), dtype, &device)?,
            logits: overwritten((size.rows, vocab), DType::F32, &device)?,
            sampler: TokenSampler::new(sampler, answers, &decoder.spec.eos_ids, &device)?,
            how,
            recording: None,
            _workspace: Workspace::of(&device)?,
            frozen,
        })
    }

    /// Reads prompts into the caches of slots, in one pass.
    pub(super) fn read(&self, prompts: &[(usize, &[u32])]) -> Result<()> {
        let n: usize = prompts.iter().map(|(_, ids)| ids.len()).sum();
        // The rows past the last prompt are zeros, seen and cached by nobody.
        let rows = n.next_multiple_of(PROMPT_ROWS);
        let mut ids = Vec::with_capacity(n);
        let (mut positions, mut slots) = (vec![0; rows], vec![u32::MAX; rows]);
        let (mut offsets, mut ends) = (vec![0u32], Vec::new());
        for (slot, prompt) in prompts {
            for (position, id) in prompt.iter().enumerate() {
                positions[ids.len()] = position as u32;
                slots[ids.len()] = *slot as u32;
                ids.push(*id);
            }
            offsets.push(ids.len() as u32);
            ends.extend([ids.len() as u32 - 1, *slot as u32]);
        }
        let (dtype, device) = (self.frozen.embedding.dtype(), self.logits.device());
        let [ids, positions, slots] = [ids, positions, slots].map(|list| upload(&list, device));
        let (ids, positions, slots) = (ids?, positions?, slots?);
        let a = self.frozen.activations(rows)?;
        let heads = self.frozen.heads;
        let kv = || overwritten((rows, heads.kv_width()), dtype, device);
        let (k, v) = (kv()?, kv()?);
        let lse = overwritten((rows, heads.n_heads), DType::F32, device)?;
        embedding::forward_into(&self.frozen.embedding, &ids, &a.x)?;
        self.frozen.run_blocks(&a, PROMPT_ROWS, |layer, rotation| {
            let rows = Rows::Prompts {
                positions: &positions,
                slots: &slots,
                k: &k,
                v: &v,
            };
            decode::rotate(&a.qkv, rotation, rows, &a.q, &self.caches[layer])?;
            attention::forward_into(
                [&a.q, &k, &v],
                heads,
                &offsets,
                AttentionPattern::Causal,
                (&a.attended, &lse),
            )
        })?;
        let ends = upload(&ends, device)?.reshape((prompts.len(), 2))?;
        decode::place(&a.x, &ends, &self.prompt_ends)
    }

    /// Slots get the prompts that others have read: `{from, to, tokens}`.
    pub(super) fn copy(&self, pairs: &[[u32; 3]]) -> Result<()> {
        if pairs.is_empty() {
            return Ok(());
        }
        self.copy_caches(pairs)?;
        let rows: Vec<[u32; 3]> = pairs.iter().map(|[from, to, _]| [*from, *to, 1]).collect();
        let rows = self.triples(&rows)?;
        let (n, width) = self.prompt_ends.dims2()?;
        decode::copy(&self.prompt_ends.reshape((n, 1, 1, width))?, &rows)
    }

    /// The first positions of slots become others': `{from, to, positions}`.
    fn copy_caches(&self, moves: &[[u32; 3]]) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        let moves = self.triples(moves)?;
        self.caches.iter().try_for_each(|cache| cache.copy(&moves))
    }

    /// `[n, 3]` on the device.
    fn triples(&self, words: &[[u32; 3]]) -> Result<Tensor> {
        upload(&words.concat(), self.logits.device())?.reshape((words.len(), 3))
    }

    /// Rows of every matrix product of a step.
    pub(super) fn rows(&self) -> usize {
        self.size.rows
    }

    /// Steps have `rows` rows from now on; first slots move, `{from, to, positions}`, so that those past
    /// the rows have nothing to do. No prompt is read any more.
    pub(super) fn shrink(&mut self, moves: &[[u32; 3]], rows: usize) -> Result<()> {
        self.copy_caches(moves)?;
        self.sampler.move_answers(&self.state, moves)?;
        // A recording has the addresses of what goes now; and kernels of another shape are loaded by
        // running once.
        self.recording = None;
        if let StepStart::Recorded { warm } = &mut self.how {
            *warm = false;
        }
        self.size.rows = rows;
        self.step = self.frozen.activations(rows)?;
        self.logits = self.logits.narrow(0, 0, rows)?;
        Ok(())
    }

    /// Gives slots, whose prompts are read, new answers, and draws the first token of each.
    pub(super) fn start(&self, starts: &[Start]) -> Result<()> {
        self.state.start(starts)?;
        self.draw(&self.prompt_ends, status::FRESH)
    }

    /// One token more for every running slot.
    pub(super) fn step(&mut self) -> Result<()> {
        match self.how {
            StepStart::Plain => return self.launch_step(),
            StepStart::Recorded { warm: false } => {
                self.how = StepStart::Recorded { warm: true };
                return self.launch_step();
            }
            StepStart::Recorded { warm: true } => {}
        }
        if self.recording.is_none() {
            self.recording = Recording::of(self.logits.device(), || self.launch_step());
        }
        match &self.recording {
            Some(recording) => recording.replay(),
            None => {
                self.how = StepStart::Plain;
                self.launch_step()
            }
        }
    }

    /// The same launches with the same arguments each time: all that changes is on the device.
    fn launch_step(&self) -> Result<()> {
        let a = &self.step;
        embedding::forward_into(
            &self.frozen.embedding,
            &self.state.ids(self.size.rows)?,
            &a.x,
        )?;
        self.frozen
            .run_blocks(a, self.size.rows, |layer, rotation| {
                let cache = &self.caches[layer];
                decode::rotate(&a.qkv, rotation, Rows::Slots(&self.state), &a.q, cache)?;
                self.attend.run(&a.q, cache, &self.state, &a.attended)
            })?;
        self.draw(&a.x, status::RUNNING)
    }

    /// The next tokens of the slots whose status is `which`, from hidden states `[rows, width]`.
    fn draw(&self, x: &Tensor, which: u32) -> Result<()> {
        let (frozen, normed) = (&self.frozen, &self.step.normed);
        rms_norm::forward_into(x, &frozen.final_norm, frozen.eps, normed)?;
        frozen
            .head
            .apply(normed, &self.logits, Into::Overwrite, self.size.rows)?;
        self.sampler.draw(&self.logits, &self.state, which)
    }

    /// The status of every slot and how many tokens of its answer are written. Waits for the device.
    pub(super) fn look(&self) -> Result<Vec<(u32, usize)>> {
        self.state.look()
    }

    /// The answer of `slot`. Waits for the device.
    pub(super) fn answer(&self, slot: usize, written: usize) -> Result<Vec<u32>> {
        match written {
            0 => Ok(Vec::new()),
            _ => self.sampler.answer(slot, written),
        }
    }
}
