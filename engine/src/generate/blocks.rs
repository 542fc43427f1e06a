//! Block after block of masked positions, each filled over several passes: what is surest first. On the
//! CPU, one answer after the other.

use std::{ops::ControlFlow, ops::Range, sync::Arc};

use candle_core::Tensor;
use t3s_core::{
    AttentionPattern,
    adapter::{BlockDecoding, DecodeAttention},
    plan::sections::Recompute,
};

use super::{
    Finish, GenerateProgress, Generation, Task,
    canvas::{self, Candidate, Canvas},
};
use crate::{
    Batch, Decoder, EngineError,
    kernels::{decode_attention::attend, host},
    kv_cache::{CacheShape, KvCache},
    layers::Save,
    sample::{AnswerStream, SampleScratch, Sampler},
};

/// What the logit of an id becomes that may not be written.
const NEVER: f32 = -1e30;

/// See [`super::generate`]; the arguments have been checked. `use_cache` keeps the keys and values
/// of finished blocks where the rule lets them be kept; tests do without.
pub(super) fn generate(
    task: Task<'_>,
    rule: &BlockDecoding,
    use_cache: bool,
    progress: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Generation>, EngineError> {
    let (decoder, plan) = (task.decoder, task.plan);
    canvas::check(rule, &decoder.spec)?;
    let never = canvas::never_written(rule, &decoder.spec);
    let copies = task.copies();
    let mut done = GenerateProgress {
        answers: task.answers(),
        ..GenerateProgress::default()
    };
    let mut generations = Vec::with_capacity(done.answers);
    for (prompt, ids) in task.prompts.iter().enumerate() {
        for sample in 0..task.different() {
            if progress(done).is_break() {
                return Err(EngineError::Interrupted);
            }
            let mut writer = Writer {
                decoder,
                rule,
                never: &never,
                sampler: task.sampler,
                stream: AnswerStream::new(task.seed, prompt, sample),
                scratch: SampleScratch::default(),
                prompt,
                canvas: Canvas::new(rule, &decoder.spec, ids, plan.max_new_tokens),
                cache: None,
            };
            let (answer, finish) = writer.answer(use_cache)?;
            done.tokens += answer.len();
            done.answers_done += copies;
            done.truncated += copies * usize::from(finish == Finish::Length);
            generations.extend((0..copies).map(|copy| Generation {
                prompt,
                sample: sample + copy,
                ids: answer.clone(),
                finish,
            }));
        }
    }
    // The work is done: a break now loses nothing.
    let _ = progress(done);
    Ok(generations)
}

/// Who writes an answer.
struct Writer<'a> {
    decoder: &'a Decoder,
    rule: &'a BlockDecoding,
    /// Ids that are not written.
    never: &'a [u32],
    sampler: Sampler,
    stream: AnswerStream,
    scratch: SampleScratch,
    /// Index of the prompt.
    prompt: usize,
    canvas: Canvas<'a>,
    cache: Option<KvCache>,
}

