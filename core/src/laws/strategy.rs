//! The laws of strategies.

use super::{
    Broken, Law,
    case::{Case, Column, refused, same},
};
use crate::{
    SelectContext, SelectionStrategy, When,
    strategy::{Scope, budget},
};

/// What is held to the laws.
struct Subject<'a> {
    make: &'a dyn Fn() -> Box<dyn SelectionStrategy>,
    columns: Vec<Column>,
}

/// The laws that the strategies of `make` break; only the first if `stop`.
pub(super) fn broken(make: &dyn Fn() -> Box<dyn SelectionStrategy>, stop: bool) -> Vec<Broken> {
    let subject = Subject::new(make);
    super::broken(&subject, &subject.columns, &laws(), stop)
}

/// Tries the law `name` on `cases`, and takes any answer.
pub(super) fn ask(make: &dyn Fn() -> Box<dyn SelectionStrategy>, name: &str, cases: &[Case]) {
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
            check: |subject, case| subject.weights(case).map(drop),
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
            name: "range",
            check: range,
        },
        Law {
            name: "mask",
            check: mask,
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
            check: padding,
        },
        Law {
            name: "splitting",
            check: splitting,
        },
        Law {
            name: "budget",
            check: budgets,
        },
        Law {
            name: "monotone",
            check: monotone,
        },
        Law {
            name: "missing",
            check: missing,
        },
        Law {
            name: "nan",
            check: nan,
        },
    ]
}

impl<'a> Subject<'a> {
    fn new(make: &'a dyn Fn() -> Box<dyn SelectionStrategy>) -> Self {
        let strategy = make();
        let mut columns: Vec<Column> = Vec::new();
        for need in strategy.needs() {
            if columns.iter().all(|column| column.name != need.as_str()) {
                columns.push(Column::of_strategy(need.as_str()));
            }
        }
        if strategy.when() == When::Online {
            columns.push(Column::current());
        }
        Self { make, columns }
    }
}

impl Subject<'_> {
    fn weights(&self, case: &Case) -> Result<Vec<f32>, String> {
        self.weights_of((self.make)().as_ref(), case, f32::NAN)
    }

    fn weights_of(
        &self,
        strategy: &dyn SelectionStrategy,
        case: &Case,
        prefill: f32,
    ) -> Result<Vec<f32>, String> {
        let mut out = vec![prefill; case.tokens().count()];
        self.select(strategy, case, None, &mut out)
            .map_err(|error| refused(&error))?;
        Ok(out)
    }

    fn select(
        &self,
        strategy: &dyn SelectionStrategy,
        case: &Case,
        without: Option<usize>,
        out: &mut [f32],
    ) -> Result<(), crate::ComponentError> {
        let table = case.table(&self.columns, |index| Some(index) == without);
        let current = case.current(&self.columns);
        let cx = match &current {
            Some(logp) => SelectContext::online(case.seed, 3, logp),
            None => SelectContext::recorded(case.seed),
        };
        strategy.select(&table.view(), &cx, out)
    }

    /// Both inputs give the tokens that both have the same weights.
    fn same(&self, case: &Case, other: &Case, what: &str) -> Result<(), String> {
        let expected = case.by_place(&self.weights(case)?);
        let mut found = other.by_place(&self.weights(other)?);
        found.retain(|(place, _)| expected.iter().any(|(p, _)| p == place));
        same(what, &expected, &found)
    }
}

fn needs(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let strategy = (subject.make)();
    let told = |s: &dyn SelectionStrategy| (s.needs(), s.when(), s.declare());
    let before = told(strategy.as_ref());
    // Whether it answers is another law.
    let _ = subject.weights_of(strategy.as_ref(), case, 0.0);
    for (what, after) in [
        ("after a selection", told(strategy.as_ref())),
        ("made again", told((subject.make)().as_ref())),
    ] {
        if after != before {
            return Err(format!("{before:?} became {after:?} {what}"));
        }
    }
    Ok(())
}

fn written(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let strategy = (subject.make)();
    let low = subject.weights_of(strategy.as_ref(), case, -7.0)?;
    let high = subject.weights_of(strategy.as_ref(), case, 7.0)?;
    match low
        .iter()
        .zip(&high)
        .position(|(l, h)| *l == -7.0 && *h == 7.0)
    {
        Some(row) => Err(format!("row {row} of the output was not written")),
        None => Ok(()),
    }
}

fn range(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let weights = subject.weights_of((subject.make)().as_ref(), case, 0.0)?;
    match weights.iter().position(|w| !(0.0..=1.0).contains(w)) {
        Some(row) => Err(format!(
            "the weight of row {row} is {}, not in 0..=1",
            weights[row]
        )),
        None => Ok(()),
    }
}

fn mask(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let weights = subject.weights_of((subject.make)().as_ref(), case, 0.0)?;
    let outside = case
        .tokens()
        .zip(&weights)
        .position(|(token, weight)| !token.eligible && *weight != 0.0);
    match outside {
        Some(row) => Err(format!(
            "row {row} is outside the mask and has weight {}",
            weights[row]
        )),
        None => Ok(()),
    }
}

