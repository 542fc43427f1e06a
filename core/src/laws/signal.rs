//! The laws of signals.

use super::{
    Broken, Law,
    case::{Case, Column, refused, same},
};
use crate::{ComponentError, ConfidenceSignal};

/// What is held to the laws.
struct Subject<'a> {
    make: &'a dyn Fn() -> Box<dyn ConfidenceSignal>,
    /// With the need that each stands for.
    columns: Vec<Column>,
    needs: Vec<usize>,
}

/// The laws that the signals of `make` break; only the first if `stop`.
pub(super) fn broken(make: &dyn Fn() -> Box<dyn ConfidenceSignal>, stop: bool) -> Vec<Broken> {
    let subject = Subject::new(make);
    super::broken(&subject, &subject.columns, &laws(), stop)
}

/// Tries the law `name` on `cases`, and takes any answer.
pub(super) fn ask(make: &dyn Fn() -> Box<dyn ConfidenceSignal>, name: &str, cases: &[Case]) {
    let subject = Subject::new(make);
    for law in laws().iter().filter(|law| law.name == name) {
        for case in cases {
            let _ = law.ask(&subject, case);
        }
    }
}

fn laws<'a>() -> Vec<Law<Subject<'a>>> {
    vec![
        Law {
            name: "answers",
            check: |subject, case| subject.scores(case).map(drop),
        },
        Law {
            name: "needs",
            check: needs,
        },
        Law {
            name: "written",
            check: written,
        },
        Law {
            name: "deterministic",
            check: deterministic,
        },
        Law {
            name: "ineligible",
            check: |subject, case| {
                subject.same(case, &case.garbled(), "with other columns outside the mask")
            },
        },
        Law {
            name: "permutation",
            check: |subject, case| {
                subject.same(case, &case.permuted(), "with the examples in another order")
            },
        },
        Law {
            name: "padding",
            check: |subject, case| {
                subject.same(
                    case,
                    &case.padded(&subject.columns),
                    "with more tokens outside the mask",
                )
            },
        },
        Law {
            name: "missing",
            check: missing,
        },
    ]
}

impl<'a> Subject<'a> {
    fn new(make: &'a dyn Fn() -> Box<dyn ConfidenceSignal>) -> Self {
        let (mut columns, mut needs) = (Vec::<Column>::new(), Vec::new());
        for (need, reference) in make().needs().iter().enumerate() {
            for column in Column::of_signal(reference) {
                if columns.iter().all(|known| known.name != column.name) {
                    columns.push(column);
                    needs.push(need);
                }
            }
        }
        Self {
            make,
            columns,
            needs,
        }
    }
}

impl Subject<'_> {
    fn scores(&self, case: &Case) -> Result<Vec<f32>, String> {
        self.scores_of((self.make)().as_ref(), case, f32::NAN)
    }

    fn scores_of(
        &self,
        signal: &dyn ConfidenceSignal,
        case: &Case,
        prefill: f32,
    ) -> Result<Vec<f32>, String> {
        let mut out = vec![prefill; case.tokens().count()];
        self.compute(signal, case, None, &mut out)
            .map_err(|error| refused(&error))?;
        Ok(out)
    }

    fn compute(
        &self,
        signal: &dyn ConfidenceSignal,
        case: &Case,
        without: Option<usize>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        let table = case.table(&self.columns, |index| Some(self.needs[index]) == without);
        signal.compute(&table.view(), out)
    }

    /// Both inputs give the tokens inside the mask the same scores.
    fn same(&self, case: &Case, other: &Case, what: &str) -> Result<(), String> {
        let mut expected = self.scores(case)?;
        for (token, score) in case.tokens().zip(&mut expected) {
            if !token.eligible {
                // Marks what is compared below; a score inside the mask is never infinite.
                *score = f32::INFINITY;
            }
        }
        let mut expected = case.by_place(&expected);
        expected.retain(|(_, score)| *score != f32::INFINITY);
        let mut found = other.by_place(&self.scores(other)?);
        found.retain(|(place, _)| expected.iter().any(|(p, _)| p == place));
        same(what, &expected, &found)
    }
}

fn needs(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let signal = (subject.make)();
    let before = signal.needs();
    // Whether it answers is another law.
    let _ = subject.scores_of(signal.as_ref(), case, 0.0);
    for (what, after) in [
        ("after it was computed", signal.needs()),
        ("made again", (subject.make)().needs()),
    ] {
        if after != before {
            return Err(format!("needs {before:?} became {after:?} {what}"));
        }
    }
    Ok(())
}

fn written(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let scores = subject.scores(case)?;
    let unwritten =
        |(token, score): (&super::case::Token, &f32)| token.eligible && !score.is_finite();
    match case.tokens().zip(&scores).position(unwritten) {
        Some(row) => Err(format!(
            "the score of row {row} was not written, or is no finite number: {}",
            scores[row]
        )),
        None => Ok(()),
    }
}

fn deterministic(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let signal = (subject.make)();
    let once = case.by_place(&subject.scores_of(signal.as_ref(), case, 0.0)?);
    let again = case.by_place(&subject.scores_of(signal.as_ref(), case, 0.0)?);
    same("asked again", &once, &again)?;
    let made = subject.scores_of((subject.make)().as_ref(), case, 0.0)?;
    same("made again", &once, &case.by_place(&made))
}

fn missing(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let mut needs = subject.needs.clone();
    needs.dedup();
    for need in needs {
        let mut out = vec![0.0; case.tokens().count()];
        if subject
            .compute((subject.make)().as_ref(), case, Some(need), &mut out)
            .is_ok()
        {
            let at = subject.needs.iter().position(|n| *n == need);
            let column = at.map_or("", |index| &subject.columns[index].name);
            return Err(format!(
                "column {column:?} is needed, was not there, and there was no error"
            ));
        }
    }
    Ok(())
}
