//! Which examples a step sees.

use t3s_core::{CounterRng, Example, plan::TrainPlan};

/// Where the next step begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// Passes over the data that are complete.
    pub(super) epoch: u64,
    /// Examples of the current one that are done.
    pub(super) index: usize,
}

/// The order of the data: a new permutation in every epoch, a function of (seed, epoch, example id)
/// alone, so that a resumed run needs nothing but the cursor.
#[derive(Debug)]
pub(super) struct Order {
    rng: CounterRng,
    cursor: Cursor,
    permutation: Vec<usize>,
}

impl Order {
    pub(super) fn new(seed: u64, examples: &[Example]) -> Self {
        let mut order = Self {
            rng: CounterRng::new(seed, "data-order"),
            cursor: Cursor::default(),
            permutation: Vec::new(),
        };
        order.shuffle(examples);
        order
    }

    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    pub(super) fn seek(&mut self, cursor: Cursor, examples: &[Example]) {
        self.cursor = cursor;
        self.shuffle(examples);
    }

    fn shuffle(&mut self, examples: &[Example]) {
        let epoch = self.cursor.epoch;
        self.permutation = (0..examples.len()).collect();
        self.permutation
            .sort_by_key(|i| (self.rng.bits(epoch, examples[*i].id), examples[*i].id));
    }

    /// The examples of the next step, by epoch: at least one, at most `batch_examples` and
    /// `batch_tokens` (0: no limit). A step that reaches the end of an epoch goes on into the next,
    /// so that every step is full.
    pub(super) fn next_batch(
        &mut self,
        examples: &[Example],
        plan: &TrainPlan,
    ) -> Vec<(u64, Vec<usize>)> {
        let limit = |n| if n == 0 { usize::MAX } else { n };
        let (most, most_tokens) = (limit(plan.batch_examples), limit(plan.batch_tokens));
        // Without either limit a step is one pass over the data.
        let most = match (plan.batch_examples, plan.batch_tokens) {
            (0, 0) => examples.len(),
            _ => most,
        };
        let mut parts: Vec<(u64, Vec<usize>)> = Vec::new();
        let (mut n, mut tokens) = (0, 0usize);
        while n < most {
            if self.cursor.index == examples.len() {
                self.cursor = Cursor {
                    epoch: self.cursor.epoch + 1,
                    index: 0,
                };
                self.shuffle(examples);
            }
            let index = self.permutation[self.cursor.index];
            let length = examples[index].n_tokens();
            if n > 0 && tokens.saturating_add(length) > most_tokens {
                break;
            }
            match parts.last_mut() {
                Some((epoch, part)) if *epoch == self.cursor.epoch => part.push(index),
                _ => parts.push((self.cursor.epoch, vec![index])),
            }
            self.cursor.index += 1;
            (n, tokens) = (n + 1, tokens + length);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(lengths: &[usize]) -> Vec<Example> {
        let example = |(id, n): (usize, &usize)| Example {
            id: id as u64 * 7,
            ids: vec![1; *n],
            trainable: vec![true; *n],
            weights: vec![1.0; *n],
            prompt_len: 0,
            noisy_ids: None,
            answer: None,
        };
        lengths.iter().enumerate().map(example).collect()
    }

    fn plan(batch_examples: usize, batch_tokens: usize) -> TrainPlan {
        TrainPlan {
            batch_examples,
            batch_tokens,
            ..TrainPlan::new(1, 1.0)
        }
    }

    #[test]
    fn an_epoch_sees_every_example_once_and_epochs_differ() {
        let examples = examples(&[1; 20]);
        let mut order = Order::new(5, &examples);
        let plan = plan(8, 0);
        let mut epochs = vec![Vec::new(); 2];
        for _ in 0..5 {
            for (epoch, part) in order.next_batch(&examples, &plan) {
                epochs[epoch as usize].extend(part);
            }
        }
        assert_ne!(epochs[0], epochs[1]);
        for mut epoch in epochs {
            epoch.sort_unstable();
            assert_eq!(epoch, (0..20).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_step_is_full_and_never_empty() {
        let examples = examples(&[6, 6, 6, 30]);
        let sizes = |plan: TrainPlan| -> Vec<usize> {
            let mut order = Order::new(1, &examples);
            let step = |_| {
                let parts = order.next_batch(&examples, &plan);
                parts.iter().map(|(_, part)| part.len()).sum()
            };
            (0..4).map(step).collect()
        };
        assert_eq!(sizes(plan(3, 0)), [3, 3, 3, 3]);
        assert_eq!(sizes(plan(0, 0)), [4, 4, 4, 4]);
        // The long one is a step of its own, though it is longer than the limit.
        let by_tokens = sizes(plan(0, 12));
        assert!(
            by_tokens.iter().all(|n| (1..=2).contains(n)),
            "{by_tokens:?}"
        );
        assert_eq!(sizes(plan(1, 12)), [1, 1, 1, 1]);
    }

    #[test]
    fn a_cursor_is_all_there_is_to_remember() {
        let examples = examples(&[1; 7]);
        let plan = plan(3, 0);
        let mut whole = Order::new(9, &examples);
        for _ in 0..3 {
            whole.next_batch(&examples, &plan);
        }
        let mut resumed = Order::new(9, &examples);
        resumed.seek(whole.cursor(), &examples);
        for _ in 0..4 {
            let (a, b) = (
                whole.next_batch(&examples, &plan),
                resumed.next_batch(&examples, &plan),
            );
            assert_eq!(a, b);
        }
    }
}
