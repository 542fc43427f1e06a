//! The laws: what every signal, strategy and model adapter must do, as property tests that a component's own
//! tests call in one line.
//! `laws::assert_strategy(|| Box::new(MyRule::default()))`.
//!
//! Inputs are drawn from a fixed seed, so a verdict is the same on every machine. A broken law is
//! reported with the smallest input found that breaks it.

mod adapter;
mod case;
mod entry;
mod prepared;
mod signal;
mod strategy;

#[cfg(test)]
mod adapter_tests;
#[cfg(test)]
mod tests;

use std::{
    any::Any,
    cell::RefCell,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use serde::{Deserialize, Serialize};

pub use adapter::generic_config;
pub use entry::{registration, registry, required};

use crate::{
    ConfidenceSignal, HfConfig, ModelAdapter, SelectionStrategy,
    adapter::FamilyOptions,
    registry::{Factory, Registration},
};
use case::{Case, Column};

/// Inputs drawn per law.
const CASES: u32 = 192;

thread_local! {
    static ASKED: RefCell<Option<Asked>> = const { RefCell::new(None) };
}

/// A law and the input it is being tried on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    law: String,
    /// Absent for model adapters, whose inputs are small as they are.
    case: Option<Case>,
}

impl Asked {
    /// Name of the law.
    pub fn law(&self) -> &str {
        &self.law
    }

    /// Whether there may be a smaller input.
    pub fn shrinks(&self) -> bool {
        self.case.is_some()
    }
}

/// What this thread asks a component at this moment; `None` between two inputs.
pub fn asked() -> Option<Asked> {
    ASKED.with_borrow(Clone::clone)
}

/// Which inputs [`ask_again`] tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// The one that was asked.
    Same,
    /// Every one that is a little smaller.
    Smaller,
}

/// Asks the component `entry`, made with `options`, again, and takes any answer: for finding the
/// smallest input at which a component ends its process, by a process that outlives it. [`asked`]
/// says which input is being tried.
pub fn ask_again(entry: &Registration, options: &toml::Table, asked: &Asked, again: Again) {
    let cases = match (&asked.case, again) {
        (None, _) => return,
        (Some(case), Again::Same) => vec![case.clone()],
        (Some(case), Again::Smaller) => case.smaller(),
    };
    match entry.factory {
        Factory::Strategy(make) => {
            let make = || entry::made(make(options));
            strategy::ask(&make, &asked.law, &cases);
        }
        Factory::Signal(make) => {
            let make = || entry::made(make(options));
            signal::ask(&make, &asked.law, &cases);
        }
        Factory::Adapter(_) => {}
    }
}

/// A law that does not hold, and the smallest input found that shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Name of the law, e.g. `permutation`.
    pub law: &'static str,
    /// The input after shrinking, one token per line; empty where the law needs none.
    pub input: String,
    /// What was expected and what was found.
    pub message: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "law {:?} is broken: {}", self.law, self.message)?;
        if self.input.is_empty() {
            Ok(())
        } else {
            write!(f, "\nsmallest input found:\n{}", self.input)
        }
    }
}

impl std::error::Error for Broken {}

/// Holds the strategies that `make` makes to the laws of strategies.
///
/// * `answers`: no error and no panic on good input;
/// * `needs`: needs, when and declaration never change;
/// * `written`: every weight is written, whatever was in the buffer;
/// * `range`: weights are finite and in `[0, 1]`;
/// * `mask`: zero outside the mask;
/// * `deterministic`: seed and input decide;
/// * `ineligible`: columns are not read outside the mask;
/// * `permutation`: the order of examples does not matter;
/// * `padding`: tokens outside the mask and empty examples change nothing;
/// * `splitting`: under `Scope::PerExample`, other examples change nothing;
/// * `budget`: a declared share is kept, or removed, to the token;
/// * `monotone`: declared directions hold;
/// * `missing`: a needed column that is not there is an error;
/// * `nan`: so is a NaN in a needed column inside the mask.
///
/// # Errors
/// The first law that is broken, in this order.
pub fn strategy(make: impl Fn() -> Box<dyn SelectionStrategy>) -> Result<(), Broken> {
    first(strategy::broken(&make, true))
}

/// Holds the signals that `make` makes to the laws of signals: `answers`, `needs`, `written` (and
/// finite, inside the mask), `deterministic`, `ineligible`, `permutation`, `padding`
/// and `missing`, which say the same as for strategies.
///
/// # Errors
/// The first law that is broken, in this order.
pub fn signal(make: impl Fn() -> Box<dyn ConfidenceSignal>) -> Result<(), Broken> {
    first(signal::broken(&make, true))
}

