//! One token after the other, with a key-value cache.
//!
//! Each thread works alone: it has its share of the batch, reads prompts from the common queue when
//! it has room, and replaces finished answers at once. Nothing is synchronised inside a token, which
//! is what makes small models fast: a fork and join per operation would cost more than the work.

use std::{
    collections::VecDeque,
    mem,
    ops::{ControlFlow, Range},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use super::{
    Finish, GenerateProgress, Generation, Task,
    frozen::{Buffers, FrozenDecoder, Row},
    with_copies,
};
use crate::{
    EngineError,
    kv_cache::KvCache,
    sample::{AnswerStream, SampleScratch, Sampler},
};

/// Most rows of prompts per pass: their activations stay in the second-level cache.
const PREFILL_ROWS: usize = 96;
/// Between two calls of the progress function.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Some answers to one prompt.
#[derive(Debug, Clone)]
struct Job {
    prompt: usize,
    samples: Range<usize>,
}

/// What all threads read.
struct Shared<'a> {
    decoder: FrozenDecoder<'a>,
    prompts: &'a [Vec<u32>],
    jobs: Vec<Job>,
    next_job: AtomicUsize,
    sampler: Sampler,
    seed: u64,
    eos_ids: &'a [u32],
    max_new_tokens: usize,
    max_positions: usize,
    stop: AtomicBool,
    answers_done: AtomicUsize,
    truncated: AtomicUsize,
    tokens: AtomicUsize,
}

