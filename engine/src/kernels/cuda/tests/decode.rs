//! Decoding on the device against the CPU's: the parts, then whole answers.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use t3s_core::{CounterRng, DecodeRule, DecoderSpec, plan::sections::GeneratePlan};

use super::{gpu, in_both_orders, random, values};
use crate::{
    Decoder, EngineError, Finish, GenerateProgress, Generation,
    generate::{
        self, Task,
        on_device::{self, StepStart, Steps},
        tests::{decoder, decoders, plan, prompts, spec},
    },
    kernels::{
        attention::Heads,
        cuda::decode::{Attend, LayerCache, Rotation, Rows, Start, State, copy, rotate, status},
        cuda::sample::TokenSampler,
    },
    sample::{AnswerStream, SampleScratch, Sampler},
};

/// A decoder's weights in another place and type; adapters stay f32.
pub(super) fn on(decoder: &Decoder, dtype: DType, device: &Device) -> Decoder {
    let mut copy = decoder.clone();
    for (id, param) in decoder.params.iter() {
        let tensor = param.tensor.to_device(device).unwrap();
        let dtype = match param.name.contains(".lora_") {
            true => DType::F32,
            false => dtype,
        };
        copy.params.replace(id, tensor.to_dtype(dtype).unwrap());
    }
    copy
}