/// Holds the model adapters that `make` makes to the laws of adapters, on `config`, a `config.json`
/// of their family, and with `options`.
///
/// * `claims`: the config is claimed, always; one that says nothing is not;
/// * `decoder`: the config has one decoder, and [`DecoderSpec::check`](crate::DecoderSpec::check)
///   accepts it;
/// * `options`: the config decides the same options, always;
/// * `keys`: with a key left out, or with another value, there is a legal decoder or an error that
///   names a key: that key, where the value is of a wrong type;
/// * `unknown-option`: an option that does not exist is refused by name;
/// * `decode`: the options make one decode rule, and a legal one;
/// * `objective`: the options make one objective;
/// * `rows`: what it makes of examples is legal: ids of the vocabulary, targets among the response
///   tokens of the row's own example, finite weights, and prompts as they are;
/// * `draws`: seed and draw decide.
///
/// # Errors
/// The first law that is broken, in this order.
pub fn adapter(
    make: impl Fn() -> Box<dyn ModelAdapter>,
    config: &HfConfig,
    options: &FamilyOptions,
) -> Result<(), Broken> {
    let subject = adapter::Subject {
        make: &make,
        config,
        options,
    };
    first(adapter::broken(&subject, true))
}

/// [`adapter`] with default options, for tests.
///
/// # Panics
/// When a law is broken, with the law and the input.
pub fn assert_adapter(make: impl Fn() -> Box<dyn ModelAdapter>, config: &HfConfig) {
    if let Err(broken) = adapter(make, config, &FamilyOptions::default()) {
        panic!("{broken}");
    }
}

/// [`strategy`] for tests.
///
/// # Panics
/// When a law is broken, with the law and the smallest input.
pub fn assert_strategy(make: impl Fn() -> Box<dyn SelectionStrategy>) {
    if let Err(broken) = strategy(make) {
        panic!("{broken}");
    }
}

/// [`signal`] for tests.
///
/// # Panics
/// When a law is broken, with the law and the smallest input.
pub fn assert_signal(make: impl Fn() -> Box<dyn ConfidenceSignal>) {
    if let Err(broken) = signal(make) {
        panic!("{broken}");
    }
}

fn first(broken: Vec<Broken>) -> Result<(), Broken> {
    match broken.into_iter().next() {
        Some(broken) => Err(broken),
        None => Ok(()),
    }
}

/// One law over a subject: `Err` says what was expected and found.
struct Law<S> {
    name: &'static str,
    check: fn(&S, &Case) -> Result<(), String>,
}

impl<S> Law<S> {
    /// Tries the law on `case`, which [`asked`] tells meanwhile.
    fn ask(&self, subject: &S, case: &Case) -> Result<(), String> {
        ASKED.set(Some(Asked {
            law: self.name.to_owned(),
            case: Some(case.clone()),
        }));
        let answer = catch_unwind(AssertUnwindSafe(|| (self.check)(subject, case)));
        ASKED.set(None);
        answer.unwrap_or_else(|panic| Err(format!("it panicked: {}", said(panic.as_ref()))))
    }
}

/// The laws of `laws` that `subject` breaks, in their order; only the first if `stop`.
fn broken<S>(subject: &S, columns: &[Column], laws: &[Law<S>], stop: bool) -> Vec<Broken> {
    let mut found = Vec::new();
    for law in laws {
        let held = hold(subject, columns, law);
        if let Err(broken) = held {
            found.push(broken);
            // What the other laws say of a component that refuses good input means nothing.
            if stop || law.name == "answers" {
                break;
            }
        }
    }
    found
}

fn hold<S>(subject: &S, columns: &[Column], law: &Law<S>) -> Result<(), Broken> {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 4096,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let check = |case: &Case| law.ask(subject, case);
    let outcome = TestRunner::new_with_rng(config, rng).run(&case::cases(columns), |case| {
        check(&case).map_err(TestCaseError::fail)
    });
    outcome.map_err(|error| {
        let (message, input) = match error {
            TestError::Fail(reason, case) => {
                let (case, message) = smallest(case, reason.message().to_owned(), &check);
                (message, case.show(columns))
            }
            TestError::Abort(reason) => (reason.message().to_owned(), String::new()),
        };
        Broken {
            law: law.name,
            input,
            message,
        }
    })
}

/// Makes `case` smaller for as long as it fails. proptest takes one token away at a time, and so
/// gets stuck where only every second length fails.
fn smallest(
    mut case: Case,
    mut message: String,
    check: &dyn Fn(&Case) -> Result<(), String>,
) -> (Case, String) {
    let mut tries = 2000;
    'smaller: loop {
        for candidate in case.smaller() {
            if tries == 0 {
                return (case, message);
            }
            tries -= 1;
            if let Err(failure) = check(&candidate) {
                (case, message) = (candidate, failure);
                continue 'smaller;
            }
        }
        return (case, message);
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(no message)")
}
