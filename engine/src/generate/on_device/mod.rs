//! One token after the other on a GPU: all answers of a batch at once, the loop on the device.
//!
//! A slot is a row of every matrix product and a cache. The device draws tokens, counts them and notices
//! ends by itself; the host looks every few steps, takes finished answers and gives their slots the next
//! prompts. A step reads nothing that the host changes, so that it is recorded once and replayed.
//!
//! While there are prompts in the queue a step has `plan.batch` rows. When there are none and at most half
//! of the slots still write, those are moved together, and steps have half as many rows from then on
//! ([`step_rows`]).

pub(super) mod blocks;
mod frozen;
mod slots;

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use candle_core::DType;
use t3s_core::DecoderSpec;

use self::slots::{Size, Slots};
use super::{Finish, GenerateProgress, Generation, Task, with_copies};
use crate::{
    EngineError,
    kernels::{
        buffers::{CACHE_POSITIONS, FEWEST_STEP_ROWS, PREFILL_ROWS, step_rows},
        cuda::decode::{Start, status},
    },
    sample::AnswerStream,
};

pub(crate) use self::slots::StepStart;

/// How steps are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps {
    /// How the launches of a step are started.
    pub start: StepStart,
    /// Rows of a step at least, of a batch that has as many.
    pub fewest_rows: usize,
}

impl Default for Steps {
    fn default() -> Self {
        Self {
            start: StepStart::Recorded { warm: false },
            fewest_rows: FEWEST_STEP_ROWS,
        }
    }
}

/// Steps between two looks. Fixed: when a slot is refilled must not depend on the time a step takes.
const LOOK_EVERY: usize = 8;
/// Between two calls of the progress function, if looks come as often.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// An answer to be written, or being written.
#[derive(Debug, Clone, Copy)]
struct Answer {
    prompt: usize,
    sample: usize,
    /// Most tokens, at least 1.
    limit: usize,
}

/// What the host knows of a slot.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    answer: Option<Answer>,
    /// Tokens of it at the last look.
    written: usize,
    /// The prompt whose keys and values lie in the slot's cache; outlives the answer.
    holds: Option<usize>,
}

/// See [`super::generate`]; the arguments have been checked, and the decoder's weights are on a GPU.
pub(crate) fn generate(
    task: Task<'_>,
    steps: Steps,
    progress: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Generation>, EngineError> {
    let (decoder, plan) = (task.decoder, task.plan);
    if task.answers() == 0 {
        return Ok(Vec::new());
    }
    let copies = task.copies();
    let max_positions = decoder.spec.max_positions;
    let mut reporter = Reporter::start(task, progress)?;
    let mut queue = VecDeque::new();
    let mut finished = Vec::with_capacity(task.answers() / copies);
    for (prompt, ids) in task.prompts.iter().enumerate() {
        let limit = plan.max_new_tokens.min(max_positions - ids.len());
        for sample in 0..task.different() {
            let answer = Answer {
                prompt,
                sample,
                limit,
            };
            match limit {
                // Nothing may be written.
                0 => finished.push(reporter.finish(answer, Vec::new(), Finish::Length)),
                _ => queue.push_back(answer),
            }
        }
    }
    if !queue.is_empty() {
        let size = Size {
            rows: step_rows(queue.len(), plan.batch, steps.fewest_rows),
            slots: plan.batch.min(queue.len()),
            capacity: task.most_positions().next_multiple_of(CACHE_POSITIONS),
            max_new_tokens: plan.max_new_tokens.min(max_positions),
        };
        let mut run = Run {
            prompts: task.prompts,
            seed: task.seed,
            queue,
            slots: vec![Slot::default(); size.slots],
            device: Slots::new(decoder, size, task.sampler, steps.start)?,
            fewest_rows: steps.fewest_rows,
            finished,
        };
        run.run_to_end(&mut reporter)?;
        finished = run.finished;
    }
    // The work is done: a break now loses nothing.
    let _ = reporter.report();
    Ok(with_copies(finished, copies))
}

/// What `error` is that was met while the caches of `slots` answers of `positions` each were allocated:
/// where there was no room, it says how much they take.
fn cache_error(
    error: candle_core::Error,
    spec: &DecoderSpec,
    dtype: DType,
    (slots, positions): (usize, usize),
) -> EngineError {
    match EngineError::from(error) {
        EngineError::OutOfMemory { .. } => {
            let row = spec.n_kv_heads * spec.head_dim * dtype.size_in_bytes();
            EngineError::CacheTooLarge {
                slots,
                positions,
                bytes: 2 * spec.n_layers * slots * positions * row,
            }
        }
        other => other,
    }
}

/// Counts, and calls the progress function.
struct Reporter<'a> {
    progress: &'a mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
    now: GenerateProgress,
    /// Answers per written one.
    copies: usize,
    last: Instant,
}