fn deterministic(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let strategy = (subject.make)();
    let once = subject.weights_of(strategy.as_ref(), case, f32::NAN)?;
    let again = subject.weights_of(strategy.as_ref(), case, f32::NAN)?;
    let made_again = subject.weights(case)?;
    let bits = |weights: &[f32]| weights.iter().map(|w| w.to_bits()).collect::<Vec<_>>();
    if bits(&once) != bits(&again) {
        return Err(format!("{once:?} became {again:?} when asked again"));
    }
    if bits(&once) != bits(&made_again) {
        return Err(format!("{once:?} became {made_again:?} when made again"));
    }
    Ok(())
}

fn padding(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    subject.same(
        case,
        &case.padded(&subject.columns),
        "with more tokens outside the mask",
    )
}

fn splitting(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    if (subject.make)().declare().scope != Scope::PerExample {
        return Ok(());
    }
    let whole = case.by_place(&subject.weights(case)?);
    for text in &case.texts {
        let alone = Case {
            texts: vec![text.clone()],
            ..case.clone()
        };
        let found = alone.by_place(&subject.weights(&alone)?);
        let expected: Vec<_> = whole
            .iter()
            .filter(|((example, _), _)| *example == text.id)
            .copied()
            .collect();
        same("with its example alone", &expected, &found)?;
    }
    Ok(())
}

fn budgets(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let declared = (subject.make)().declare();
    if declared.keeps.is_none() && declared.removes.is_none() {
        return Ok(());
    }
    let weights = subject.weights(case)?;
    // (whose, eligible tokens, those kept)
    let mut scopes: Vec<(String, usize, usize)> = Vec::new();
    let mut row = 0;
    for text in &case.texts {
        let rows = text.tokens.iter().zip(&weights[row..]);
        let eligible: Vec<_> = rows.filter(|(token, _)| token.eligible).collect();
        let kept = eligible.iter().filter(|(_, weight)| **weight > 0.0).count();
        scopes.push((format!("example {}", text.id), eligible.len(), kept));
        row += text.tokens.len();
    }
    if declared.scope == Scope::Global {
        let sum = |f: fn(&(String, usize, usize)) -> usize| scopes.iter().map(f).sum();
        scopes = vec![("the table".to_owned(), sum(|s| s.1), sum(|s| s.2))];
    }
    for (whose, eligible, kept) in scopes {
        let removed = eligible - kept;
        for (share, count, did) in [
            (declared.keeps, kept, "kept"),
            (declared.removes, removed, "removed"),
        ] {
            let Some(share) = share else { continue };
            let expected = budget(share, eligible);
            if count != expected {
                return Err(format!(
                    "{count} of {eligible} tokens of {whose} were {did}; a share of {share} is \
                     {expected}"
                ));
            }
        }
    }
    Ok(())
}

fn monotone(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let declared = (subject.make)().declare();
    let Some(row) = case.picked_row() else {
        return Ok(());
    };
    let before = subject.weights(case)?[row];
    let directions = declared.rising.iter().map(|c| (c, 1.0));
    for (name, sign) in directions.chain(declared.falling.iter().map(|c| (c, -1.0))) {
        let column = |column: &Column| column.name == *name;
        let Some(index) = subject.columns.iter().position(column) else {
            return Err(format!(
                "it declares a direction of column {name:?}, which it does not need"
            ));
        };
        for step in [0.5, 3.0, 20.0] {
            let mut raised = case.clone();
            let token = raised.tokens_mut().nth(row).expect("picked from this case");
            let value = &mut token.values[index];
            *value = subject.columns[index].clamp(*value + step);
            let (from, to) = (case.tokens().nth(row).map(|t| t.values[index]), *value);
            let after = subject.weights(&raised)?[row];
            if (after - before) * sign < 0.0 {
                return Err(format!(
                    "row {row}: {name} raised from {from:?} to {to:?} took the weight from \
                     {before} to {after}"
                ));
            }
        }
    }
    Ok(())
}

fn missing(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    for (index, column) in subject.columns.iter().enumerate() {
        let mut out = vec![0.0; case.tokens().count()];
        let answer = subject.select((subject.make)().as_ref(), case, Some(index), &mut out);
        if column.is_recorded() && answer.is_ok() {
            return Err(format!(
                "column {:?} is needed, was not there, and there was no error",
                column.name
            ));
        }
    }
    Ok(())
}

fn nan(subject: &Subject<'_>, case: &Case) -> Result<(), String> {
    let Some(row) = case.picked_row() else {
        return Ok(());
    };
    for (index, column) in subject.columns.iter().enumerate() {
        let mut case = case.clone();
        let token = case.tokens_mut().nth(row).expect("picked from this case");
        token.values[index] = f32::NAN;
        let mut out = vec![0.0; case.tokens().count()];
        if subject
            .select((subject.make)().as_ref(), &case, None, &mut out)
            .is_ok()
        {
            return Err(format!(
                "{} is NaN in row {row}, inside the mask, and there was no error",
                column.name
            ));
        }
    }
    Ok(())
}
