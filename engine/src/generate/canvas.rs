//! A prompt with the masks behind it that become an answer, block after block: what block decoding is
//! wherever it is computed.

use std::ops::Range;

use t3s_core::{
    DecoderSpec,
    adapter::{BlockDecoding, DecodeAttention, EndTokens},
};

use super::Finish;
use crate::EngineError;

/// Refuses a rule that `spec` cannot be decoded by.
pub(super) fn check(rule: &BlockDecoding, spec: &DecoderSpec) -> Result<(), EngineError> {
    if rule.mask_id as usize >= spec.vocab || rule.block == 0 || rule.steps == 0 {
        return Err(EngineError::Spec {
            key: "decode".to_owned(),
            message: format!(
                "{rule:?}: block and steps are at least 1, and mask_id is below the vocabulary's \
                 {} ids; write the model's mask token",
                spec.vocab
            ),
        });
    }
    let guided = rule.guidance != 0.0;
    if !rule.guidance.is_finite() || (guided && rule.attention != DecodeAttention::Bidirectional) {
        return Err(EngineError::Spec {
            key: "decode.guidance".to_owned(),
            message: format!(
                "{}: a finite number, and 0 unless attention is bidirectional",
                rule.guidance
            ),
        });
    }
    Ok(())
}

/// The ids that no pass may write.
pub(super) fn never_written(rule: &BlockDecoding, spec: &DecoderSpec) -> Vec<u32> {
    let mut never = vec![rule.mask_id];
    if rule.end_tokens == EndTokens::Never {
        never.extend(&spec.eos_ids);
    }
    never
}

/// A token for a masked position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub position: usize,
    pub id: u32,
    /// How sure the model is of it.
    pub probability: f64,
}

/// A prompt and the answer that replaces the masks behind it.
#[derive(Debug)]
pub(super) struct Canvas<'a> {
    rule: &'a BlockDecoding,
    eos_ids: &'a [u32],
    ids: Vec<u32>,
    /// Where the answer starts ...
    start: usize,
    /// ... where it ends at the latest, and where its last block does.
    wanted: usize,
    end: usize,
    /// The current block.
    rows: Range<usize>,
    /// Its masked positions, ascending.
    masked: Vec<usize>,
    /// How many there were before its first pass.
    n_masked: usize,
    /// Passes over it.
    pass: usize,
}

impl<'a> Canvas<'a> {
    /// An answer of up to `max_new_tokens` tokens to `prompt`, all of it masked, at its first block.
    pub(super) fn new(
        rule: &'a BlockDecoding,
        spec: &'a DecoderSpec,
        prompt: &[u32],
        max_new_tokens: usize,
    ) -> Self {
        let (block, start) = (rule.block as usize, prompt.len());
        let bidirectional = rule.attention == DecodeAttention::Bidirectional;
        let origin = if bidirectional { start } else { 0 };
        let wanted = start.saturating_add(max_new_tokens).min(spec.max_positions);
        // Whole blocks, as the model was trained; what is past `max_new_tokens` is cut off.
        let end = origin + (wanted - origin).next_multiple_of(block);
        let mut canvas = Self {
            rule,
            eos_ids: &spec.eos_ids,
            ids: prompt.to_vec(),
            start,
            wanted,
            end: end.min(spec.max_positions),
            rows: 0..0,
            masked: Vec::new(),
            n_masked: 0,
            pass: 0,
        };
        if bidirectional {
            canvas.ids.resize(canvas.end, rule.mask_id);
        }
        canvas.begin(origin + (start - origin) / block * block);
        canvas
    }

    /// Makes the block at `first` the current one.
    fn begin(&mut self, first: usize) {
        self.rows = first..(first + self.rule.block as usize).min(self.end);
        let read = self.ids.len().max(self.rows.end);
        self.ids.resize(read, self.rule.mask_id);
        self.masked = (self.rows.start.max(self.start)..self.rows.end).collect();
        self.n_masked = self.masked.len();
        self.pass = 0;
    }

    /// What a pass reads: the prompt, what has been written, and masks.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where the answer starts.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// The current block. Its first may hold the prompt's end.
    pub(super) fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Its masked positions, ascending.
    pub(super) fn masked(&self) -> &[usize] {
        &self.masked
    }

    /// Which of the answer's random numbers decides over `position` in this pass; see
    /// `AnswerStream::uniform`.
    pub(super) fn draw(&self, position: usize) -> usize {
        (position - self.start) | self.pass << 32
    }

    /// Ends a pass: writes the surest of `found`, candidates for all masked positions in their order.
    pub(super) fn fill(&mut self, mut found: Vec<Candidate>) {
        let (rule, steps) = (self.rule, self.rule.steps as usize);
        if rule.end_tokens == EndTokens::Last {
            for candidate in &mut found {
                if self.eos_ids.contains(&candidate.id) {
                    // Behind everything that has a probability.
                    candidate.probability = -1.0;
                }
            }
        }
        // The surest first, the first of equals.
        found.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        let scheduled = self.n_masked / steps + usize::from(self.pass < self.n_masked % steps);
        let sure = |c: &&Candidate| c.probability > rule.threshold;
        let n = found.iter().filter(sure).count().max(scheduled).max(1);
        for candidate in found.iter().take(n) {
            self.ids[candidate.position] = candidate.id;
            self.masked
                .retain(|position| *position != candidate.position);
        }
        self.pass += 1;
    }

    /// Leaves a block without masks: the answer where it ends there, else the next block is begun.
    pub(super) fn advance(&mut self) -> Option<(Vec<u32>, Finish)> {
        debug_assert!(self.masked.is_empty());
        let end = self.rows.end;
        let answer = &self.ids[self.start..end.min(self.wanted)];
        if let Some(eos) = answer.iter().position(|id| self.eos_ids.contains(id)) {
            return Some((answer[..eos].to_vec(), Finish::Eos));
        }
        if end >= self.wanted {
            return Some((answer.to_vec(), Finish::Length));
        }
        self.begin(end);
        None
    }
}
