//! Block after block of masked positions, each filled over several passes: what is surest first.

use std::{ops::ControlFlow, ops::Range, sync::Arc};

use candle_core::Tensor;
use t3s_core::{
    AttentionPattern,
    adapter::{BlockDecoding, DecodeAttention, EndTokens},
    plan::sections::{GeneratePlan, Recompute},
};

use super::{Finish, GenerateProgress, Generation, copies_of};
use crate::{
    Batch, Decoder, EngineError,
    kernels::{decode_attention::attend, host, residual},
    kv_cache::{CacheShape, KvCache},
    layers::{Layer, Save},
    sample::{AnswerStream, SampleScratch, Sampler},
};

/// Added to nothing: what a mask token's logit becomes, since it is no answer.
const NEVER: f32 = -1e30;

/// See [`super::generate`]; the arguments have been checked. `use_cache` keeps the keys and values
/// of finished blocks where the rule lets them be kept; tests do without.
#[expect(clippy::too_many_arguments, reason = "generate's, and one switch")]
pub(super) fn generate(
    decoder: &Decoder,
    rule: &BlockDecoding,
    prompts: &[Vec<u32>],
    samples: usize,
    plan: &GeneratePlan,
    sampler: Sampler,
    seed: u64,
    use_cache: bool,
    progress: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Generation>, EngineError> {
    let spec = &decoder.spec;
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
    let copies = copies_of(&sampler, samples);
    let mut done = GenerateProgress {
        answers: prompts.len() * samples,
        ..GenerateProgress::default()
    };
    let mut generations = Vec::with_capacity(done.answers);
    for (prompt, ids) in prompts.iter().enumerate() {
        for sample in 0..samples.div_ceil(copies.max(1)) {
            if progress(done).is_break() {
                return Err(EngineError::Interrupted);
            }
            let mut canvas = Canvas {
                decoder,
                rule,
                sampler,
                stream: AnswerStream::new(seed, prompt, sample),
                scratch: SampleScratch::default(),
                prompt,
                start: ids.len(),
                ids: ids.clone(),
                cache: None,
            };
            let (answer, finish) = canvas.answer(plan.max_new_tokens, use_cache)?;
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

/// A prompt and the answer that replaces the masks behind it.
struct Canvas<'a> {
    decoder: &'a Decoder,
    rule: &'a BlockDecoding,
    sampler: Sampler,
    stream: AnswerStream,
    scratch: SampleScratch,
    /// Index of the prompt.
    prompt: usize,
    /// Where the answer starts.
    start: usize,
    ids: Vec<u32>,
    cache: Option<KvCache>,
}

impl Canvas<'_> {
    fn answer(
        &mut self,
        max_new_tokens: usize,
        use_cache: bool,
    ) -> Result<(Vec<u32>, Finish), EngineError> {
        let (spec, rule) = (&self.decoder.spec, self.rule);
        let (block, start) = (rule.block as usize, self.start);
        let causal = rule.attention == DecodeAttention::BlockCausal;
        let origin = if causal { 0 } else { start };
        // Whole blocks, as the model was trained; what is past `max_new_tokens` is cut off.
        let wanted = start + max_new_tokens;
        let end = (origin + (wanted - origin).next_multiple_of(block)).min(spec.max_positions);
        let wanted = wanted.min(end);
        let first = origin + (start - origin) / block * block;
        if causal && use_cache {
            self.cache = Some(KvCache::new(CacheShape {
                n_layers: spec.n_layers,
                n_kv_heads: spec.n_kv_heads,
                head_dim: spec.head_dim,
            }));
            if first > 0 {
                self.read_cached(0..first)?;
            }
        }
        if !causal {
            self.ids.resize(end, rule.mask_id);
        }
        for at in (first..end).step_by(block) {
            let rows = at..(at + block).min(end);
            self.ids.resize(self.ids.len().max(rows.end), rule.mask_id);
            self.fill(rows.start.max(start)..rows.end, rows.clone())?;
            let answer = &self.ids[start..rows.end.min(wanted)];
            if let Some(eos) = answer.iter().position(|id| spec.eos_ids.contains(id)) {
                return Ok((answer[..eos].to_vec(), Finish::Eos));
            }
            if rows.end >= wanted {
                break;
            }
            if self.cache.is_some() {
                // What the cache holds of this block was written while parts of it were masked.
                self.read_cached(rows)?;
            }
        }
        Ok((self.ids[start..wanted].to_vec(), Finish::Length))
    }

    /// Fills the masked positions `masked` of the block `rows`.
    fn fill(&mut self, masked: Range<usize>, rows: Range<usize>) -> Result<(), EngineError> {
        let (rule, steps) = (self.rule, self.rule.steps as usize);
        let total = masked.len();
        let mut left: Vec<usize> = masked.collect();
        let mut pass = 0;
        while !left.is_empty() {
            let logits = self.logits(rows.clone())?;
            let vocab = self.decoder.spec.vocab;
            let mut found = Vec::with_capacity(left.len());
            for position in &left {
                let row = &logits[(position - rows.start) * vocab..][..vocab];
                found.push(self.candidate(row.to_vec(), *position, pass)?);
            }
            // The surest first, the first of equals.
            found.sort_by(|a, b| b.probability.total_cmp(&a.probability));
            let scheduled = total / steps + usize::from(pass < total % steps);
            let sure = |c: &&Candidate| c.probability > rule.threshold;
            let n = found.iter().filter(sure).count().max(scheduled).max(1);
            for candidate in found.iter().take(n) {
                self.ids[candidate.position] = candidate.id;
                left.retain(|position| *position != candidate.position);
            }
            pass += 1;
        }
        Ok(())
    }

    /// The token for `position` and how sure the model is of it.
    fn candidate(
        &mut self,
        mut logits: Vec<f32>,
        position: usize,
        pass: usize,
    ) -> Result<Candidate, EngineError> {
        let token = position - self.start;
        let unfit = EngineError::NonFiniteLogits {
            prompt: self.prompt,
            token,
        };
        if logits.iter().any(|z| !z.is_finite()) {
            return Err(unfit);
        }
        logits[self.rule.mask_id as usize] = NEVER;
        let eos_ids = &self.decoder.spec.eos_ids;
        if self.rule.end_tokens == EndTokens::Never {
            for eos in eos_ids {
                logits[*eos as usize] = NEVER;
            }
        }
        let uniform = self.stream.uniform(token | pass << 32);
        let Some(id) = self.sampler.pick(&logits, uniform, &mut self.scratch) else {
            return Err(unfit);
        };
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass = |z: f32| f64::from(z - largest).exp();
        let total: f64 = logits.iter().map(|z| mass(*z)).sum();
        let last = self.rule.end_tokens == EndTokens::Last && eos_ids.contains(&id);
        Ok(Candidate {
            position,
            id,
            // Behind everything that has one.
            probability: match last {
                true => -1.0,
                false => mass(logits[id as usize]) / total,
            },
        })
    }

    /// Logits of `rows`, `[rows, vocab]`.
    fn logits(&mut self, rows: Range<usize>) -> Result<Vec<f32>, EngineError> {
        let hidden = match self.cache {
            Some(_) => self.read_cached(rows.clone())?,
            None => self.read_all(&self.ids, rows.clone())?,
        };
        let logits = self.decoder.logits(&hidden)?;
        let mut logits = host::read("generation", &logits)?.to_vec();
        if self.rule.guidance != 0.0 {
            let mut ids = self.ids.clone();
            ids[..self.start].fill(self.rule.mask_id);
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
        let (decoder, block) = (self.decoder, self.rule.block as usize);
        let cache = self.cache.as_mut().expect("the caller has made one");
        // The pattern is not read: attention goes through the cache.
        let batch = batch(rows.clone(), AttentionPattern::Bidirectional);
        let cx = decoder.context(&batch);
        let mut x = decoder
            .embedding
            .forward(&decoder.params, &self.ids[rows.clone()])?;
        for (layer, part) in decoder.blocks.iter().enumerate() {
            let (normed, _) = part.attention_norm.forward(&cx, &x, Save::Nothing)?;
            let qkv = part.attention.project(&cx, &normed)?;
            let heads = part.attention.heads;
            let (width, kv) = (heads.width(), heads.kv_width());
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
                let (n_kv_heads, dim) = (heads.n_kv_heads, heads.head_dim);
                attend(q, cache, layer, visible, n_kv_heads, dim, out);
            }
            let out = host::tensor(out, (rows.len(), width))?;
            let middle = part.attention.output.apply(&cx, &out)?;
            residual::add_assign(&middle, &x)?;
            let (normed, _) = part.mlp_norm.forward(&cx, &middle, Save::Nothing)?;
            let (y, _) = part.mlp.forward(&cx, &normed, Save::Nothing)?;
            residual::add_assign(&y, &middle)?;
            x = y;
        }
        let (hidden, _) = decoder.final_norm.forward(&cx, &x, Save::Nothing)?;
        Ok(hidden)
    }
}

/// A token for a masked position.
struct Candidate {
    position: usize,
    id: u32,
    probability: f64,
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
    use t3s_core::decoder_spec::{MlpSpec, MoeNames, MoeSpec};

    use super::*;
    use crate::{init::init_params, test_model};

    const MASK: u32 = 3;

    fn decoder() -> Decoder {
        let name = |name: &str| format!("model.layers.{{layer}}.mlp.{name}.weight");
        let mut spec = test_model::spec();
        // Random weights of the usual size say the same everywhere.
        spec.initializer_range = 0.4;
        spec.mlp = MlpSpec::Moe(Box::new(MoeSpec {
            dense_layers: 1,
            dense_hidden: 24,
            n_experts: 8,
            n_chosen: 2,
            hidden: 12,
            shared_hidden: 12,
            n_groups: 4,
            n_groups_kept: 2,
            normalise: true,
            scale: 2.5,
            names: MoeNames {
                router: name("router"),
                choice_bias: None,
                gate: name("experts.{expert}.gate"),
                up: name("experts.{expert}.up"),
                down: name("experts.{expert}.down"),
                shared_gate: name("shared.gate"),
                shared_up: name("shared.up"),
                shared_down: name("shared.down"),
                stacked: None,
            },
        }));
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
        generate(
            decoder,
            rule,
            &prompts,
            2,
            &plan,
            sampler,
            4,
            use_cache,
            &mut progress,
        )
        .expect("generated")
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
        let (none, plain) = (
            with(-1.0, DecodeAttention::Bidirectional),
            with(0.0, DecodeAttention::Bidirectional),
        );
        let mut canvas = Canvas {
            decoder: &decoder,
            rule: &none,
            sampler: Sampler::new(&GeneratePlan::default()).expect("a plan"),
            stream: AnswerStream::new(0, 0, 0),
            scratch: SampleScratch::default(),
            prompt: 0,
            start: 3,
            ids: vec![7, 8, 9, MASK, MASK, 11],
            cache: None,
        };
        let blind = canvas.logits(3..6).expect("logits");
        canvas.rule = &plain;
        canvas.ids[..3].fill(MASK);
        assert_eq!(blind, canvas.logits(3..6).expect("logits"));
        let plan = GeneratePlan::default();
        let refused = generate(
            &decoder,
            &with(1.0, DecodeAttention::BlockCausal),
            &[vec![1]],
            1,
            &plan,
            Sampler::new(&plan).expect("a plan"),
            0,
            true,
            &mut |_| ControlFlow::Continue(()),
        );
        let message = refused.expect_err("refused").to_string();
        assert!(message.contains("decode.guidance"), "{message}");
    }

    #[test]
    fn a_mask_token_outside_the_vocabulary_is_refused() {
        let decoder = decoder();
        let rule = BlockDecoding {
            mask_id: 40_000,
            ..rule(DecodeAttention::BlockCausal, 4, 0.9)
        };
        let plan = GeneratePlan::default();
        let sampler = Sampler::new(&plan).expect("a plan");
        let mut progress = |_| ControlFlow::Continue(());
        let prompts = [vec![1]];
        let refused = generate(
            &decoder,
            &rule,
            &prompts,
            1,
            &plan,
            sampler,
            0,
            true,
            &mut progress,
        );
        assert!(
            refused
                .expect_err("refused")
                .to_string()
                .contains("mask_id")
        );
    }
}
