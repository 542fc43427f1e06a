//! Blocks decoded on the device against the CPU's: the parts, then whole answers.

use candle_core::{DType, Device, Tensor};
use t3s_core::{
    AttentionPattern, CounterRng, DecodeRule, DecoderSpec,
    adapter::{BlockDecoding, DecodeAttention, EndTokens},
    decoder_spec::MlpSpec,
    plan::sections::GeneratePlan,
};

use super::{
    decode::{expect_interrupts, go_on, last_report, on},
    gpu, in_both_orders, random, values,
};
use crate::{
    Decoder, EngineError, Finish, Generation,
    generate::{
        self,
        tests::{self, decoder, decoders, prompts, spec},
    },
    init::init_params,
    kernels::{
        attention::Heads,
        cuda::{
            attention::{self, CachedQueries},
            decode::place,
            sample::{CandidateSampler, Draw},
        },
    },
    sample::{AnswerStream, SampleScratch, Sampler},
    test_model,
};

const MASK: u32 = 2;

/// The mask is no token of the prompts: of a text of nothing but masks every row is the same, and which is
/// written first is up to rounding.
const CAUSAL: BlockDecoding = BlockDecoding {
    mask_id: MASK,
    block: 8,
    steps: 8,
    threshold: 2.0,
    attention: DecodeAttention::BlockCausal,
    end_tokens: EndTokens::Free,
    guidance: 0.0,
};

const BIDIRECTIONAL: BlockDecoding = BlockDecoding {
    attention: DecodeAttention::Bidirectional,
    ..QUICK
};

/// Emulated passes are slow: the fewest blocks that make several, and few passes each.
const QUICK: BlockDecoding = BlockDecoding { steps: 3, ..CAUSAL };

fn plan(temperature: f64, batch: usize) -> GeneratePlan {
    GeneratePlan {
        max_new_tokens: 12,
        ..tests::plan(temperature, batch)
    }
}

fn run(
    decoder: &Decoder,
    rule: &BlockDecoding,
    prompts: &[Vec<u32>],
    samples: usize,
    plan: &GeneratePlan,
) -> Result<Vec<Generation>, EngineError> {
    let rule = DecodeRule::Blocks(rule.clone());
    generate::generate(decoder, &rule, prompts, samples, plan, 3, &mut go_on)
}

/// The answers of `run` emulated, in both orders, and on a GPU are the CPU's, which are returned.
fn compare_answers(
    decoder: &Decoder,
    rule: &BlockDecoding,
    prompts: &[Vec<u32>],
    samples: usize,
    plan: &GeneratePlan,
) -> Vec<Generation> {
    let wanted = run(decoder, rule, prompts, samples, plan).unwrap();
    if let Some(found) = in_both_orders(|| run(decoder, rule, prompts, samples, plan).unwrap()) {
        for found in found {
            assert_eq!(found, wanted, "emulated, {rule:?}, {plan:?}");
        }
    }
    if let Some(gpu) = gpu() {
        let there = on(decoder, DType::F32, &gpu);
        let found = run(&there, rule, prompts, samples, plan).unwrap();
        assert_eq!(found, wanted, "GPU, {rule:?}, {plan:?}");
    }
    wanted
}

/// Prompts of 1 to 22 tokens in fewer slots than there are: they end within blocks and at their ends, some
/// answers end early, and others take their places.
#[test]
fn greedy_answers_are_the_cpus() {
    let [plain, biased, adapted] = decoders().try_into().unwrap();
    for (decoder, steps, threshold) in [
        (&plain, 8, 2.0),
        (&plain, 1, 0.5),
        (&biased, 3, 0.3),
        (&adapted, 3, 0.3),
    ] {
        for rule in [CAUSAL, BIDIRECTIONAL] {
            let rule = BlockDecoding {
                steps,
                threshold,
                ..rule
            };
            compare_answers(decoder, &rule, &prompts(4), 1, &plan(0.0, 3));
        }
    }
}

