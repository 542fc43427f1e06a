//! The token lens: traces with every number of every token, as JSON for the page.

use serde_json::{Value, json};
use t3s_pipeline::run::evenly;

use crate::{
    column::Scale,
    error::ReportError,
    tokens::{Tokens, Trace, rounded},
};

/// How much of the data the page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Most traces.
    pub traces: usize,
    /// Most bytes of all of them together.
    pub bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            traces: 200,
            bytes: 2_150_000,
        }
    }
}

/// What the lens holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Lens {
    /// For the page: `columns` and `traces`.
    pub data: Value,
    /// Traces in it.
    pub traces: usize,
    /// Traces of the run.
    pub of: usize,
    /// Traces that are cut off.
    pub cut: usize,
}

/// Of a trace, at least this part of the budget: so many there are then, if all are long.
const AT_LEAST: usize = 24;

impl Lens {
    /// Traces of `tokens`, evenly spread over the data, as many as `budget` has room for. A trace
    /// that alone would take more than a 24th of it is cut.
    ///
    /// # Errors
    /// When tokens cannot be decoded.
    pub fn new(tokens: &Tokens, budget: Budget) -> Result<Self, ReportError> {
        let of = tokens.view().n_examples();
        let (mut traces, mut cut) = (Vec::new(), 0);
        // Twice: the first round finds out how many fit, the second spreads as many evenly.
        let mut wanted = budget.traces;
        for last in [false, true] {
            (traces, cut) = (Vec::new(), 0);
            let mut bytes = 0;
            for index in evenly(of, wanted) {
                let trace = tokens.trace(index)?;
                let (value, whole, size) = encode(tokens, &trace, budget.bytes / AT_LEAST);
                bytes += size;
                if bytes > budget.bytes {
                    break;
                }
                cut += usize::from(!whole);
                traces.push(value);
            }
            if last || traces.len() == wanted.min(of) {
                break;
            }
            wanted = traces.len();
        }
        let columns: Vec<Value> = tokens
            .columns
            .iter()
            .map(|column| {
                let Scale {
                    low,
                    high,
                    signed,
                    knee,
                } = column.scale;
                json!({
                    "name": column.name, "label": column.label(), "signed": signed,
                    "low": rounded(low), "high": rounded(high), "knee": rounded(knee),
                })
            })
            .collect();
        Ok(Self {
            traces: traces.len(),
            data: json!({ "columns": columns, "traces": traces }),
            of,
            cut,
        })
    }
}

/// A trace, whether all of it, and about how many bytes it takes.
fn encode(tokens: &Tokens, trace: &Trace, most: usize) -> (Value, bool, usize) {
    // Its id, its quotes, its numbers, and their commas.
    let per_token = 10 + 7 * tokens.columns.len();
    let prompt = tokens.prompt(trace.id);
    let mut size = 160 + prompt.map_or(0, |p| clip(&p.text).len());
    let mut n = 0;
    for piece in &trace.pieces {
        // Escapes take six bytes for one.
        let text: usize = piece
            .chars()
            .map(|c| {
                if c.is_control() || "<>&\"\\".contains(c) {
                    6
                } else {
                    c.len_utf8()
                }
            })
            .sum();
        if n > 0 && size + text + per_token > most {
            break;
        }
        size += text + per_token;
        n += 1;
    }
    let rows = trace.rows.start..trace.rows.start + n;
    let numbers: Vec<Vec<Value>> = tokens
        .columns
        .iter()
        .map(|column| {
            column.values[rows.clone()]
                .iter()
                .map(|v| rounded(*v))
                .collect()
        })
        .collect();
    let view = tokens.view();
    let kept = tokens.weights.as_ref().map(|weights| {
        let weights = &weights[trace.rows.clone()];
        let kept = weights.iter().filter(|weight| **weight > 0.0).count();
        rounded(kept as f32 / weights.len().max(1) as f32)
    });
    let gaps: Vec<usize> = trace.gaps.iter().copied().filter(|gap| *gap < n).collect();
    let value = json!({
        "id": trace.id,
        "n": trace.pieces.len(),
        "at": view.positions().get(rows.start),
        "prompt": prompt.map(|p| clip(&p.text)),
        "answer": prompt.and_then(|p| p.answer.as_deref()).map(clip),
        "kept": kept,
        "gaps": gaps,
        "pieces": &trace.pieces[..n],
        "ids": &view.token_ids()[rows],
        "columns": numbers,
    });
    (value, n == trace.pieces.len(), size)
}

/// A prompt is there to be recognised, not to be read to its end.
fn clip(text: &str) -> String {
    const MOST: usize = 1500;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{} …", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use t3s_core::TokenTable;

    use super::*;

    fn tokens(examples: usize, length: usize) -> Tokens {
        let n = examples * length;
        let mut table = TokenTable::new(
            (0..examples as u64).collect(),
            (0..=examples).map(|e| (e * length) as u32).collect(),
            (0..n as u32).collect(),
            (0..n).map(|row| (row % length) as u32 + 7).collect(),
            vec![true; n],
        )
        .unwrap();
        for name in ["logp@base", "entropy@base", "rank@base", "logp@bottleneck"] {
            let values = (0..n).map(|row| -(row as f32).sin().abs()).collect();
            table.insert(name, values).unwrap();
        }
        Tokens::of_columns(table, None)
    }

    #[test]
    fn short_traces_are_all_there_and_whole() {
        let lens = Lens::new(&tokens(10, 20), Budget::default()).unwrap();
        assert_eq!((lens.traces, lens.of, lens.cut), (10, 10, 0));
        assert_eq!(
            lens.data["traces"][3]["pieces"].as_array().unwrap().len(),
            20
        );
        assert_eq!(lens.data["columns"][0]["name"], "delta-c");
    }

    #[test]
    fn long_traces_keep_to_the_budget_and_are_still_spread() {
        let budget = Budget {
            traces: 200,
            bytes: 300_000,
        };
        let lens = Lens::new(&tokens(60, 3000), budget).unwrap();
        let size = lens.data.to_string().len();
        assert!(size < budget.bytes + 30_000, "{size}");
        assert!(size > budget.bytes / 2, "{size}");
        assert!(
            lens.traces >= AT_LEAST && lens.cut == lens.traces,
            "{lens:?}"
        );
        let last = lens.data["traces"].as_array().unwrap().last().unwrap()["id"].as_u64();
        assert!(last > Some(50), "{last:?}");
    }
}
