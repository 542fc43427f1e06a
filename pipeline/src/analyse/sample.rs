//! The examples that are looked at, with what the run knows of each of their tokens.

use std::collections::HashMap;

use t3s_core::{Corpus, Example, TokenTable};

use crate::{error::PipelineError, run::evenly};

/// Examples and their response tokens, in the order in which they are scored.
pub struct Sample {
    /// The examples; every response token has the weight 1.
    pub examples: Vec<Example>,
    /// `[tokens]`: the token's example (an index) and position.
    pub places: Vec<(usize, usize)>,
    /// `[tokens]`, by name: what the run recorded of them, and `delta-c`.
    pub columns: HashMap<String, Vec<f32>>,
}

impl Sample {
    /// `wanted` examples of `corpus`, evenly spread, with the columns of `table`.
    ///
    /// # Errors
    /// When `table` is about other tokens.
    pub fn new(corpus: &Corpus, table: &TokenTable, wanted: usize) -> Result<Self, PipelineError> {
        let view = table.view();
        let rows: HashMap<u64, std::ops::Range<usize>> = view.examples().collect();
        let mut sample = Self {
            examples: Vec::new(),
            places: Vec::new(),
            columns: HashMap::new(),
        };
        for index in evenly(corpus.examples.len(), wanted) {
            let example = corpus.examples[index].clone();
            let rows = rows.get(&example.id).cloned().unwrap_or(0..0);
            for row in rows {
                let position = view.positions()[row] as usize;
                if example.ids.get(position) != Some(&view.token_ids()[row]) {
                    return Err(PipelineError::plan(
                        "data.train",
                        format!(
                            "example {} is not what the run has scored; the data changed since, so \
                             run the plan again",
                            example.id
                        ),
                    ));
                }
                sample.places.push((sample.examples.len(), position));
                for (name, values) in view.columns() {
                    let column = sample.columns.entry((*name).to_owned()).or_default();
                    column.push(values[row]);
                }
            }
            sample.examples.push(example);
        }
        let column = |name: &str| sample.columns.get(name).cloned().unwrap_or_default();
        let (base, bottleneck) = (column("logp@base"), column("logp@bottleneck"));
        let delta = base.iter().zip(&bottleneck).map(|(a, b)| b - a).collect();
        sample.columns.insert("delta-c".to_owned(), delta);
        Ok(sample)
    }

    /// Which tokens are anchors, `[anchors]` in docs/equations.md with the threshold 0.
    pub fn anchors(&self) -> Vec<bool> {
        self.columns["delta-c"]
            .iter()
            .map(|delta| *delta > 0.0)
            .collect()
    }

    /// The examples with the weight 1 on the tokens of `subset` (`[tokens]`) and 0 elsewhere.
    pub fn only(&self, subset: &[bool]) -> Vec<Example> {
        let mut examples = self.examples.clone();
        for example in &mut examples {
            example.weights.fill(0.0);
        }
        for ((example, position), chosen) in self.places.iter().zip(subset) {
            if *chosen {
                examples[*example].weights[*position] = 1.0;
            }
        }
        // An example without a token of the subset has nothing to say.
        examples.retain(|example| example.weights.iter().any(|weight| *weight > 0.0));
        examples
    }
}