impl Writer<'_> {
    fn answer(&mut self, use_cache: bool) -> Result<(Vec<u32>, Finish), EngineError> {
        let spec = &self.decoder.spec;
        if use_cache && self.rule.attention == DecodeAttention::BlockCausal {
            self.cache = Some(KvCache::new(CacheShape {
                n_layers: spec.n_layers,
                n_kv_heads: spec.n_kv_heads,
                head_dim: spec.head_dim,
            }));
            let before = 0..self.canvas.rows().start;
            if !before.is_empty() {
                self.read_cached(before)?;
            }
        }
        loop {
            while !self.canvas.masked().is_empty() {
                let found = self.candidates()?;
                self.canvas.fill(found);
            }
            let rows = self.canvas.rows();
            if let Some(answer) = self.canvas.advance() {
                return Ok(answer);
            }
            if self.cache.is_some() {
                // What the cache holds of this block was written while parts of it were masked.
                self.read_cached(rows)?;
            }
        }
    }

    /// A token for every masked position, and how sure the model is of it.
    fn candidates(&mut self) -> Result<Vec<Candidate>, EngineError> {
        let (rows, vocab) = (self.canvas.rows(), self.decoder.spec.vocab);
        let logits = self.logits(rows.clone())?;
        let masked = self.canvas.masked().to_vec();
        let candidate = |position: usize| {
            let row = &logits[(position - rows.start) * vocab..][..vocab];
            self.candidate(row.to_vec(), position)
        };
        masked.into_iter().map(candidate).collect()
    }

    fn candidate(
        &mut self,
        mut logits: Vec<f32>,
        position: usize,
    ) -> Result<Candidate, EngineError> {
        let unfit = EngineError::NonFiniteLogits {
            prompt: self.prompt,
            token: position - self.canvas.start(),
        };
        if logits.iter().any(|z| !z.is_finite()) {
            return Err(unfit);
        }
        for id in self.never {
            logits[*id as usize] = NEVER;
        }
        let uniform = self.stream.uniform(self.canvas.draw(position));
        let Some(id) = self.sampler.pick(&logits, uniform, &mut self.scratch) else {
            return Err(unfit);
        };
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass = |z: f32| f64::from(z - largest).exp();
        let total: f64 = logits.iter().map(|z| mass(*z)).sum();
        Ok(Candidate {
            position,
            id,
            probability: mass(logits[id as usize]) / total,
        })
    }

    /// Logits of `rows`, `[rows, vocab]`.
    fn logits(&mut self, rows: Range<usize>) -> Result<Vec<f32>, EngineError> {
        let hidden = match self.cache {
            Some(_) => self.read_cached(rows.clone())?,
            None => self.read_all(self.canvas.ids(), rows.clone())?,
        };
        let logits = self.decoder.logits(&hidden)?;
        let mut logits = host::read("generation", &logits)?.to_vec();
        if self.rule.guidance != 0.0 {
            let mut ids = self.canvas.ids().to_vec();
            ids[..self.canvas.start()].fill(self.rule.mask_id);
            let hidden = self.read_all(&ids, rows)?;
            let without = self.decoder.logits(&hidden)?;
            let scale = 1.0 + self.rule.guidance as f32;
            for (with, without) in logits
                .iter_mut()
                .zip(host::read("generation", &without)?.iter())
            {
                *with = without + scale * (*with - without);
            }
        }
        Ok(logits)
    }

    /// Reads the canvas `ids` whole; returns the hidden states of `rows` before the head,
    /// `[rows, width]`.
    fn read_all(&self, ids: &[u32], rows: Range<usize>) -> Result<Tensor, EngineError> {
        let pattern = match self.rule.attention {
            DecodeAttention::BlockCausal => AttentionPattern::BlockCausal {
                block: self.rule.block,
            },
            DecodeAttention::Bidirectional => AttentionPattern::Bidirectional,
        };
        let batch = batch(0..ids.len(), pattern);
        let (hidden, _) = self
            .decoder
            .forward(ids, &batch, Recompute::None, Save::Nothing)?;
        Ok(hidden.narrow(0, rows.start, rows.len())?.contiguous()?)
    }

    /// Reads `rows`, whole blocks, after everything before them has been read: their keys and values
    /// replace those in the cache; returns their hidden states before the head, `[rows, width]`.
    fn read_cached(&mut self, rows: Range<usize>) -> Result<Tensor, EngineError> {
        let (spec, block) = (&self.decoder.spec, self.rule.block as usize);
        let (n_kv_heads, dim) = (spec.n_kv_heads, spec.head_dim);
        let (width, kv) = (spec.n_heads * dim, n_kv_heads * dim);
        let cache = self.cache.as_mut().expect("the caller has made one");
        let ids = &self.canvas.ids()[rows.clone()];
        let batch = batch(rows.clone(), AttentionPattern::Bidirectional);
        self.decoder.forward_attending(ids, &batch, |layer, qkv| {
            let (q, k, v) = (
                host::read("generation", &qkv.q)?,
                host::read("generation", &qkv.k)?,
                host::read("generation", &qkv.v)?,
            );
            for (row, (k, v)) in k.chunks_exact(kv).zip(v.chunks_exact(kv)).enumerate() {
                cache.write(layer, rows.start + row, k, v);
            }
            let mut out = vec![0.0; rows.len() * width];
            let pairs = q.chunks_exact(width).zip(out.chunks_exact_mut(width));
            for (position, (q, out)) in rows.clone().zip(pairs) {
                let visible = ((position / block + 1) * block).min(rows.end);
                attend(q, cache, layer, visible, n_kv_heads, dim, out);
            }
            host::tensor(out, (rows.len(), width))
        })
    }
}

