//! Which keys a query sees, as at most two contiguous spans: what keeps attention block-sparse. The
//! cost of a pattern grows with what is attended; no `[rows, rows]` mask exists.

use std::ops::Range;

use candle_core::{Result, bail};
use t3s_core::AttentionPattern;

/// A pattern over one example of `len` rows. Rows are counted from the example's start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spans {
    pattern: AttentionPattern,
    len: usize,
}

impl Spans {
    /// The pattern over `len` rows; [`Spans::check`] has passed.
    pub(super) fn new(pattern: AttentionPattern, len: usize) -> Self {
        Self { pattern, len }
    }

    /// Refuses a pattern that `len` rows cannot have, or that has no kernel here.
    pub(super) fn check(pattern: AttentionPattern, len: usize) -> Result<()> {
        match pattern {
            AttentionPattern::Causal | AttentionPattern::Bidirectional => Ok(()),
            AttentionPattern::BlockCausal { block: 1.. } => Ok(()),
            AttentionPattern::BlockDiffusion {
                block: 1..,
                views: views @ 1..,
            } => match len.is_multiple_of(views as usize + 1) {
                true => Ok(()),
                false => bail!("attention: {len} rows are not {views} copies and a clean example"),
            },
            other => bail!("attention: no CPU kernel for the pattern {other:?}"),
        }
    }

    /// Tokens of the example: rows of one copy.
    fn copy(&self) -> usize {
        match self.pattern {
            AttentionPattern::BlockDiffusion { views, .. } => self.len / (views as usize + 1),
            _ => self.len,
        }
    }

    /// The keys that `query` sees, in one or two spans.
    #[inline(always)]
    fn of(&self, query: usize) -> [Range<usize>; 2] {
        match self.pattern {
            AttentionPattern::Bidirectional => [0..self.len, 0..0],
            AttentionPattern::BlockCausal { block } => {
                let block = block as usize;
                [0..((query / block + 1) * block).min(self.len), 0..0]
            }
            AttentionPattern::BlockDiffusion { block, views } => {
                let (block, copy) = (block as usize, self.copy());
                let clean = views as usize * copy;
                let start = query / copy * copy;
                let own = (query - start) / block * block;
                let end = (own + block).min(copy);
                match start == clean {
                    true => [clean..clean + end, 0..0],
                    false => [start + own..start + end, clean..clean + own],
                }
            }
            // Causal; `check` has refused everything else.
            _ => [0..query + 1, 0..0],
        }
    }

    /// The first query that may see key `key` or one after it, where queries see nothing further
    /// on; rounded down to where a tile starts when `key` is one.
    pub(super) fn first_query(&self, key: usize) -> usize {
        match self.pattern {
            AttentionPattern::Causal => key,
            _ => 0,
        }
    }

    /// The queries from `first` on in tiles of at most `size`; none holds rows of two copies.
    pub(super) fn query_tiles(
        &self,
        first: usize,
        size: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let (len, copy) = (self.len, self.copy());
        let mut next = first;
        std::iter::from_fn(move || {
            let start = next;
            let end_of_copy = (start / copy.max(1) + 1) * copy;
            next = (start + size).min(end_of_copy).min(len);
            (start < next).then_some(start..next)
        })
    }

    /// Those of `keys` that a query of the tile `queries` sees, in tiles of at most `size`, each
    /// with the number of the span it is part of.
    pub(super) fn key_tiles(
        &self,
        queries: &Range<usize>,
        keys: Range<usize>,
        size: usize,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        // Both ends of a span grow with the query.
        let (first, last) = (self.of(queries.start), self.of(queries.end - 1));
        [0, 1].into_iter().flat_map(move |part| {
            let start = match last[part].is_empty() {
                true => last[part].start,
                false => first[part].start.min(last[part].start),
            };
            let span = start.max(keys.start)..last[part].end.min(keys.end);
            span.clone()
                .step_by(size)
                .map(move |start| (part, start..(start + size).min(span.end)))
        })
    }

    /// Which keys of `tile`, part of span `part`, `query` sees; counted from the tile's start.
    #[inline(always)]
    pub(super) fn visible(&self, query: usize, part: usize, tile: &Range<usize>) -> Range<usize> {
        let span = &self.of(query)[part];
        let start = span.start.clamp(tile.start, tile.end);
        let end = span.end.clamp(start, tile.end);
        start - tile.start..end - tile.start
    }
}
