//! Each law catches a component that breaks it, and only it.

use std::{
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;
use crate::{
    ComponentError, ConfidenceSignal, Declaration, ObservableRef, SelectContext, SelectionStrategy,
    SignalRef, TokenView, When,
    strategy::{Scope, budget},
};

/// Keeps the half of the tokens of each example that has the highest `x`, but for `fault`.
struct Half {
    fault: &'static str,
    asked: AtomicU32,
}

fn half(fault: &'static str) -> Box<dyn SelectionStrategy> {
    Box::new(Half {
        fault,
        asked: AtomicU32::new(0),
    })
}

impl Half {
    fn has(&self, fault: &str) -> bool {
        self.fault == fault
    }
}

impl SelectionStrategy for Half {
    fn needs(&self) -> Vec<SignalRef> {
        if self.has("needs") && self.asked.load(Ordering::Relaxed) > 0 {
            return vec![SignalRef::new("x"), SignalRef::new("y")];
        }
        vec![SignalRef::new("x")]
    }

    fn when(&self) -> When {
        When::Recorded
    }

    fn declare(&self) -> Declaration {
        let scope = match self.fault {
            "permutation" | "padding" => Scope::Global,
            _ => Scope::PerExample,
        };
        let declaration = Declaration::new(scope);
        match self.fault {
            // These keep what they keep; nothing is promised about it.
            "permutation" | "padding" | "range" | "deterministic" | "splitting" | "nan"
            | "ineligible" | "written" | "missing" => declaration,
            "monotone" => declaration.falling("x"),
            "removes" => declaration.removes(0.4),
            _ => declaration.keeps(0.5).rising("x"),
        }
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        _: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let x = match tokens.column("x") {
            Ok(x) => x.to_vec(),
            Err(_) if self.has("missing") => vec![0.0; tokens.n_tokens()],
            Err(error) => return Err(error),
        };
        let bad = (0..x.len()).any(|row| tokens.eligible()[row] && x[row].is_nan());
        if bad && !self.has("nan") {
            return Err(ComponentError::Failed("x is NaN".to_owned()));
        }
        if self.has("ineligible") && x.iter().any(|x| x.abs() == f32::INFINITY) {
            return Err(ComponentError::Failed("x is infinite".to_owned()));
        }
        if self.has("answers") && x.len() > 20 {
            return Err(ComponentError::Failed("too long".to_owned()));
        }
        if self.has("panics") && x.len() > 20 {
            panic!("index out of bounds");
        }
        let eligible = |rows: Range<usize>| rows.filter(|row| tokens.eligible()[*row]).count();
        let outside = x.len() - eligible(0..x.len());
        let busy = tokens
            .examples()
            .filter(|e| eligible(e.1.clone()) > 0)
            .count();
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        if !self.has("written") {
            out.fill(0.0);
        }
        for (index, (_, rows)) in tokens.examples().enumerate() {
            let (first, last) = (rows.start, rows.end);
            let mut rows: Vec<usize> = rows.filter(|row| tokens.eligible()[*row]).collect();
            // Stable, and highest first.
            rows.sort_by(|a, b| (x[*b] + 0.0).total_cmp(&(x[*a] + 0.0)));
            let mut kept = budget(0.5, rows.len());
            match self.fault {
                "budget" => kept = rows.len() / 2,
                "splitting" if busy > 1 => kept = rows.len(),
                "permutation" => kept = if index == 0 { rows.len() } else { 0 },
                "padding" if outside > 8 => kept = 0,
                "deterministic" if asked % 2 == 1 => kept = 0,
                _ => {}
            }
            for row in &rows[..kept] {
                out[*row] = match self.fault {
                    "range" => 1.5,
                    _ => 1.0,
                };
            }
            if self.has("mask") && first < last && !tokens.eligible()[first] {
                out[first] = 1.0;
            }
        }
        Ok(())
    }
}

fn names(broken: &[Broken]) -> Vec<&'static str> {
    broken.iter().map(|broken| broken.law).collect()
}

#[test]
fn a_lawful_strategy_passes() {
    assert_strategy(|| half(""));
}

