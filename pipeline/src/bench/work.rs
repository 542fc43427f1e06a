//! The work itself, timed.

use std::{ops::ControlFlow, sync::Arc, time::Instant};

use candle_core::{DType, Device, Tensor};
use t3s_core::{
    CounterRng, DecodeRule, DecoderSpec, Example,
    objective::NextToken,
    plan::{AdamWPlan, GeneratePlan, Schedule, ScorePlan, TrainPlan},
};
use t3s_engine::{
    Columns, Decoder, EngineError, Grads, Scoring, Trainer, generate,
    head::HeadRow,
    init_params,
    layers::lora,
    profile::{self, KernelTime},
    score,
};

use super::{BenchPlan, Rows, Work, flops::Flops, machine::Usage, report::Timed};

/// How a benchmark generates: `batch` answers side by side, each of `max_new_tokens` tokens.
pub(super) fn answers_plan(batch: usize, max_new_tokens: usize) -> GeneratePlan {
    GeneratePlan {
        max_new_tokens,
        temperature: 0.0,
        batch,
        ..GeneratePlan::default()
    }
}

/// How often a repetition whose decoding took no time beside its prefill is tried again.
const TRIES: usize = 10;

/// What was measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub parts: Vec<Timed>,
    pub loss: Option<[f64; 2]>,
}

/// The training plan of the benchmark; for other work it only says that nothing is adapted.
pub(super) fn train_plan(plan: &BenchPlan) -> TrainPlan {
    let steps = (plan.warmup + plan.steps) as u64;
    let common = TrainPlan {
        schedule: Schedule::Constant,
        ..TrainPlan::new(steps, 1e-4)
    };
    match &plan.work {
        Work::Train {
            rows,
            lora,
            recompute,
            states,
        } => TrainPlan {
            batch_examples: rows.batch,
            micro_batch_tokens: rows.pass_tokens,
            lora: lora.clone(),
            recompute: *recompute,
            adamw: AdamWPlan {
                states: *states,
                ..common.adamw
            },
            ..common
        },
        _ => common,
    }
}

/// Does the work on a random model of geometry `spec`; `whole` is that of the model it is part of.
pub(super) fn measure(
    plan: &BenchPlan,
    spec: &DecoderSpec,
    whole: &DecoderSpec,
    (device, dtype): (&Device, DType),
    train: TrainPlan,
) -> Result<Measured, EngineError> {
    let mut params = init_params(spec, plan.seed, device, dtype)?;
    if let Some(adapted) = &train.lora {
        lora::attach(spec, &mut params, adapted, plan.seed)?;
    }
    let decoder = Decoder::new(spec.clone(), params, train.lora.as_ref())?;
    let flops = Flops::new(whole, train.lora.as_ref());
    let clock = Clock { plan, device };
    let mut loss = None;
    let parts = match &plan.work {
        Work::Train { rows, .. } => {
            let (part, ends) = clock.train(decoder, rows, &flops, train)?;
            loss = Some(ends);
            vec![part]
        }
        Work::Score { rows } => vec![clock.score(&decoder, rows, &flops)?],
        Work::Generate { batch, prompt, new } => {
            clock.generate(&decoder, (*batch, *prompt, *new), &flops)?
        }
        Work::Head { rows } => clock.head(&decoder, rows, &flops)?,
    };
    Ok(Measured { parts, loss })
}

/// Work that was repeated.
struct Repeated {
    seconds: Vec<f64>,
    usage: Usage,
    kernels: Vec<KernelTime>,
}

struct Clock<'a> {
    plan: &'a BenchPlan,
    device: &'a Device,
}

