//! Hidden states to tokens and how sure the model is of them.

use candle_core::{DType, Result, Tensor};
use t3s_core::adapter::BlockDecoding;

use super::reader::place;
use crate::{
    Decoder,
    generate::canvas::never_written,
    kernels::{
        Into,
        buffers::head_chunk_rows,
        cuda::{
            gemm::{Matrix, gemm},
            memory::{overwritten, zeros},
            sample::{CandidateSampler, Draw, guide},
        },
    },
    sample::Sampler,
};

/// The head over the rows that ask, some at a time; every product has the same number of rows.
pub(super) struct Head {
    weight: Tensor,
    with: Side,
    /// What guidance moves away from, and how far.
    without: Option<(Side, f32)>,
    /// Rows of a product.
    chunk: usize,
    sampler: CandidateSampler,
}

/// Canvases with their prompts, or without.
struct Side {
    /// `[rows, width]`, before the head; zeros at first.
    hidden: Tensor,
    /// `[chunk, vocab]`, f32.
    logits: Tensor,
}

impl Head {
    /// For up to `most` rows that ask at a time, in products of up to `rows`.
    pub(super) fn new(
        decoder: &Decoder,
        rule: &BlockDecoding,
        sampler: Sampler,
        most: usize,
        rows: usize,
    ) -> Result<Self> {
        let spec = &decoder.spec;
        let (dtype, device) = place(decoder);
        let guided = rule.guidance != 0.0;
        // Twice as many logits are there at a time where there are two sides.
        let chunk = head_chunk_rows(spec.vocab << u32::from(guided), rows);
        let side = || -> Result<Side> {
            Ok(Side {
                hidden: zeros((most.next_multiple_of(chunk), spec.width), dtype, device)?,
                logits: overwritten((chunk, spec.vocab), DType::F32, device)?,
            })
        };
        let never = never_written(rule, spec);
        Ok(Self {
            weight: decoder.params.tensor(decoder.head.weight).clone(),
            with: side()?,
            without: match guided {
                true => Some((side()?, 1.0 + rule.guidance as f32)),
                false => None,
            },
            chunk,
            sampler: CandidateSampler::new(sampler, (chunk, spec.vocab), &never, device)?,
        })
    }

    /// Where the hidden states go that [`Head::draw`] starts from, `[rows, width]`.
    pub(super) fn hidden(&self) -> &Tensor {
        &self.with.hidden
    }

    /// Where those of the canvases without their prompts go, where there is guidance.
    pub(super) fn hidden_without(&self) -> Option<&Tensor> {
        self.without.as_ref().map(|(side, _)| &side.hidden)
    }

    /// A token for each of the first rows, as many as there are `draws`, and its probability; none where a
    /// logit is no finite number. Waits for the device.
    pub(super) fn draw(&self, draws: &[Draw]) -> Result<Vec<Option<(u32, f64)>>> {
        if draws.is_empty() {
            return Ok(Vec::new());
        }
        let found = overwritten((draws.len(), 2), DType::F64, self.weight.device())?;
        for (at, draws) in draws.chunks(self.chunk).enumerate() {
            let start = at * self.chunk;
            self.project(&self.with, start)?;
            if let Some((without, scale)) = &self.without {
                self.project(without, start)?;
                guide(&self.with.logits, &without.logits, *scale)?;
            }
            let found = found.narrow(0, start, draws.len())?;
            self.sampler.draw(&self.with.logits, draws, &found)?;
        }
        let found = found.to_vec2::<f64>()?.into_iter();
        Ok(found
            .map(|row| (row[0] >= 0.0).then_some((row[0] as u32, row[1])))
            .collect())
    }

    /// Logits of the chunk of rows from `start` on.
    fn project(&self, side: &Side, start: usize) -> Result<()> {
        let hidden = side.hidden.narrow(0, start, self.chunk)?;
        let (hidden, weight) = (Matrix::new(&hidden)?, Matrix::new(&self.weight)?.t());
        gemm("head", &side.logits, Into::Overwrite, hidden, weight, 1.0)
    }
}