/// LLaDA 2.0's kind.
#[test]
fn answers_of_a_mixture_of_experts_are_the_cpus() {
    let spec = DecoderSpec {
        mlp: MlpSpec::Moe(Box::new(test_model::mixture())),
        // Random weights of the usual size say the same everywhere.
        initializer_range: 0.4,
        ..spec(false, true, true)
    };
    let params = init_params(&spec, 9, &Device::Cpu, DType::F32).unwrap();
    let decoder = Decoder::new(spec, params, None).unwrap();
    for rule in [QUICK, BIDIRECTIONAL] {
        compare_answers(&decoder, &rule, &prompts(4), 1, &plan(0.0, 3));
    }
}

#[test]
fn sampled_answers_are_the_cpus() {
    let decoder = decoder(spec(false, true, true), None);
    for rule in [QUICK, BIDIRECTIONAL] {
        for (batch, top_k, top_p) in [(4, 0, 1.0), (9, 7, 1.0), (3, 0, 0.8)] {
            let plan = GeneratePlan {
                top_k,
                top_p,
                ..plan(0.9, batch)
            };
            let answers = compare_answers(&decoder, &rule, &prompts(3), 2, &plan);
            assert_ne!(answers[0].ids, answers[1].ids);
        }
    }
}

#[test]
fn end_tokens_come_when_they_may() {
    let mut decoder = decoder(spec(true, true, false), None);
    decoder.spec.eos_ids = (5..25).collect();
    for rule in [QUICK, BIDIRECTIONAL] {
        for end_tokens in [EndTokens::Free, EndTokens::Last, EndTokens::Never] {
            let rule = BlockDecoding {
                end_tokens,
                ..rule.clone()
            };
            let answers = compare_answers(&decoder, &rule, &prompts(4), 1, &plan(1.0, 2));
            let cut = answers.iter().filter(|a| a.finish == Finish::Length);
            let all = cut.count() == answers.len();
            assert_eq!(all, end_tokens == EndTokens::Never, "{end_tokens:?}");
        }
    }
}

#[test]
fn guided_answers_are_the_cpus() {
    let decoder = decoder(spec(true, true, false), None);
    for guidance in [-0.6, 0.7] {
        let rule = BlockDecoding {
            guidance,
            ..BIDIRECTIONAL
        };
        compare_answers(&decoder, &rule, &prompts(3), 1, &plan(0.0, 2));
    }
}

#[test]
fn the_last_position_and_the_limit_are_ends() {
    let mut spec = spec(true, true, false);
    spec.eos_ids.clear();
    spec.max_positions = 62;
    let decoder = decoder(spec, None);
    let prompts = vec![vec![1; 60], vec![2; 62], vec![4; 14], vec![5; 16]];
    for rule in [QUICK, BIDIRECTIONAL] {
        for max_new_tokens in [0, 1, 50] {
            let plan = GeneratePlan {
                max_new_tokens,
                ..plan(1.0, 2)
            };
            compare_answers(&decoder, &rule, &prompts, 1, &plan);
        }
    }
}

/// Prompts and rounds of several passes, cut at blocks, and blocks of more rows than a tile of attention.
#[test]
fn long_prompts_are_read_in_parts() {
    let mut spec = spec(true, true, false);
    spec.max_positions = 400;
    let decoder = decoder(spec, None);
    let prompts =
        [300usize, 3, 290, 5, 97, 8].map(|n| (0..n as u32).map(|i| 3 + i * 7 % 50).collect());
    let rule = BlockDecoding {
        block: 96,
        steps: 1,
        ..CAUSAL
    };
    compare_answers(&decoder, &rule, &prompts, 1, &plan(0.0, 6));
}

