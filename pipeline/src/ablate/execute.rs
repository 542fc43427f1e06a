//! Running the cells: several at once, a failed one stopping no other.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{Ablation, PlannedCell, PlannedRun};
use crate::{
    Event, Interrupt, Observer, Summary, error::PipelineError, run::prepare, run::run as run_plan,
};

/// What a run came to, if it began.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It is done.
    Done(Box<Summary>),
    /// It stopped with this message.
    Failed(String),
    /// It was interrupted, or has not begun.
    Unfinished,
}

/// Who is told. Called from the threads that run the cells.
pub trait AblationObserver: Sync {
    /// The run `n` of `total`, from 1, begins.
    fn started(&self, cell: &PlannedCell, run: &PlannedRun, n: usize, total: usize);
    /// Something happened in it.
    fn event(&self, run: &PlannedRun, event: &Event);
    /// It came to this.
    fn finished(&self, cell: &PlannedCell, run: &PlannedRun, outcome: &Outcome);
}

/// Runs what is not done yet, `jobs` runs at once that split the threads of the current pool.
///
/// With several jobs the stages before the selection go first, one cell after the other and each on
/// all threads: cells share them, so that most would only wait for the first.
///
/// # Errors
/// Never for what a run does: that is its outcome, by [`PlannedRun::id`]. When no threads can be
/// made.
pub fn execute(
    ablation: &Ablation,
    jobs: usize,
    observer: &dyn AblationObserver,
    interrupt: &Interrupt,
) -> Result<BTreeMap<String, Outcome>, PipelineError> {
    let runs = ablation.runs();
    let jobs = jobs.clamp(1, runs.len().max(1));
    let threads = (rayon::current_num_threads() / jobs).max(1);
    let mut outcomes = BTreeMap::new();
    if jobs > 1 {
        outcomes = prepare_all(ablation, observer, interrupt);
    }
    let outcomes = Mutex::new(outcomes);
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((cell, run)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let number = runs.iter().position(|(_, other)| other.id == run.id);
            let known = lock(&outcomes).get(&run.id).cloned();
            let outcome = match known {
                Some(outcome) => outcome,
                None if interrupt.is_raised() => Outcome::Unfinished,
                None => {
                    observer.started(cell, run, number.map_or(0, |n| n + 1), runs.len());
                    guarded(|| {
                        let watch = Watch { observer, run };
                        run_plan(&run.plan, &cell.registry, &watch, interrupt)
                    })
                }
            };
            observer.finished(cell, run, &outcome);
            lock(&outcomes).insert(run.id.clone(), outcome);
        }
    };
    if jobs == 1 {
        work();
    } else {
        let pools = (0..jobs)
            .map(|_| rayon::ThreadPoolBuilder::new().num_threads(threads).build())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| {
                PipelineError::plan("jobs", format!("{jobs} times {threads} threads: {e}"))
            })?;
        thread::scope(|scope| {
            for pool in &pools {
                scope.spawn(|| pool.install(work));
            }
        });
    }
    Ok(outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner))
}

/// Does the shared stages; gives back the outcome of runs that failed there already.
fn prepare_all(
    ablation: &Ablation,
    observer: &dyn AblationObserver,
    interrupt: &Interrupt,
) -> BTreeMap<String, Outcome> {
    let mut failed = BTreeMap::new();
    for cell in &ablation.cells {
        // Under other seeds these stages are the same, unless the probe has a seed too.
        let ahead = match ablation.reseed_probe {
            true => cell.runs.len(),
            false => 1,
        };
        for (n, run) in cell.runs.iter().take(ahead).enumerate() {
            if interrupt.is_raised() {
                return failed;
            }
            let outcome = guarded_result(|| {
                let watch = Watch { observer, run };
                prepare(&run.plan, &cell.registry, &watch, interrupt)
            });
            if let Err(message) = outcome {
                let fail = |run: &PlannedRun| (run.id.clone(), Outcome::Failed(message.clone()));
                match ablation.reseed_probe {
                    true => failed.extend([fail(&cell.runs[n])]),
                    false => failed.extend(cell.runs.iter().map(fail)),
                }
            }
        }
    }
    failed
}

/// A run whose events carry its name.
struct Watch<'a> {
    observer: &'a dyn AblationObserver,
    run: &'a PlannedRun,
}

impl Observer for Watch<'_> {
    fn event(&self, event: &Event) {
        self.observer.event(self.run, event);
    }
}

fn guarded(run: impl FnOnce() -> Result<Summary, PipelineError>) -> Outcome {
    match guarded_result(run) {
        Ok(Some(summary)) => Outcome::Done(Box::new(summary)),
        Ok(None) => Outcome::Unfinished,
        Err(message) => Outcome::Failed(message),
    }
}

/// `None` when it was interrupted; an error or a panic as its message.
fn guarded_result<T>(body: impl FnOnce() -> Result<T, PipelineError>) -> Result<Option<T>, String> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(done)) => Ok(Some(done)),
        Ok(Err(PipelineError::Interrupted { .. })) => Ok(None),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(format!("panicked: {}", panic_message(&*panic))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

/// A job that panicked leaves whole outcomes behind.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