impl<'a> Reporter<'a> {
    /// Reports that there is nothing yet.
    fn start(
        task: Task<'_>,
        progress: &'a mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
    ) -> Result<Self, EngineError> {
        let mut reporter = Self {
            progress,
            now: GenerateProgress {
                answers: task.answers(),
                ..GenerateProgress::default()
            },
            copies: task.copies(),
            last: Instant::now(),
        };
        reporter.report()?;
        Ok(reporter)
    }

    fn report(&mut self) -> Result<(), EngineError> {
        self.last = Instant::now();
        match (self.progress)(self.now) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(EngineError::Interrupted),
        }
    }

    /// Reports when it is time.
    fn tick(&mut self) -> Result<(), EngineError> {
        match self.last.elapsed() >= PROGRESS_EVERY {
            true => self.report(),
            false => Ok(()),
        }
    }

    fn finish(&mut self, answer: Answer, ids: Vec<u32>, finish: Finish) -> Generation {
        self.now.answers_done += self.copies;
        if finish == Finish::Length {
            self.now.truncated += self.copies;
        }
        Generation {
            prompt: answer.prompt,
            sample: answer.sample,
            ids,
            finish,
        }
    }
}

struct Run<'a> {
    prompts: &'a [Vec<u32>],
    seed: u64,
    queue: VecDeque<Answer>,
    slots: Vec<Slot>,
    device: Slots,
    fewest_rows: usize,
    finished: Vec<Generation>,
}

