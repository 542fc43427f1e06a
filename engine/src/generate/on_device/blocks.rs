//! Blocks of masked positions on a GPU: `plan.batch` canvases side by side, each at its own block and pass.
//!
//! A round reads the current block of every canvas, or the canvases whole where everything sees everything,
//! in passes of bounded rows, and draws a token for every masked position. The host waits for it once: it
//! writes the surest, and gives the place of an answer that has ended to the next prompt.

mod head;
mod reader;

use std::{
    collections::VecDeque,
    ops::{ControlFlow, Range},
};

use t3s_core::adapter::{BlockDecoding, DecodeAttention};

use self::{
    head::Head,
    reader::{Cached, Piece, Reader, product_rows},
};
use super::{Answer, GenerateProgress, Generation, Reporter};
use crate::{
    Decoder, EngineError,
    generate::{
        Task,
        canvas::{self, Candidate, Canvas},
        with_copies,
    },
    kernels::cuda::sample::Draw,
    sample::AnswerStream,
};

/// See [`crate::generate()`]; its arguments have been checked, `rule` has not, and the decoder's weights
/// are on a GPU.
pub(in crate::generate) fn generate(
    task: Task<'_>,
    rule: &BlockDecoding,
    progress: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Generation>, EngineError> {
    let (decoder, plan) = (task.decoder, task.plan);
    canvas::check(rule, &decoder.spec)?;
    if task.answers() == 0 {
        return Ok(Vec::new());
    }
    let copies = task.copies();
    let mut reporter = Reporter::start(task, progress)?;
    let max_positions = decoder.spec.max_positions;
    let mut queue = VecDeque::with_capacity(task.answers() / copies);
    for (prompt, ids) in task.prompts.iter().enumerate() {
        queue.extend((0..task.different()).map(|sample| Answer {
            prompt,
            sample,
            limit: plan.max_new_tokens.min(max_positions - ids.len()),
        }));
    }
    let (block, slots) = (rule.block as usize, plan.batch.min(queue.len()));
    // A product's, however few answers are being written.
    let rows = product_rows(block).min(plan.batch * block);
    let reader = match rule.attention {
        DecodeAttention::BlockCausal => {
            let capacity = task
                .most_positions()
                .next_multiple_of(block)
                .min(max_positions);
            Reader::Cached(Cached::new(decoder, rule.block, slots, capacity, rows)?)
        }
        DecodeAttention::Bidirectional => Reader::Whole(decoder),
    };
    let mut run = Run {
        decoder,
        rule,
        prompts: task.prompts,
        seed: task.seed,
        head: Head::new(decoder, rule, task.sampler, slots * block, rows)?,
        reader,
        finished: Vec::with_capacity(queue.len()),
        queue,
        slots: (0..slots).map(|_| None).collect(),
    };
    while run.fill(&mut reporter)? {
        run.round(&mut reporter)?;
        reporter.tick()?;
    }
    // The work is done: a break now loses nothing.
    let _ = reporter.report();
    Ok(with_copies(run.finished, copies))
}

/// An answer being written.
struct Slot<'a> {
    answer: Answer,
    /// Of its random stream.
    key: u64,
    canvas: Canvas<'a>,
    /// The block before the current one, while the cache holds keys and values of when parts of it were
    /// masked.
    stale: Option<Range<usize>>,
}

impl Slot<'_> {
    /// What the next round reads of it.
    fn piece(&self, slot: usize, attention: DecodeAttention) -> Piece<'_> {
        let ids = self.canvas.ids();
        let rows = match (attention, &self.stale) {
            (DecodeAttention::Bidirectional, _) => 0..ids.len(),
            (DecodeAttention::BlockCausal, Some(stale)) => stale.clone(),
            (DecodeAttention::BlockCausal, None) => self.canvas.rows(),
        };
        Piece {
            slot,
            first: rows.start,
            ids: ids[rows].to_vec(),
            asks: self.asks(),
        }
    }

    /// The positions that the next round draws a token for.
    fn asks(&self) -> &[usize] {
        match self.stale {
            Some(_) => &[],
            None => self.canvas.masked(),
        }
    }
}