fn batch(rows: Range<usize>, attention: AttentionPattern) -> Batch {
    Batch {
        offsets: Arc::new(vec![0, rows.len() as u32]),
        positions: Arc::new(rows.map(|row| row as u32).collect()),
        attention,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use t3s_core::{adapter::EndTokens, decoder_spec::MlpSpec, plan::sections::GeneratePlan};

    use super::*;
    use crate::{init::init_params, test_model};

    const MASK: u32 = 3;

    fn decoder() -> Decoder {
        let mut spec = test_model::spec();
        // Random weights of the usual size say the same everywhere.
        spec.initializer_range = 0.4;
        spec.mlp = MlpSpec::Moe(Box::new(test_model::mixture()));
        spec.eos_ids = vec![5];
        let params = init_params(&spec, 9, &Device::Cpu, DType::F32).expect("memory");
        Decoder::new(spec, params, None).expect("its own weights")
    }

    fn rule(attention: DecodeAttention, steps: u32, threshold: f64) -> BlockDecoding {
        BlockDecoding {
            mask_id: MASK,
            block: 8,
            steps,
            threshold,
            attention,
            end_tokens: EndTokens::Free,
            guidance: 0.0,
        }
    }

    fn run(
        decoder: &Decoder,
        rule: &BlockDecoding,
        temperature: f64,
        use_cache: bool,
    ) -> Vec<Generation> {
        let plan = GeneratePlan {
            max_new_tokens: 21,
            temperature,
            ..GeneratePlan::default()
        };
        let prompts: Vec<Vec<u32>> = [1usize, 8, 13, 20]
            .iter()
            .map(|n| {
                (0..*n as u32)
                    .map(|i| 7 + (i * 5 + *n as u32) % 20)
                    .collect()
            })
            .collect();
        let sampler = Sampler::new(&plan).expect("a plan");
        let mut progress = |_| ControlFlow::Continue(());
        let task = Task {
            decoder,
            prompts: &prompts,
            samples: 2,
            plan: &plan,
            sampler,
            seed: 4,
        };
        generate(task, rule, use_cache, &mut progress).expect("generated")
    }

    #[test]
    fn cached_decoding_gives_the_same_tokens() {
        let decoder = decoder();
        for temperature in [0.0, 1.0] {
            for (steps, threshold) in [(8, 2.0), (3, 0.3), (1, 0.5)] {
                let rule = rule(DecodeAttention::BlockCausal, steps, threshold);
                let cached = run(&decoder, &rule, temperature, true);
                assert_eq!(cached, run(&decoder, &rule, temperature, false));
                assert_eq!(cached.len(), 8);
                let ids: Vec<u32> = cached.iter().flat_map(|g| g.ids.clone()).collect();
                assert!(!ids.contains(&MASK) && !ids.contains(&5));
                for answer in &cached {
                    match answer.finish {
                        Finish::Length => assert_eq!(answer.ids.len(), 21),
                        Finish::Eos => assert!(answer.ids.len() < 21),
                    }
                }
                assert_eq!(cached[0].ids == cached[1].ids, temperature == 0.0);
            }
        }
    }

    #[test]
    fn bidirectional_decoding_fills_everything() {
        let decoder = decoder();
        let rule = rule(DecodeAttention::Bidirectional, 4, 2.0);
        let answers = run(&decoder, &rule, 0.0, true);
        assert_eq!(answers, run(&decoder, &rule, 0.0, true));
        assert!(answers.iter().all(|g| !g.ids.contains(&MASK)));
    }

    #[test]
    fn end_tokens_come_when_they_may() {
        let mut decoder = decoder();
        decoder.spec.eos_ids = (5..15).collect();
        for attention in [DecodeAttention::Bidirectional, DecodeAttention::BlockCausal] {
            let with = |end_tokens| {
                let rule = BlockDecoding {
                    end_tokens,
                    ..rule(attention, 8, 2.0)
                };
                run(&decoder, &rule, 1.0, true)
            };
            let length =
                |answers: &[Generation]| answers.iter().map(|g| g.ids.len()).sum::<usize>();
            let (free, last) = (with(EndTokens::Free), with(EndTokens::Last));
            assert!(free.iter().any(|g| g.finish == Finish::Eos));
            assert!(length(&free) <= length(&last), "{attention:?}");
            let never = with(EndTokens::Never);
            assert!(
                never
                    .iter()
                    .all(|g| g.finish == Finish::Length && g.ids.len() == 21)
            );
        }
    }

    #[test]
    fn guidance_moves_away_from_what_no_prompt_would_say() {
        let decoder = decoder();
        let with = |guidance, attention| BlockDecoding {
            guidance,
            ..rule(attention, 8, 2.0)
        };
        let answer = |guidance| {
            run(
                &decoder,
                &with(guidance, DecodeAttention::Bidirectional),
                0.0,
                true,
            )
        };
        // At -1 nothing of the prompt is left but its length.
        let blind = answer(-1.0);
        let plain = run(
            &decoder,
            &with(0.0, DecodeAttention::Bidirectional),
            0.0,
            true,
        );
        assert_ne!(blind, plain);
        assert_ne!(answer(2.0), plain);
        let logits = |guidance, prompt: &[u32]| {
            let rule = with(guidance, DecodeAttention::Bidirectional);
            let mut canvas = Canvas::new(&rule, &decoder.spec, prompt, 8);
            let written = |position| Candidate {
                position,
                id: 11,
                probability: 1.0,
            };
            canvas.fill(vec![written(5)]);
            let mut writer = Writer {
                decoder: &decoder,
                rule: &rule,
                never: &[],
                sampler: Sampler::new(&GeneratePlan::default()).expect("a plan"),
                stream: AnswerStream::new(0, 0, 0),
                scratch: SampleScratch::default(),
                prompt: 0,
                canvas,
                cache: None,
            };
            writer.logits(3..11).expect("logits")
        };
        assert_eq!(logits(-1.0, &[7, 8, 9]), logits(0.0, &[MASK; 3]));
        let refused = refuse(&decoder, &with(1.0, DecodeAttention::BlockCausal));
        assert!(refused.contains("decode.guidance"), "{refused}");
    }

    #[test]
    fn a_mask_token_outside_the_vocabulary_is_refused() {
        let rule = BlockDecoding {
            mask_id: 40_000,
            ..rule(DecodeAttention::BlockCausal, 4, 0.9)
        };
        let refused = refuse(&decoder(), &rule);
        assert!(refused.contains("mask_id"), "{refused}");
    }

    /// Why `rule` is refused.
    fn refuse(decoder: &Decoder, rule: &BlockDecoding) -> String {
        let plan = GeneratePlan::default();
        let task = Task {
            decoder,
            prompts: &[vec![1]],
            samples: 1,
            plan: &plan,
            sampler: Sampler::new(&plan).expect("a plan"),
            seed: 0,
        };
        let refused = generate(task, rule, true, &mut |_| ControlFlow::Continue(()));
        refused.expect_err("refused").to_string()
    }
}
