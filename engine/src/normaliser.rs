//! What a step's summed loss is divided by: one number per example, from the whole accumulated
//! batch (`[normaliser]` in docs/equations.md).

use t3s_core::plan::Normaliser;

/// Counts of one example's part in the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ExampleCounts {
    /// Sum of the weights of its rows.
    pub weight_sum: f64,
    /// Rows with a weight above zero.
    pub kept: usize,
    /// Tokens that may be trained on.
    pub response: usize,
}

/// By what each example's terms are divided; `None` where nothing of it is kept.
///
/// The number of response tokens counts what could be trained on, kept or not.
pub fn divisors(normaliser: Normaliser, examples: &[ExampleCounts]) -> Vec<Option<f64>> {
    let total = total_divisor(normaliser, examples);
    let part = |example| part_divisor(normaliser, example);
    examples
        .iter()
        .map(|example| part(example).map(|part| total * part))
        .collect()
}

/// The factor of the divisors that only the whole batch knows; 0 where nothing is kept.
pub fn total_divisor(normaliser: Normaliser, examples: &[ExampleCounts]) -> f64 {
    match normaliser {
        Normaliser::SumWeights => examples.iter().map(|e| e.weight_sum).sum(),
        Normaliser::KeptTokens => examples.iter().map(|e| e.kept as f64).sum(),
        Normaliser::AllResponseTokens => examples.iter().map(|e| e.response as f64).sum(),
        Normaliser::PerSequence => examples.iter().filter(|e| e.kept > 0).count() as f64,
    }
}

/// The factor of an example's divisor that it knows alone; `None` where nothing of it is kept.
pub fn part_divisor(normaliser: Normaliser, example: &ExampleCounts) -> Option<f64> {
    let part = match normaliser {
        Normaliser::PerSequence => example.kept as f64,
        _ => 1.0,
    };
    (example.kept > 0).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_are_those_of_the_table() {
        let counts = |weight_sum, kept, response| ExampleCounts {
            weight_sum,
            kept,
            response,
        };
        let examples = [counts(1.5, 2, 4), counts(0.0, 0, 3), counts(0.25, 1, 1)];
        let of = |normaliser| divisors(normaliser, &examples);
        let sum = Some(1.75);
        assert_eq!(of(Normaliser::SumWeights), [sum, None, sum]);
        assert_eq!(of(Normaliser::KeptTokens), [Some(3.0), None, Some(3.0)]);
        assert_eq!(
            of(Normaliser::AllResponseTokens),
            [Some(8.0), None, Some(8.0)]
        );
        assert_eq!(of(Normaliser::PerSequence), [Some(4.0), None, Some(2.0)]);
    }
}
