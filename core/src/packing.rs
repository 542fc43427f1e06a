//! Which examples share a forward pass.

use std::ops::Range;

/// Groups whole examples, in their order, into passes of at most `max_tokens` tokens.
///
/// `lengths` is `[examples]`, tokens. Each range of the result is a pass; together they are
/// `0..lengths.len()`. Greedy: a pass ends only where the next example does not fit. An example
/// longer than `max_tokens` is a pass of its own. Without `packing` every example is.
pub fn pack(lengths: &[usize], max_tokens: usize, packing: bool) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0usize;
    for (i, &length) in lengths.iter().enumerate() {
        let fits = tokens
            .checked_add(length)
            .is_some_and(|sum| sum <= max_tokens);
        match passes.last_mut() {
            Some(pass) if packing && fits => {
                pass.end = i + 1;
                tokens += length;
            }
            _ => {
                passes.push(i..i + 1);
                tokens = length;
            }
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fills_passes_in_order() {
        assert_eq!(pack(&[3, 4, 2, 9, 1, 1], 8, true), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(pack(&[3, 4], 8, false), [0..1, 1..2]);
        assert_eq!(pack(&[], 8, true), Vec::<Range<usize>>::new());
        assert_eq!(pack(&[usize::MAX, 1], usize::MAX, true), [0..1, 1..2]);
    }

    proptest! {
        #[test]
        fn packing_is_a_greedy_cover(
            lengths in prop::collection::vec(0usize..40, 0..60),
            max_tokens in 0usize..100,
            packing: bool,
        ) {
            let passes = pack(&lengths, max_tokens, packing);
            let mut next = 0;
            for pass in &passes {
                prop_assert_eq!(pass.start, next, "passes follow one another");
                prop_assert!(!pass.is_empty());
                next = pass.end;
                let tokens: usize = lengths[pass.clone()].iter().sum();
                prop_assert!(tokens <= max_tokens || pass.len() == 1);
                prop_assert!(packing || pass.len() == 1);
                if packing && next < lengths.len() {
                    prop_assert!(tokens + lengths[next] > max_tokens, "the next one would fit");
                }
            }
            prop_assert_eq!(next, lengths.len());
        }
    }
}
