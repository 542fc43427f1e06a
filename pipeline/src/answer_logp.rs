//! The bottleneck's rule where there is no verifier: the mean log-probability of the answer's own
//! tokens in the trace.

use std::ops::Range;

use t3s_core::{Example, TokenTable};
use t3s_data::Tokenizer;

use crate::{error::PipelineError, grader::Grader};

/// The positions of the answer's tokens in `example`: of what the grader finds in the response, or
/// else of the last place where the gold answer stands. `None` where neither is there.
///
/// # Errors
/// When the tokens cannot be decoded.
pub fn answer_positions(
    example: &Example,
    tokenizer: &Tokenizer,
    grader: &Grader,
) -> Result<Option<Range<usize>>, PipelineError> {
    let response = &example.ids[example.prompt_len..];
    let decode = |n: usize| {
        tokenizer
            .decode(&response[..n], false)
            .map_err(PipelineError::data("answer-logp"))
    };
    let text = decode(response.len())?;
    let gold = || {
        let gold = example.answer.as_deref().filter(|gold| !gold.is_empty())?;
        text.rfind(gold).map(|start| start..start + gold.len())
    };
    let Some(span) = grader.span(&text).or_else(gold) else {
        return Ok(None);
    };
    // A prefix of the tokens decodes to a prefix of the text, but for characters whose bytes are
    // split, so the first prefix that reaches a byte is found by bisection.
    let reaching = |bytes: usize| -> Result<usize, PipelineError> {
        let (mut low, mut high) = (0, response.len());
        while low < high {
            let middle = low.midpoint(high);
            if decode(middle)?.len() >= bytes {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    };
    let start = reaching(span.start + 1)?.saturating_sub(1);
    let end = reaching(span.end)?;
    let offset = example.prompt_len;
    Ok((start < end).then_some(offset + start..offset + end))
}

/// The mean of `logp` over the tokens that `positions` names per example, in the order of the
/// table's examples; `NaN` when it names none.
pub fn mean_logp(table: &TokenTable, positions: &[Option<Range<usize>>]) -> f64 {
    let view = table.view();
    let Ok(logp) = view.column("logp") else {
        return f64::NAN;
    };
    let (mut sum, mut n) = (0.0, 0_u64);
    for ((_, rows), wanted) in view.examples().zip(positions) {
        let Some(wanted) = wanted else { continue };
        for row in rows {
            if wanted.contains(&(view.positions()[row] as usize)) {
                sum += f64::from(logp[row]);
                n += 1;
            }
        }
    }
    sum / n as f64
}