impl Clock<'_> {
    /// Seconds of `work`, all that it started on the device included.
    fn time<T>(
        &self,
        mut work: impl FnMut() -> Result<T, EngineError>,
    ) -> Result<(f64, T), EngineError> {
        self.device.synchronize()?;
        let started = Instant::now();
        let done = work()?;
        self.device.synchronize()?;
        Ok((started.elapsed().as_secs_f64(), done))
    }

    /// Warms up and repeats `work`.
    fn repeat(
        &self,
        mut work: impl FnMut() -> Result<(), EngineError>,
    ) -> Result<Repeated, EngineError> {
        for _ in 0..self.plan.warmup {
            self.time(&mut work)?;
        }
        let before = Usage::now();
        let seconds = (0..self.plan.steps)
            .map(|_| Ok(self.time(&mut work)?.0))
            .collect::<Result<_, EngineError>>()?;
        let usage = Usage::now().since(before);
        let mut kernels = Vec::new();
        if self.plan.profile {
            profile::start(self.device);
            self.time(&mut work)?;
            kernels = profile::stop(self.device)?;
        }
        Ok(Repeated {
            seconds,
            usage,
            kernels,
        })
    }

    fn train(
        &self,
        decoder: Decoder,
        rows: &Rows,
        flops: &Flops,
        train: TrainPlan,
    ) -> Result<(Timed, [f64; 2]), EngineError> {
        let rounds = self.plan.warmup + self.plan.steps + usize::from(self.plan.profile);
        // As many as all steps read, so that none comes twice.
        let examples = self.examples(&decoder.spec, rows, rounds * rows.batch, |at| {
            (true, f32::from(u8::from(rows.is_target(at))))
        });
        let objective = Box::new(NextToken);
        let examples = Arc::new(examples);
        let mut trainer = Trainer::new(decoder, objective, examples, train, self.plan.seed)?;
        let mut losses = Vec::with_capacity(rounds);
        let done = self.repeat(|| {
            losses.push(trainer.step()?.loss);
            Ok(())
        })?;
        let (batch, seq) = (rows.batch as u64, rows.seq as u64);
        let targets = rows.targets() as u64;
        let part = Timed {
            name: "step".to_owned(),
            tokens: batch * seq,
            rows: targets,
            flops: flops.train(batch, seq, targets),
            seconds: done.seconds,
            usage: done.usage,
            kernels: done.kernels,
        };
        Ok((part, [losses[0], losses[rounds - 1]]))
    }

    fn score(&self, decoder: &Decoder, rows: &Rows, flops: &Flops) -> Result<Timed, EngineError> {
        let examples = self.examples(&decoder.spec, rows, rows.batch, |at| {
            (rows.is_target(at), 1.0)
        });
        let plan = ScorePlan {
            batch_tokens: rows.pass_tokens,
            ..ScorePlan::default()
        };
        let how = Scoring::of(&plan, Columns::SCALARS, self.plan.seed);
        let go_on = &mut |_| ControlFlow::Continue(());
        let done = self.repeat(|| {
            score(decoder, &NextToken, &examples, &how, go_on)?;
            Ok(())
        })?;
        let (batch, seq) = (rows.batch as u64, rows.seq as u64);
        let targets = rows.targets() as u64;
        Ok(Timed {
            name: "pass".to_owned(),
            tokens: batch * seq,
            rows: targets,
            flops: flops.forward(batch, seq, targets),
            seconds: done.seconds,
            usage: done.usage,
            kernels: done.kernels,
        })
    }

    /// Prefill is generation of one token; decoding is what more tokens add to it.
    fn generate(
        &self,
        decoder: &Decoder,
        (batch, prompt, new): (usize, usize, usize),
        flops: &Flops,
    ) -> Result<Vec<Timed>, EngineError> {
        let vocab = decoder.spec.vocab;
        let prompts: Vec<Vec<u32>> = (0..batch as u64)
            .map(|p| text(self.plan.seed, p, prompt, vocab))
            .collect();
        let run = |max_new_tokens| {
            let before = Usage::now();
            let how = answers_plan(batch, max_new_tokens);
            let rule = DecodeRule::LeftToRight;
            let go_on = &mut |_| ControlFlow::Continue(());
            let answers = generate(decoder, &rule, &prompts, 1, &how, self.plan.seed, go_on)?;
            assert!(answers.iter().all(|a| a.ids.len() == max_new_tokens));
            Ok(Usage::now().since(before))
        };
        let (mut first, mut rest) = (
            (Vec::new(), Usage::default()),
            (Vec::new(), Usage::default()),
        );
        for round in 0..self.plan.warmup + self.plan.steps {
            let mut tries = 0;
            let (prefill, decode) = loop {
                let (prefill, all) = (self.time(|| run(1))?, self.time(|| run(new))?);
                if all.0 > prefill.0 {
                    let decode = (all.0 - prefill.0, all.1.since(prefill.1));
                    break (prefill, decode);
                }
                tries += 1;
                if tries == TRIES {
                    return Err(EngineError::Spec {
                        key: "--new-tokens".to_owned(),
                        message: format!(
                            "{new}: writing them takes no time beside reading the prompts; ask for \
                             more"
                        ),
                    });
                }
            };
            if round >= self.plan.warmup {
                for (part, (seconds, usage)) in [(&mut first, prefill), (&mut rest, decode)] {
                    part.0.push(seconds);
                    part.1 = part.1.plus(usage);
                }
            }
        }
        let (batch, prompt, new) = (batch as u64, prompt as u64, new as u64);
        Ok(vec![
            Timed {
                name: "prefill".to_owned(),
                tokens: batch * prompt,
                rows: batch,
                flops: flops.prefill(batch, prompt),
                seconds: first.0,
                usage: first.1,
                kernels: Vec::new(),
            },
            Timed {
                name: "decode".to_owned(),
                tokens: batch * (new - 1),
                rows: batch * (new - 1),
                flops: flops.decode(batch, prompt, new),
                seconds: rest.0,
                usage: rest.1,
                kernels: Vec::new(),
            },
        ])
    }

    fn head(
        &self,
        decoder: &Decoder,
        rows: &Rows,
        flops: &Flops,
    ) -> Result<Vec<Timed>, EngineError> {
        let (n, width) = (rows.tokens(), decoder.spec.width);
        let rng = CounterRng::new(self.plan.seed, "bench-hidden");
        let values: Vec<f32> = (0..(n * width) as u64)
            .map(|i| (2.0 * rng.uniform(0, i) - 1.0) as f32)
            .collect();
        let dtype = decoder.params.tensor(decoder.head.weight).dtype();
        let hidden = Tensor::from_vec(values, (n, width), self.device)?.to_dtype(dtype)?;
        let targets = text(self.plan.seed, 0, n, decoder.spec.vocab);
        let mut grads = Grads::new(&decoder.params);
        let shares = match rows.kept {
            1.0 => vec![1.0],
            kept => vec![1.0, kept],
        };
        let mut parts = Vec::new();
        for kept in shares {
            let of = Rows { kept, ..*rows };
            let asked: Vec<HeadRow> = (0..n)
                .filter(|row| of.keeps(*row))
                .map(|row| HeadRow {
                    row: row as u32,
                    target: targets[row],
                    coefficient: 1.0 / n as f32,
                })
                .collect();
            let done = self.repeat(|| {
                decoder.head_forward_backward(&hidden, &asked, None, &mut grads)?;
                Ok(())
            })?;
            parts.push(Timed {
                name: format!("kept {kept}"),
                tokens: n as u64,
                rows: asked.len() as u64,
                flops: flops.head(asked.len() as u64),
                seconds: done.seconds,
                usage: done.usage,
                kernels: done.kernels,
            });
        }
        Ok(parts)
    }

    /// `n` random examples; `at` says of a position whether it may be trained on, and its weight.
    fn examples(
        &self,
        spec: &DecoderSpec,
        rows: &Rows,
        n: usize,
        at: impl Fn(usize) -> (bool, f32),
    ) -> Vec<Example> {
        (0..n as u64)
            .map(|id| Example {
                id,
                ids: text(self.plan.seed, id, rows.seq, spec.vocab),
                trainable: (0..rows.seq).map(|p| at(p).0).collect(),
                weights: (0..rows.seq).map(|p| at(p).1).collect(),
                prompt_len: 0,
                answer: None,
                noisy_ids: None,
            })
            .collect()
    }
}

/// `n` random token ids.
fn text(seed: u64, which: u64, n: usize, vocab: usize) -> Vec<u32> {
    let rng = CounterRng::new(seed, "bench-text");
    (0..n as u64)
        .map(|i| (rng.bits(which, i) % vocab as u64) as u32)
        .collect()
}