impl Run<'_> {
    fn run_to_end(&mut self, reporter: &mut Reporter<'_>) -> Result<(), EngineError> {
        loop {
            self.fill(reporter)?;
            self.compact()?;
            let open = self.slots.iter().filter_map(|slot| {
                let answer = slot.answer?;
                // A token is drawn where the prompt is read.
                Some(answer.limit - slot.written.max(1))
            });
            let Some(most) = open.max() else {
                return Ok(());
            };
            for _ in 0..most.min(LOOK_EVERY) {
                self.device.step()?;
            }
            self.look(reporter)?;
            reporter.tick()?;
        }
    }

    /// Moves the answers that are still written together, where steps then have fewer rows. Only when
    /// the queue is empty: free slots would be filled again.
    fn compact(&mut self) -> Result<(), EngineError> {
        if !self.queue.is_empty() {
            return Ok(());
        }
        let open = |slot: &&Slot| slot.answer.is_some();
        let n_open = self.slots.iter().filter(open).count();
        let rows = step_rows(n_open, self.device.rows(), self.fewest_rows);
        if rows == self.device.rows() {
            return Ok(());
        }
        let mut moves = Vec::new();
        let mut free = 0;
        for from in rows..self.slots.len() {
            let slot = self.slots[from];
            let Some(answer) = slot.answer else {
                continue;
            };
            while self.slots[free].answer.is_some() {
                free += 1;
            }
            // One position more than the device can have written by the last look.
            let positions = self.prompts[answer.prompt].len() + slot.written;
            moves.push([from, free, positions].map(|n| n as u32));
            self.slots[free] = slot;
        }
        self.slots.truncate(rows);
        Ok(self.device.shrink(&moves, rows)?)
    }

    /// Gives free slots the next answers, and draws the first token of each.
    fn fill(&mut self, reporter: &mut Reporter<'_>) -> Result<(), EngineError> {
        let mut free: Vec<usize> = (0..self.slots.len())
            .filter(|slot| self.slots[*slot].answer.is_none())
            .collect();
        let n = free.len().min(self.queue.len());
        if n == 0 {
            return Ok(());
        }
        let mut answers: Vec<Answer> = self.queue.drain(..n).collect();
        let mut starts = Vec::with_capacity(n);
        let mut place = |slots: &mut [Slot], slot: usize, answer: Answer| {
            slots[slot] = Slot {
                answer: Some(answer),
                written: 0,
                holds: Some(answer.prompt),
            };
            let Answer { prompt, sample, .. } = answer;
            starts.push(Start {
                slot,
                tokens: self.prompts[prompt].len(),
                limit: answer.limit,
                key: AnswerStream::new(self.seed, prompt, sample).key(),
            });
        };
        // First those whose prompt lies in a free slot: no other may be put there.
        answers.retain(|answer| {
            let held = |slot: &usize| self.slots[*slot].holds == Some(answer.prompt);
            match free.iter().position(held) {
                Some(at) => {
                    place(&mut self.slots, free.remove(at), *answer);
                    false
                }
                None => true,
            }
        });
        // The others read theirs, or copy it from a slot that keeps it.
        let (mut reads, mut copies) = (Vec::new(), Vec::<[u32; 3]>::new());
        for (answer, slot) in answers.into_iter().zip(free) {
            let prompt = answer.prompt;
            // All copies are made at once: none may start from another's result.
            let keeps = |(at, slot): (usize, &Slot)| {
                let copied = copies.iter().any(|[_, to, _]| *to as usize == at);
                (slot.answer.is_some() && slot.holds == Some(prompt) && !copied).then_some(at)
            };
            match self.slots.iter().enumerate().find_map(keeps) {
                Some(from) => {
                    copies.push([from, slot, self.prompts[prompt].len()].map(|n| n as u32));
                }
                None => reads.push(slot),
            }
            place(&mut self.slots, slot, answer);
        }
        self.read(&reads, reporter)?;
        self.device.copy(&copies)?;
        Ok(self.device.start(&starts)?)
    }

    /// Reads the prompts of these slots, as many at a time as fit into a pass.
    fn read(&self, slots: &[usize], reporter: &mut Reporter<'_>) -> Result<(), EngineError> {
        let mut pass: Vec<(usize, &[u32])> = Vec::new();
        let mut rows = 0;
        for slot in slots {
            let prompt = self.slots[*slot].holds.expect("it was just given one");
            let ids = &self.prompts[prompt];
            if !pass.is_empty() && rows + ids.len() > PREFILL_ROWS {
                self.device.read(&pass)?;
                reporter.tick()?;
                pass.clear();
                rows = 0;
            }
            pass.push((*slot, ids.as_slice()));
            rows += ids.len();
        }
        match pass.is_empty() {
            true => Ok(()),
            false => Ok(self.device.read(&pass)?),
        }
    }

    /// Waits for the device; takes the answers that have ended.
    fn look(&mut self, reporter: &mut Reporter<'_>) -> Result<(), EngineError> {
        let states = self.device.look()?;
        for (at, (status, written)) in states.into_iter().take(self.slots.len()).enumerate() {
            let slot = &mut self.slots[at];
            let Some(answer) = slot.answer else {
                continue;
            };
            reporter.now.tokens += written - slot.written;
            slot.written = written;
            let finish = match status {
                status::EOS => {
                    reporter.now.tokens += 1;
                    Finish::Eos
                }
                status::LENGTH => Finish::Length,
                status::BAD => {
                    return Err(EngineError::NonFiniteLogits {
                        prompt: answer.prompt,
                        token: written,
                    });
                }
                _ => continue,
            };
            slot.answer = None;
            let ids = self.device.answer(at, written)?;
            self.finished.push(reporter.finish(answer, ids, finish));
        }
        Ok(())
    }
}