pub(super) fn go_on(_: GenerateProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn run(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    samples: usize,
    plan: &GeneratePlan,
) -> Result<Vec<Generation>, EngineError> {
    let rule = DecodeRule::LeftToRight;
    generate::generate(decoder, &rule, prompts, samples, plan, 3, &mut go_on)
}

/// The answers of `run` emulated, in both orders, and on a GPU are the CPU's.
fn compare_answers(decoder: &Decoder, prompts: &[Vec<u32>], samples: usize, plan: &GeneratePlan) {
    let wanted = run(decoder, prompts, samples, plan).unwrap();
    if let Some(found) = in_both_orders(|| run(decoder, prompts, samples, plan).unwrap()) {
        for found in found {
            assert_eq!(found, wanted, "emulated, {plan:?}");
        }
    }
    if let Some(gpu) = gpu() {
        let there = on(decoder, DType::F32, &gpu);
        let found = run(&there, prompts, samples, plan).unwrap();
        assert_eq!(found, wanted, "GPU, {plan:?}");
    }
}

#[test]
fn greedy_answers_are_the_cpus() {
    for decoder in decoders() {
        // Fewer slots than prompts of different lengths: some end early and are replaced.
        compare_answers(&decoder, &prompts(7), 1, &plan(0.0, 3));
    }
}

#[test]
fn sampled_answers_are_the_cpus() {
    let decoder = decoder(spec(false, true, true), None);
    for (batch, samples, top_k, top_p) in [(4, 3, 0, 1.0), (16, 2, 7, 1.0), (3, 2, 0, 0.8)] {
        let plan = GeneratePlan {
            top_k,
            top_p,
            ..plan(0.9, batch)
        };
        compare_answers(&decoder, &prompts(4), samples, &plan);
    }
}

#[test]
fn answers_do_not_depend_on_what_is_beside_them() {
    let decoder = decoder(spec(true, true, false), None);
    let all = prompts(5);
    let Some([wanted, _]) = in_both_orders(|| run(&decoder, &all, 4, &plan(1.0, 1)).unwrap())
    else {
        return;
    };
    // Emulated products treat all rows alike, so that not even their number matters.
    for (batch, n, samples) in [(2, 5, 3), (9, 3, 4), (30, 5, 2)] {
        let found =
            in_both_orders(|| run(&decoder, &all[..n], samples, &plan(1.0, batch)).unwrap());
        for answer in found.unwrap().concat() {
            assert_eq!(answer, wanted[answer.prompt * 4 + answer.sample]);
        }
    }
    if let Some(gpu) = gpu() {
        for dtype in [DType::F32, DType::BF16] {
            let there = on(&decoder, dtype, &gpu);
            let wanted = run(&there, &all, 4, &plan(1.0, 6)).unwrap();
            for (n, samples) in [(5, 2), (3, 4), (1, 1)] {
                for answer in run(&there, &all[..n], samples, &plan(1.0, 6)).unwrap() {
                    assert_eq!(
                        answer,
                        wanted[answer.prompt * 4 + answer.sample],
                        "{dtype:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_last_position_and_the_limit_are_ends() {
    let mut spec = spec(true, true, false);
    spec.eos_ids.clear();
    let decoder = decoder(spec, None);
    let prompts = vec![vec![1; 60], vec![2; 64], vec![3; 14]];
    for max_new_tokens in [0, 1, 50] {
        let plan = GeneratePlan {
            max_new_tokens,
            ..plan(1.0, 2)
        };
        compare_answers(&decoder, &prompts, 2, &plan);
    }
}

/// What a generation reports to.
pub(super) type Progress<'a> = &'a mut dyn FnMut(GenerateProgress) -> ControlFlow<()>;

/// The last report of `run`: the CPU's, and emulated it is the same.
pub(super) fn last_report(run: impl Fn(Progress<'_>)) -> GenerateProgress {
    let last = || {
        let mut last = GenerateProgress::default();
        run(&mut |progress| {
            last = progress;
            ControlFlow::Continue(())
        });
        last
    };
    let wanted = last();
    for found in in_both_orders(last).into_iter().flatten() {
        assert_eq!(found, wanted);
    }
    wanted
}

#[test]
fn progress_counts_what_the_cpu_counts() {
    let decoder = decoder(spec(true, true, false), None);
    let (rule, prompts) = (DecodeRule::LeftToRight, prompts(6));
    for temperature in [0.0, 1.0] {
        let plan = plan(temperature, 4);
        let last = last_report(|progress| {
            generate::generate(&decoder, &rule, &prompts, 2, &plan, 3, progress).unwrap();
        });
        assert_eq!(last.answers_done, 12);
    }
}

/// Goes on until the call of that number.
pub(super) fn stopping_at(number: usize) -> impl FnMut(GenerateProgress) -> ControlFlow<()> {
    let mut calls = 0;
    move |_| {
        calls += 1;
        std::thread::sleep(std::time::Duration::from_millis(1));
        match calls == number {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// `run`, emulated, stops when its first and when its second report says so.
pub(super) fn expect_interrupts(
    run: impl Fn(Progress<'_>) -> Result<Vec<Generation>, EngineError>,
) {
    for number in [1, 2] {
        let stop = || run(&mut stopping_at(number));
        for result in in_both_orders(stop).into_iter().flatten() {
            assert!(matches!(result, Err(EngineError::Interrupted)), "{number}");
        }
    }
}

#[test]
fn an_interrupt_stops_before_and_during() {
    let mut spec = spec(true, true, false);
    spec.eos_ids.clear();
    let decoder = decoder(spec, None);
    // Long enough for a second report.
    let plan = GeneratePlan {
        max_new_tokens: 60,
        ..plan(1.0, 2)
    };
    let (rule, prompts) = (DecodeRule::LeftToRight, prompts(8));
    expect_interrupts(|progress| {
        generate::generate(&decoder, &rule, &prompts, 30, &plan, 3, progress)
    });
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let mut diverged = decoder(spec(true, true, false), None);
    let id = diverged.params.id("final_norm").unwrap();
    let nan = Tensor::full(f32::NAN, 24, &Device::Cpu).unwrap();
    diverged.params.replace(id, nan.contiguous().unwrap());
    for temperature in [0.0, 1.0] {
        let run = || run(&diverged, &prompts(3), 1, &plan(temperature, 2));
        for result in in_both_orders(run).into_iter().flatten() {
            let error = result.expect_err("NaN");
            let first = EngineError::NonFiniteLogits {
                prompt: 0,
                token: 0,
            };
            assert_eq!(error.to_string(), first.to_string());
        }
    }
}

/// Two answers to each prompt, on the device.
fn by_steps(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    plan: &GeneratePlan,
    steps: Steps,
) -> Vec<Generation> {
    let sampler = Sampler::new(plan).unwrap();
    let task = Task {
        decoder,
        prompts,
        samples: 2,
        plan,
        sampler,
        seed: 3,
    };
    on_device::generate(task, steps, &mut go_on).unwrap()
}

/// Steps of 16 rows, then of 8, 4, 2 and 1 as answers end: those that are moved go on as they were.
#[test]
fn answers_that_are_moved_together_are_the_cpus() {
    let decoder = decoder(spec(false, true, true), None);
    let prompts = prompts(9);
    for (temperature, top_p) in [(0.0, 1.0), (0.8, 0.9)] {
        let plan = GeneratePlan {
            top_p,
            ..plan(temperature, 16)
        };
        let wanted = run(&decoder, &prompts, 2, &plan).unwrap();
        let lengths: std::collections::BTreeSet<_> = wanted.iter().map(|a| a.ids.len()).collect();
        assert!(
            lengths.len() > 3,
            "{lengths:?}: they have to end one after the other"
        );
        let steps = |start| Steps {
            start,
            fewest_rows: 1,
        };
        let found = in_both_orders(|| by_steps(&decoder, &prompts, &plan, steps(StepStart::Plain)));
        for found in found.into_iter().flatten() {
            assert_eq!(found, wanted, "emulated");
        }
        if let Some(gpu) = gpu() {
            let there = on(&decoder, DType::F32, &gpu);
            for start in [StepStart::Plain, StepStart::Recorded { warm: false }] {
                let found = by_steps(&there, &prompts, &plan, steps(start));
                assert_eq!(found, wanted, "GPU, {start:?}");
            }
        }
    }
}

/// bfloat16 on a GPU: twice the same, and the same recorded as launched one by one. Emulated there is
/// nothing to record; the answers of both orders are the same.
#[test]
fn bfloat16_answers_are_the_same_again_and_recorded() {
    // With an adapter, which is merged.
    let f32 = decoders().remove(2);
    let prompts = prompts(7);
    for temperature in [0.0, 0.8] {
        let plan = plan(temperature, 4);
        let run = |decoder: &Decoder, start| {
            let steps = Steps {
                start,
                ..Steps::default()
            };
            by_steps(decoder, &prompts, &plan, steps)
        };
        let here = on(&f32, DType::BF16, &Device::Cpu);
        if let Some([up, down]) = in_both_orders(|| run(&here, StepStart::Plain)) {
            assert_eq!(up, down);
            assert!(up.iter().any(|answer| answer.finish == Finish::Eos));
        }
        if let Some(gpu) = gpu() {
            for dtype in [DType::F32, DType::BF16] {
                let there = on(&f32, dtype, &gpu);
                let plain = run(&there, StepStart::Plain);
                assert_eq!(plain, run(&there, StepStart::Plain), "{dtype:?}: again");
                let recorded = run(&there, StepStart::Recorded { warm: false });
                assert_eq!(plain, recorded, "{dtype:?}: recorded");
            }
        }
    }
}

/// Every token of many rows of logits, by the CPU and here.
fn compare_draws(what: &str, plan: &GeneratePlan, rows: &[Vec<f32>]) {
    let sampler = Sampler::new(plan).unwrap();
    let (n, vocab) = (rows.len(), rows[0].len());
    let stream = |slot| AnswerStream::new(9, slot, 1);
    let mut scratch = SampleScratch::default();
    let wanted: Vec<Option<u32>> = rows
        .iter()
        .enumerate()
        .map(|(slot, row)| sampler.pick(row, stream(slot).uniform(0), &mut scratch))
        .collect();
    let check = |device: &Device, place: &str| {
        let state = State::new(n, device).unwrap();
        let tokens = TokenSampler::new(sampler, (n, 2, vocab), &[], device).unwrap();
        let starts: Vec<Start> = (0..n)
            .map(|slot| Start {
                slot,
                tokens: 1,
                limit: 2,
                key: stream(slot).key(),
            })
            .collect();
        state.start(&starts).unwrap();
        let logits = Tensor::new(rows.concat(), device).unwrap();
        let logits = logits.reshape((n, vocab)).unwrap();
        tokens.draw(&logits, &state, status::RUNNING).unwrap();
        // Nobody is running yet.
        assert!(
            state
                .look()
                .unwrap()
                .iter()
                .all(|s| *s == (status::FRESH, 0))
        );
        tokens.draw(&logits, &state, status::FRESH).unwrap();
        let found: Vec<Option<u32>> = state
            .look()
            .unwrap()
            .iter()
            .enumerate()
            .map(|(slot, state)| match *state {
                (status::RUNNING, 1) => Some(tokens.answer(slot, 1).unwrap()[0]),
                (status::BAD, 0) => None,
                other => panic!("{what}: slot {slot} is {other:?}"),
            })
            .collect();
        assert_eq!(found, wanted, "{what}, {place}");
        found
    };
    in_both_orders(|| check(&Device::Cpu, "emulated"));
    if let Some(gpu) = gpu() {
        check(&gpu, "GPU");
    }
}

#[test]
fn tokens_are_drawn_as_on_the_cpu() {
    for vocab in [1usize, 53, 700] {
        let rng = CounterRng::new(7, "logits");
        let mut rows: Vec<Vec<f32>> = (0..24u64)
            .map(|row| {
                let spread = [1.0, 6.0, 30.0][row as usize % 3];
                let value = |i| {
                    let z = (rng.uniform(row, i) * 2.0 - 1.0) * spread;
                    // Every other row has ties.
                    if row % 2 == 0 {
                        (z * 2.0).round() / 2.0
                    } else {
                        z
                    }
                };
                (0..vocab as u64).map(|i| value(i) as f32).collect()
            })
            .collect();
        rows.push(vec![0.0; vocab]);
        rows[1][0] = f32::NEG_INFINITY;
        rows[3][vocab / 2] = f32::NAN;
        rows[5][vocab - 1] = f32::INFINITY;
        rows[7] = vec![f32::NEG_INFINITY; vocab];
        // Both zeros are one logit.
        rows[8] = (0..vocab)
            .map(|i| if i % 3 == 1 { 0.0 } else { -0.0 })
            .collect();
        for (temperature, top_k, top_p) in [
            (0.0, 0, 1.0),
            (0.6, 0, 1.0),
            (1.0, 5, 1.0),
            (1.0, 400, 1.0),
            (0.9, 0, 0.9),
            (1.3, 0, 0.2),
            (0.7, 20, 0.7),
        ] {
            let plan = GeneratePlan {
                temperature,
                top_k,
                top_p,
                ..GeneratePlan::default()
            };
            compare_draws(&format!("{vocab}: {plan:?}"), &plan, &rows);
        }
    }
}

/// Attention of one query per slot over caches that prompts and steps have filled, against sums in f64.
#[test]
fn attention_over_the_cache_is_softmax_of_what_it_holds() {
    // {query heads, key heads, head_dim}: vectors and none, groups of one to more than a block takes.
    let shapes = [(2, 2, 10), (6, 2, 64), (8, 1, 16), (12, 1, 8), (4, 2, 128)];
    for (n_heads, n_kv_heads, head_dim) in shapes {
        let heads = Heads {
            n_heads,
            n_kv_heads,
            head_dim,
        };
        for dtype in [DType::F32, DType::BF16] {
            check_attention(heads, dtype);
        }
    }
}

fn check_attention(heads: Heads, dtype: DType) {
    // Positions read of each slot's prompt; the step's query comes after them. The last slot is idle.
    let lengths = [1usize, 255, 256, 530, 3];
    let (slots, capacity) = (lengths.len(), 576);
    let (q_width, kv_width) = (heads.width(), heads.kv_width());
    let rows: usize = lengths.iter().sum();
    let rounded = |name: &str, shape: &[usize], device: &Device| {
        let t = random(name, shape).to_dtype(dtype).unwrap();
        t.to_device(device).unwrap()
    };
    let all = q_width + 2 * kv_width;
    let angles = |device: &Device| {
        // Nothing turns: cosines of one, sines of zero, for two elements.
        let row = Tensor::new(&[1.0f32, 0.0], device).unwrap();
        row.repeat(capacity).unwrap().contiguous().unwrap()
    };
    let attend = |device: &Device| {
        let cache = LayerCache::new(slots, capacity, heads, dtype, device).unwrap();
        let angles = angles(device);
        let rotation = Rotation {
            query_norm: None,
            key_norm: None,
            eps: 1e-6,
            angles: &angles,
            rotary_dim: 2,
            heads,
        };
        let (mut positions, mut of) = (Vec::new(), Vec::new());
        for (slot, length) in lengths.iter().enumerate() {
            positions.extend(0..*length as u32);
            // Slot 2 gets its prompt by a copy of slot 3's, which is longer.
            let named = if slot == 2 { u32::MAX } else { slot as u32 };
            of.extend(std::iter::repeat_n(named, *length));
        }
        let new = |columns: usize| Tensor::zeros((rows, columns), dtype, device).unwrap();
        let (q, k, v) = (new(q_width), new(kv_width), new(kv_width));
        let prompts = rounded("prompts", &[rows, all], device);
        let places = Rows::Prompts {
            positions: &Tensor::new(positions, device).unwrap(),
            slots: &Tensor::new(of, device).unwrap(),
            k: &k,
            v: &v,
        };
        rotate(&prompts, rotation, places, &q, &cache).unwrap();
        let pair = Tensor::new(&[[3u32, 2, lengths[2] as u32]], device).unwrap();
        cache.copy(&pair).unwrap();

        let state = State::new(slots, device).unwrap();
        let starts: Vec<Start> = (0..slots - 1)
            .map(|slot| Start {
                slot,
                tokens: lengths[slot],
                limit: 9,
                key: 0,
            })
            .collect();
        state.start(&starts).unwrap();
        // One draw makes them run, one position on.
        let one = Sampler::new(&GeneratePlan {
            temperature: 0.0,
            ..GeneratePlan::default()
        });
        let tokens = TokenSampler::new(one.unwrap(), (slots, 9, 3), &[], device).unwrap();
        let logits = Tensor::zeros((slots, 3), DType::F32, device).unwrap();
        tokens.draw(&logits, &state, status::FRESH).unwrap();
        let step = rounded("step", &[slots, all], device);
        let q = Tensor::zeros((slots, q_width), dtype, device).unwrap();
        rotate(&step, rotation, Rows::Slots(&state), &q, &cache).unwrap();
        let out = Tensor::full(7.0f32, (slots, q_width), device).unwrap();
        let out = out.to_dtype(dtype).unwrap().contiguous().unwrap();
        let kernels = Attend::new(slots, capacity, heads, device).unwrap();
        kernels.run(&q, &cache, &state, &out).unwrap();
        let packed = values(&Tensor::cat(&[&k, &v], 1).unwrap());
        (values(&out), packed)
    };
    let prompts = values(&rounded("prompts", &[rows, all], &Device::Cpu));
    let step = values(&rounded("step", &[slots, all], &Device::Cpu));
    let starts: Vec<usize> = lengths
        .iter()
        .scan(0, |end, length| {
            *end += length;
            Some(*end - length)
        })
        .collect();
    let bound = if dtype == DType::F32 { 3e-6 } else { 6e-3 };
    let check = |(out, packed): &(Vec<f32>, Vec<f32>), place: &str| {
        for row in 0..rows {
            let found = &packed[row * 2 * kv_width..][..2 * kv_width];
            assert_eq!(found, &prompts[row * all + q_width..][..2 * kv_width]);
        }
        for slot in 0..slots - 1 {
            let from = starts[if slot == 2 { 3 } else { slot }];
            let past = |i: usize| match i == lengths[slot] {
                true => &step[slot * all..][..all],
                false => &prompts[(from + i) * all..][..all],
            };
            for head in 0..heads.n_heads {
                let d = heads.head_dim;
                let kv = head / (heads.n_heads / heads.n_kv_heads) * d;
                let query = &step[slot * all + head * d..][..d];
                let dot = |key: &[f32]| -> f64 {
                    let products = query.iter().zip(key);
                    products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
                };
                let masses: Vec<f64> = (0..=lengths[slot])
                    .map(|i| (dot(&past(i)[q_width + kv..][..d]) / (d as f64).sqrt()).exp())
                    .collect();
                let sum: f64 = masses.iter().sum();
                for e in 0..d {
                    let value = |i: usize| f64::from(past(i)[q_width + kv_width + kv + e]);
                    let mixed: f64 = (0..=lengths[slot]).map(|i| masses[i] * value(i)).sum();
                    let found = f64::from(out[slot * q_width + head * d + e]);
                    let error = (found - mixed / sum).abs();
                    assert!(error <= bound, "{place}, {heads:?}, {dtype:?}: {error:e}");
                }
            }
        }
        // The idle slot's row is as it was.
        assert!(out[(slots - 1) * q_width..].iter().all(|v| *v == 7.0));
    };
    if let Some([up, down]) = in_both_orders(|| attend(&Device::Cpu)) {
        check(&up, "emulated");
        assert_eq!(up, down);
    }
    if let Some(gpu) = gpu() {
        check(&attend(&gpu), "GPU");
    }
}

/// A copy of rows that are no whole number of 16 bytes.
#[test]
fn prompts_are_copied_between_slots() {
    for width in [3usize, 8] {
        let copied = || {
            let x = random("cache", &[3, 2, 5, width]).copy().unwrap();
            copy(&x, &Tensor::new(&[[2u32, 0, 4]], &Device::Cpu).unwrap()).unwrap();
            values(&x)
        };
        let before = values(&random("cache", &[3, 2, 5, width]));
        for found in in_both_orders(copied).into_iter().flatten() {
            for (i, found) in found.iter().enumerate() {
                let (slot, position) = (i / (10 * width), i / width % 5);
                let moved = slot == 0 && position < 4;
                assert_eq!(*found, before[if moved { i + 20 * width } else { i }]);
            }
        }
    }
}

#[test]
fn a_tied_head_and_no_norms_decode_as_well() {
    let bare = DecoderSpec {
        qk_norm: false,
        ..spec(true, false, false)
    };
    compare_answers(&decoder(bare, None), &prompts(3), 1, &plan(0.0, 8));
}