#[test]
fn each_law_of_strategies_catches_its_fault_and_no_other() {
    for (fault, laws) in [
        ("needs", &["needs"][..]),
        ("answers", &["answers"]),
        ("panics", &["answers"]),
        ("written", &["written"]),
        ("range", &["range"]),
        ("mask", &["mask"]),
        ("deterministic", &["deterministic"]),
        ("ineligible", &["ineligible"]),
        ("permutation", &["permutation"]),
        ("padding", &["padding"]),
        ("splitting", &["splitting"]),
        ("budget", &["budget"]),
        ("removes", &["budget"]),
        ("monotone", &["monotone"]),
        ("missing", &["missing"]),
        ("nan", &["nan"]),
    ] {
        let broken = strategy::broken(&|| half(fault), false);
        assert_eq!(names(&broken), laws, "{fault}: {broken:#?}");
    }
}

#[test]
fn the_smallest_input_is_reported_and_always_the_same() {
    let broken = || strategy(|| half("budget")).unwrap_err();
    let found = broken();
    assert_eq!(found, broken());
    assert_eq!(
        found.to_string(),
        "law \"budget\" is broken: 0 of 1 tokens of example 3 were kept; a share of 0.5 is 1\n\
         smallest input found:\n\
         seed 0, pick 0\n\
         example 3, position 0; x = 0.0"
    );
}

#[test]
#[should_panic(expected = "law \"range\" is broken")]
fn assertions_panic_with_the_law() {
    assert_strategy(|| half("range"));
}

/// Keeps tokens that the current model finds unlikely.
struct Online;

impl SelectionStrategy for Online {
    fn needs(&self) -> Vec<SignalRef> {
        Vec::new()
    }

    fn when(&self) -> When {
        When::Online
    }

    fn declare(&self) -> Declaration {
        Declaration::new(Scope::PerExample)
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let logp = cx
            .current_logp
            .ok_or_else(|| ComponentError::Failed("only online".to_owned()))?;
        for (row, out) in out.iter_mut().enumerate() {
            *out = 0.0;
            if tokens.eligible()[row] {
                *out = 1.0 - logp[row].exp();
                if out.is_nan() {
                    return Err(ComponentError::Failed("logp is NaN".to_owned()));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn online_strategies_get_log_probabilities_of_the_step() {
    assert_strategy(|| Box::new(Online));
}

/// `logp` at every checkpoint, summed; but for a fault.
struct Sum {
    fault: &'static str,
    asked: AtomicU32,
}

fn sum(fault: &'static str) -> Box<dyn ConfidenceSignal> {
    Box::new(Sum {
        fault,
        asked: AtomicU32::new(0),
    })
}

impl ConfidenceSignal for Sum {
    fn needs(&self) -> Vec<ObservableRef> {
        let asked = self.asked.load(Ordering::Relaxed);
        let need = if self.fault == "needs" && asked > 0 {
            "entropy@base"
        } else {
            "logp@step:*"
        };
        vec![
            need.parse().expect("a column"),
            "sketch@final".parse().expect("a column"),
        ]
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let sketch = tokens.sketch("sketch@final")?;
        let mut columns = Vec::new();
        for name in tokens
            .column_names()
            .filter(|n| n.starts_with("logp@step:"))
        {
            columns.push(tokens.column(name)?);
        }
        if columns.is_empty() && self.fault != "missing" {
            return Err(ComponentError::Failed("no checkpoint".to_owned()));
        }
        let all = tokens.n_tokens();
        let of = |row: usize| -> f32 {
            let sum: f32 = columns.iter().map(|column| column[row]).sum();
            sum + sketch.values[row * sketch.width]
        };
        let outside = (0..all).filter(|row| !tokens.eligible()[*row]);
        let first = tokens.example_ids().first().copied().unwrap_or(0) as f32;
        let shift = match self.fault {
            "answers" if all > 5 => return Err(ComponentError::Failed("too long".to_owned())),
            "deterministic" => asked as f32,
            "ineligible" => f32::from(u8::from(outside.clone().any(|row| of(row).is_nan()))),
            "permutation" => first,
            "padding" => outside.count() as f32,
            _ => 0.0,
        };
        for (row, out) in out.iter_mut().enumerate() {
            if self.fault != "written" || tokens.positions()[row] != 2 {
                *out = of(row) + shift;
            }
        }
        Ok(())
    }
}

#[test]
fn a_lawful_signal_passes() {
    assert_signal(|| sum(""));
}

#[test]
fn each_law_of_signals_catches_its_fault_and_no_other() {
    for law in [
        "needs",
        "answers",
        "written",
        "deterministic",
        "ineligible",
        "permutation",
        "padding",
        "missing",
    ] {
        let broken = signal::broken(&|| sum(law), false);
        assert_eq!(names(&broken), [law], "{broken:#?}");
    }
}