/// See [`super::generate`]; the arguments have been checked.
pub(super) fn generate(
    task: Task<'_>,
    progress: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Generation>, EngineError> {
    let (decoder, plan) = (task.decoder, task.plan);
    let (answers, copies) = (task.answers(), task.copies());
    if answers == 0 {
        return Ok(Vec::new());
    }
    let max_threads = rayon::current_num_threads().min(plan.batch);
    let jobs = jobs(task.prompts.len(), task.different(), max_threads);
    let max_positions = decoder.spec.max_positions;
    let positions = task.most_positions();
    let n_threads = max_threads.min(jobs.len());
    let shared = Shared {
        decoder: FrozenDecoder::new(decoder, positions)?,
        prompts: task.prompts,
        jobs,
        next_job: AtomicUsize::new(0),
        sampler: task.sampler,
        seed: task.seed,
        eos_ids: &decoder.spec.eos_ids,
        max_new_tokens: plan.max_new_tokens,
        max_positions,
        stop: AtomicBool::new(false),
        answers_done: AtomicUsize::new(0),
        truncated: AtomicUsize::new(0),
        tokens: AtomicUsize::new(0),
    };
    let mut report = || {
        let go_on = progress(GenerateProgress {
            answers_done: shared.answers_done.load(Ordering::Relaxed) * copies,
            answers,
            truncated: shared.truncated.load(Ordering::Relaxed) * copies,
            tokens: shared.tokens.load(Ordering::Relaxed),
        });
        if go_on.is_break() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        go_on.is_break()
    };
    if report() {
        return Err(EngineError::Interrupted);
    }
    let mut interrupted = false;
    let results: Vec<Result<Vec<Generation>, EngineError>> = thread::scope(|scope| {
        let (alive, all_ended) = mpsc::channel::<()>();
        let threads: Vec<_> = (0..n_threads)
            .map(|thread| {
                let (shared, alive) = (&shared, alive.clone());
                let slots = plan.batch / n_threads + usize::from(thread < plan.batch % n_threads);
                scope.spawn(move || {
                    let _alive = alive;
                    Worker::new(shared, slots).run()
                })
            })
            .collect();
        drop(alive);
        while all_ended.recv_timeout(PROGRESS_EVERY) == Err(RecvTimeoutError::Timeout) {
            interrupted |= report();
        }
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    let mut generations = Vec::with_capacity(answers);
    for result in results {
        generations.extend(result?);
    }
    if interrupted {
        return Err(EngineError::Interrupted);
    }
    let generations = with_copies(generations, copies);
    // The work is done: a break now loses nothing.
    report();
    Ok(generations)
}

/// Splits the answers into jobs: a prompt's answers stay together (it is read once per job) unless
/// threads would stay idle.
fn jobs(n_prompts: usize, samples: usize, n_threads: usize) -> Vec<Job> {
    let wanted = 4 * n_threads;
    let pieces = wanted.div_ceil(n_prompts.max(1)).clamp(1, samples.max(1));
    let size = samples.div_ceil(pieces).max(1);
    (0..n_prompts)
        .flat_map(|prompt| {
            (0..samples).step_by(size).map(move |first| Job {
                prompt,
                samples: first..samples.min(first + size),
            })
        })
        .collect()
}

/// An answer being written.
struct Answer {
    prompt: usize,
    sample: usize,
    stream: AnswerStream,
    ids: Vec<u32>,
}

/// One thread's share of the batch.
struct Worker<'a> {
    shared: &'a Shared<'a>,
    slots: usize,
    /// Being written; `caches[i]` is `answers[i]`'s.
    answers: Vec<Answer>,
    caches: Vec<KvCache>,
    /// Their prompts are read; they wait for a slot.
    waiting: VecDeque<(Answer, KvCache)>,
    finished: Vec<Generation>,
    buffers: Buffers,
    scratch: SampleScratch,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared<'a>, slots: usize) -> Self {
        Self {
            shared,
            slots,
            answers: Vec::new(),
            caches: Vec::new(),
            waiting: VecDeque::new(),
            finished: Vec::new(),
            buffers: Buffers::default(),
            scratch: SampleScratch::default(),
        }
    }

    fn run(mut self) -> Result<Vec<Generation>, EngineError> {
        let result = self.run_to_end();
        if result.is_err() {
            self.shared.stop.store(true, Ordering::Relaxed);
        }
        result.map(|()| self.finished)
    }

    fn run_to_end(&mut self) -> Result<(), EngineError> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.fill_slots()?;
            if self.answers.is_empty() {
                break;
            }
            self.write_one_token_each()?;
        }
        Ok(())
    }

    /// Reads prompts until every slot has an answer, as far as there are any.
    fn fill_slots(&mut self) -> Result<(), EngineError> {
        loop {
            while self.answers.len() < self.slots
                && let Some((answer, cache)) = self.waiting.pop_front()
            {
                self.answers.push(answer);
                self.caches.push(cache);
            }
            let mut room = self.slots - self.answers.len();
            let mut jobs = Vec::new();
            while room > 0 {
                let next = self.shared.next_job.fetch_add(1, Ordering::Relaxed);
                let Some(job) = self.shared.jobs.get(next) else {
                    break;
                };
                room = room.saturating_sub(job.samples.len());
                jobs.push(job);
            }
            if jobs.is_empty() {
                return Ok(());
            }
            self.read_prompts(&jobs)?;
        }
    }

    /// Reads the prompts of `jobs` together, then draws the first token of each of their answers.
    fn read_prompts(&mut self, jobs: &[&Job]) -> Result<(), EngineError> {
        let shared = self.shared;
        let mut caches = vec![KvCache::new(shared.decoder.shape); jobs.len()];
        let mut rows = Vec::new();
        for (cache, job) in jobs.iter().enumerate() {
            let ids = &shared.prompts[job.prompt];
            rows.extend(ids.iter().enumerate().map(|(position, id)| Row {
                cache,
                position,
                id: *id,
                wants_logits: position + 1 == ids.len(),
            }));
        }
        for rows in rows.chunks(PREFILL_ROWS) {
            if shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            shared.decoder.read(rows, &mut caches, &mut self.buffers);
            let logits = mem::take(&mut self.buffers.logits);
            let asking = rows.iter().filter(|row| row.wants_logits);
            for (row, logits) in asking.zip(logits.chunks_exact(shared.decoder.vocab)) {
                let Job { prompt, samples } = jobs[row.cache].clone();
                for sample in samples {
                    let mut answer = Answer {
                        prompt,
                        sample,
                        stream: AnswerStream::new(shared.seed, prompt, sample),
                        ids: Vec::new(),
                    };
                    match self.extend(&mut answer, logits)? {
                        Some(finish) => self.finish(answer, finish),
                        None => self.waiting.push_back((answer, caches[row.cache].clone())),
                    }
                }
            }
            self.buffers.logits = logits;
        }
        Ok(())
    }

    /// One pass over all answers being written; those that end leave.
    fn write_one_token_each(&mut self) -> Result<(), EngineError> {
        let rows: Vec<Row> = (self.answers.iter().enumerate())
            .map(|(cache, answer)| Row {
                cache,
                position: self.shared.prompts[answer.prompt].len() + answer.ids.len() - 1,
                id: *answer
                    .ids
                    .last()
                    .expect("the prompt's pass drew the first token"),
                wants_logits: true,
            })
            .collect();
        self.shared
            .decoder
            .read(&rows, &mut self.caches, &mut self.buffers);
        let logits = mem::take(&mut self.buffers.logits);
        let answers = mem::take(&mut self.answers);
        let caches = mem::take(&mut self.caches);
        let logits_of = logits.chunks_exact(self.shared.decoder.vocab);
        for ((mut answer, cache), logits) in answers.into_iter().zip(caches).zip(logits_of) {
            match self.extend(&mut answer, logits)? {
                Some(finish) => self.finish(answer, finish),
                None => {
                    self.answers.push(answer);
                    self.caches.push(cache);
                }
            }
        }
        self.buffers.logits = logits;
        Ok(())
    }

    /// Draws the answer's next token; says whether that was the end.
    fn extend(
        &mut self,
        answer: &mut Answer,
        logits: &[f32],
    ) -> Result<Option<Finish>, EngineError> {
        let shared = self.shared;
        let room = shared.max_positions - shared.prompts[answer.prompt].len();
        let limit = shared.max_new_tokens.min(room);
        if answer.ids.len() >= limit {
            return Ok(Some(Finish::Length));
        }
        let token = answer.ids.len();
        let uniform = answer.stream.uniform(token);
        let id = shared
            .sampler
            .pick(logits, uniform, &mut self.scratch)
            .ok_or(EngineError::NonFiniteLogits {
                prompt: answer.prompt,
                token,
            })?;
        shared.tokens.fetch_add(1, Ordering::Relaxed);
        if shared.eos_ids.contains(&id) {
            return Ok(Some(Finish::Eos));
        }
        answer.ids.push(id);
        Ok((answer.ids.len() == limit).then_some(Finish::Length))
    }

    fn finish(&mut self, answer: Answer, finish: Finish) {
        let shared = self.shared;
        shared.answers_done.fetch_add(1, Ordering::Relaxed);
        if finish == Finish::Length {
            shared.truncated.fetch_add(1, Ordering::Relaxed);
        }
        self.finished.push(Generation {
            prompt: answer.prompt,
            sample: answer.sample,
            ids: answer.ids,
            finish,
        });
    }
}