#[test]
fn answers_do_not_depend_on_what_is_beside_them() {
    let decoder = decoder(spec(true, true, false), None);
    let all = prompts(4);
    for rule in [QUICK, BIDIRECTIONAL] {
        let rule = BlockDecoding {
            threshold: 0.5,
            ..rule
        };
        let alone = || run(&decoder, &rule, &all, 2, &plan(1.0, 1)).unwrap();
        let Some([wanted, _]) = in_both_orders(alone) else {
            return;
        };
        // Emulated products treat all rows alike, so that not even their number matters.
        for (batch, n, samples) in [(3, 4, 2), (9, 3, 2)] {
            let beside = || run(&decoder, &rule, &all[..n], samples, &plan(1.0, batch)).unwrap();
            for answer in in_both_orders(beside).unwrap().concat() {
                assert_eq!(answer, wanted[answer.prompt * 2 + answer.sample]);
            }
        }
        if rule.attention == DecodeAttention::Bidirectional {
            continue;
        }
        if let Some(gpu) = gpu() {
            for dtype in [DType::F32, DType::BF16] {
                let there = on(&decoder, dtype, &gpu);
                let wanted = run(&there, &rule, &all, 3, &plan(1.0, 6)).unwrap();
                for (n, samples) in [(4, 2), (3, 3), (1, 1)] {
                    for answer in run(&there, &rule, &all[..n], samples, &plan(1.0, 6)).unwrap() {
                        let wanted = &wanted[answer.prompt * 3 + answer.sample];
                        assert_eq!(answer, *wanted, "{dtype:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn bfloat16_answers_are_the_same_again() {
    let f32 = decoders().remove(2);
    let guided = BlockDecoding {
        guidance: 0.5,
        ..BIDIRECTIONAL
    };
    for rule in [QUICK, guided] {
        for temperature in [0.0, 0.8] {
            let run =
                |decoder: &Decoder| run(decoder, &rule, &prompts(3), 2, &plan(temperature, 4));
            let here = on(&f32, DType::BF16, &Device::Cpu);
            if let Some([up, down]) = in_both_orders(|| run(&here).unwrap()) {
                assert_eq!(up, down);
                assert!(up.iter().all(|answer| !answer.ids.contains(&MASK)));
            }
            if let Some(gpu) = gpu() {
                let there = on(&f32, DType::BF16, &gpu);
                assert_eq!(run(&there).unwrap(), run(&there).unwrap());
            }
        }
    }
}

#[test]
fn progress_counts_what_the_cpu_counts() {
    let decoder = decoder(spec(true, true, false), None);
    let prompts = prompts(3);
    for (rule, temperature) in [(QUICK, 1.0), (BIDIRECTIONAL, 0.0)] {
        let (rule, plan) = (DecodeRule::Blocks(rule), plan(temperature, 4));
        let last = last_report(|progress| {
            generate::generate(&decoder, &rule, &prompts, 2, &plan, 3, progress).unwrap();
        });
        assert_eq!(last.answers_done, 6);
    }
}

#[test]
fn an_interrupt_stops_before_and_during() {
    let decoder = decoder(spec(true, true, false), None);
    // Long enough for a second report.
    let (rule, plan, prompts) = (DecodeRule::Blocks(CAUSAL), plan(1.0, 2), prompts(8));
    expect_interrupts(|progress| {
        generate::generate(&decoder, &rule, &prompts, 30, &plan, 3, progress)
    });
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut diverged = decoder(spec(true, true, false), None);
    let plan = plan(1.0, 2);
    for (rule, wanted) in [
        (BlockDecoding { block: 0, ..CAUSAL }, "block"),
        (
            BlockDecoding {
                guidance: 1.0,
                ..CAUSAL
            },
            "decode.guidance",
        ),
    ] {
        let run = || run(&diverged, &rule, &prompts(3), 1, &plan);
        for result in in_both_orders(run).into_iter().flatten() {
            let message = result.expect_err("refused").to_string();
            assert!(message.contains(wanted), "{message}");
        }
    }
    let id = diverged.params.id("final_norm").unwrap();
    let nan = Tensor::full(f32::NAN, 24, &Device::Cpu).unwrap();
    diverged.params.replace(id, nan.contiguous().unwrap());
    for rule in [CAUSAL, BIDIRECTIONAL] {
        let run = || run(&diverged, &rule, &prompts(3), 1, &plan);
        for result in in_both_orders(run).into_iter().flatten() {
            let first = EngineError::NonFiniteLogits {
                prompt: 0,
                token: 0,
            };
            let error = result.expect_err("NaN").to_string();
            assert_eq!(error, first.to_string());
        }
    }
}

/// Every candidate of many rows of logits, by the CPU's sampler and sums, and here.
#[test]
fn candidates_are_drawn_as_on_the_cpu() {
    let rng = CounterRng::new(7, "logits");
    for vocab in [4usize, 53, 700] {
        let mut rows: Vec<Vec<f32>> = (0..12u64)
            .map(|row| {
                let spread = [1.0, 6.0, 30.0][row as usize % 3];
                let value = |i| ((rng.uniform(row, i) * 2.0 - 1.0) * spread) as f32;
                (0..vocab as u64).map(value).collect()
            })
            .collect();
        // What may not be drawn is likeliest.
        rows[0][3] = 40.0;
        rows[1][1] = 50.0;
        rows[3][vocab / 2] = f32::NAN;
        rows[5][vocab - 1] = f32::INFINITY;
        rows[7][0] = f32::NEG_INFINITY;
        rows[8] = vec![0.0; vocab];
        for (temperature, top_k, top_p) in [
            (0.0, 0, 1.0),
            (0.6, 0, 1.0),
            (1.0, 5, 1.0),
            (0.9, 0, 0.9),
            (0.7, 20, 0.7),
        ] {
            let plan = GeneratePlan {
                temperature,
                top_k,
                top_p,
                ..GeneratePlan::default()
            };
            compare_candidates(&plan, &rows, &[3, 1]);
        }
    }
}

fn compare_candidates(plan: &GeneratePlan, rows: &[Vec<f32>], never: &[u32]) {
    let sampler = Sampler::new(plan).unwrap();
    let (n, vocab) = (rows.len(), rows[0].len());
    let stream = |row| AnswerStream::new(9, row, 1);
    // Tokens and passes of more than one bit.
    let counter = |row: usize| (row * 5) | (row / 3) << 32;
    let mut scratch = SampleScratch::default();
    let wanted: Vec<Option<(u32, f64)>> = rows
        .iter()
        .enumerate()
        .map(|(row, logits)| {
            if logits.iter().any(|z| !z.is_finite()) {
                return None;
            }
            let mut logits = logits.clone();
            for id in never {
                logits[*id as usize] = -1e30;
            }
            let uniform = stream(row).uniform(counter(row));
            let id = sampler.pick(&logits, uniform, &mut scratch).unwrap();
            let masses: Vec<f64> = logits.iter().map(|z| f64::from(*z).exp()).collect();
            Some((id, masses[id as usize] / masses.iter().sum::<f64>()))
        })
        .collect();
    assert!(wanted.iter().flatten().all(|(id, _)| !never.contains(id)));
    let check = |device: &Device| {
        let candidates = CandidateSampler::new(sampler, (n, vocab), never, device).unwrap();
        let draws: Vec<Draw> = (0..n)
            .map(|row| Draw {
                key: stream(row).key(),
                counter: counter(row) as u64,
            })
            .collect();
        let logits = Tensor::new(rows.concat(), device).unwrap();
        let logits = logits.reshape((n, vocab)).unwrap();
        let found = Tensor::zeros((n, 2), DType::F64, device).unwrap();
        candidates.draw(&logits, &draws, &found).unwrap();
        let found = found.to_vec2::<f64>().unwrap();
        for (row, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            let Some((id, probability)) = wanted else {
                assert_eq!(*found, [-1.0, 0.0], "row {row}");
                continue;
            };
            assert_eq!(found[0], f64::from(*id), "row {row}, {plan:?}");
            // The CPU rounds differences of logits to f32 before it takes their exponentials, as is done
            // here; the sums above do not.
            let error = (found[1] / probability - 1.0).abs();
            assert!(error < 1e-5, "row {row}, {plan:?}: {error:e}");
        }
        found
    };
    if let Some([up, down]) = in_both_orders(|| check(&Device::Cpu)) {
        assert_eq!(up, down);
    }
    if let Some(gpu) = gpu() {
        check(&gpu);
    }
}

/// Blocks of examples in a cache: bit for bit what the same rows are in a pass over whole examples, by the
/// kernels of every kind.
#[test]
fn attention_over_a_cache_is_attention_over_whole_examples() {
    for (head_dim, dtype) in [
        (10, DType::F32),
        (10, DType::BF16),
        (64, DType::BF16),
        (160, DType::F32),
    ] {
        let heads = Heads {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim,
        };
        let check = |device: &Device| check_cached(heads, dtype, device);
        if let Some([up, down]) = in_both_orders(|| check(&Device::Cpu)) {
            assert_eq!(up, down);
        }
        if let Some(gpu) = gpu() {
            check(&gpu);
        }
    }
}

fn check_cached(heads: Heads, dtype: DType, device: &Device) -> Vec<f32> {
    let (capacity, lengths) = (240usize, [7u32, 200, 96]);
    let pattern = AttentionPattern::BlockCausal { block: 24 };
    let offsets = [0, lengths[0], lengths[0] + lengths[1], 303];
    let rows = offsets[3] as usize;
    let make = |name: &str, columns: usize| {
        let t = random(name, &[rows, columns]).to_dtype(dtype).unwrap();
        t.copy().unwrap().to_device(device).unwrap()
    };
    let (q, k, v) = (
        make("q", heads.width()),
        make("k", heads.kv_width()),
        make("v", heads.kv_width()),
    );
    let (whole, _) = attention::portable_forward(&q, &k, &v, heads, &offsets, pattern).unwrap();
    // Examples stand in slots 2, 0 and 1.
    let slots = [2usize, 0, 1];
    let blank = Tensor::full(f32::NAN, (3 * capacity, heads.kv_width()), device).unwrap();
    let blank = blank.to_dtype(dtype).unwrap().contiguous().unwrap();
    let (keys, values_there) = (blank.copy().unwrap(), blank);
    let mut places = Vec::new();
    for (example, slot) in slots.iter().enumerate() {
        for position in 0..lengths[example] {
            let to = (slot * capacity) as u32 + position;
            places.extend([offsets[example] + position, to]);
        }
    }
    let places = Tensor::from_vec(places, (rows, 2), device).unwrap();
    place(&k, &places, &keys).unwrap();
    place(&v, &places, &values_there).unwrap();
    // Whole blocks: several of example 1, all of example 0, the last of example 2. One row before them is
    // nobody's, and one after.
    let pieces = [(1usize, 24u32..168), (0, 0..7), (2, 72..96)];
    let mut from = vec![0u32];
    let queries: Vec<CachedQueries> = pieces
        .iter()
        .map(|(example, rows)| {
            let first = from.len();
            from.extend(rows.clone().map(|row| offsets[*example] + row));
            CachedQueries {
                example: slots[*example] * capacity,
                rows: rows.start as usize..rows.end as usize,
                first,
            }
        })
        .collect();
    from.push(0);
    let index = Tensor::new(from.as_slice(), device).unwrap();
    let packed = q.index_select(&index, 0).unwrap();
    let out = attention::forward_cached([&packed, &keys, &values_there], heads, &queries, pattern);
    let (out, whole) = (values(&out.unwrap()), values(&whole));
    let width = heads.width();
    for (row, from) in from.iter().enumerate() {
        let found = &out[row * width..][..width];
        match row == 0 || row + 1 == out.len() / width {
            true => assert!(found.iter().all(|x| *x == 0.0)),
            false => assert_eq!(found, &whole[*from as usize * width..][..width], "{row}"),
        }
    }
    out
}