struct Run<'a> {
    decoder: &'a Decoder,
    rule: &'a BlockDecoding,
    prompts: &'a [Vec<u32>],
    seed: u64,
    queue: VecDeque<Answer>,
    slots: Vec<Option<Slot<'a>>>,
    reader: Reader<'a>,
    head: Head,
    finished: Vec<Generation>,
}

impl Run<'_> {
    /// Gives free slots the next answers; whether there is anything to do.
    fn fill(&mut self, reporter: &mut Reporter<'_>) -> Result<bool, EngineError> {
        let mut unread: Vec<Piece<'_>> = Vec::new();
        for at in 0..self.slots.len() {
            while self.slots[at].is_none()
                && let Some(answer) = self.queue.pop_front()
            {
                let ids = &self.prompts[answer.prompt];
                let canvas = Canvas::new(self.rule, &self.decoder.spec, ids, answer.limit);
                let before = canvas.rows().start;
                self.slots[at] = Some(Slot {
                    key: AnswerStream::new(self.seed, answer.prompt, answer.sample).key(),
                    answer,
                    canvas,
                    stale: None,
                });
                self.settle(at, reporter);
                if self.slots[at].is_some() {
                    unread.push(Piece {
                        slot: at,
                        first: 0,
                        ids: ids[..before].to_vec(),
                        asks: &[],
                    });
                }
            }
        }
        self.reader.read_prompts(&unread, || reporter.tick())?;
        Ok(self.slots.iter().any(Option::is_some))
    }

    /// One pass of the rule over all answers being written.
    fn round(&mut self, reporter: &mut Reporter<'_>) -> Result<(), EngineError> {
        let open = || {
            let slots = self.slots.iter().enumerate();
            slots.filter_map(|(at, slot)| Some((at, slot.as_ref()?)))
        };
        let draws: Vec<Draw> = open()
            .flat_map(|(_, slot)| {
                slot.asks().iter().map(|position| Draw {
                    key: slot.key,
                    counter: slot.canvas.draw(*position) as u64,
                })
            })
            .collect();
        let attention = self.rule.attention;
        let mut pieces: Vec<Piece<'_>> =
            open().map(|(at, slot)| slot.piece(at, attention)).collect();
        self.reader.read(&pieces, self.head.hidden())?;
        if let Some(without) = self.head.hidden_without() {
            for (piece, (_, slot)) in pieces.iter_mut().zip(open()) {
                piece.ids[..slot.canvas.start()].fill(self.rule.mask_id);
            }
            self.reader.read(&pieces, without)?;
        }
        let mut found = self.head.draw(&draws)?.into_iter();
        for at in 0..self.slots.len() {
            let Some(slot) = &mut self.slots[at] else {
                continue;
            };
            if slot.stale.take().is_some() {
                continue;
            }
            let mut candidates = Vec::with_capacity(slot.canvas.masked().len());
            for position in slot.canvas.masked() {
                let (id, probability) = found.next().expect("one draw per masked position").ok_or(
                    EngineError::NonFiniteLogits {
                        prompt: slot.answer.prompt,
                        token: position - slot.canvas.start(),
                    },
                )?;
                candidates.push(Candidate {
                    position: *position,
                    id,
                    probability,
                });
            }
            slot.canvas.fill(candidates);
            self.settle(at, reporter);
        }
        Ok(())
    }

    /// Goes on to the next block where the slot's is full, or takes the answer that ends there.
    fn settle(&mut self, at: usize, reporter: &mut Reporter<'_>) {
        let Some(slot) = &mut self.slots[at] else {
            return;
        };
        if !slot.canvas.masked().is_empty() {
            return;
        }
        let rows = slot.canvas.rows();
        match slot.canvas.advance() {
            Some((ids, finish)) => {
                reporter.now.tokens += ids.len();
                self.finished
                    .push(reporter.finish(slot.answer, ids, finish));
                self.slots[at] = None;
            }
            None if self.rule.attention == DecodeAttention::BlockCausal => {
                slot.stale = Some(rows);
            }
            None => {}
        }
    }
}
