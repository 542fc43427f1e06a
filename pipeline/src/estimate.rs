//! What a run will cost, said before its model is loaded.
//!
//! Memory is counted from the geometry: resident memory of the process on the CPU, tensors on the device on
//! a GPU. Time is measured: one block of the student's own size, with
//! random weights, trains, scores and generates for a moment where the student will, and the plan's
//! tokens are multiplied in. Both are predictions; docs/performance.md holds them against real runs.

use std::{ops::ControlFlow, time::Instant};

use candle_core::Device;
use serde::{Deserialize, Serialize};
use t3s_core::{
    AttentionPattern, ComponentError, CounterRng, DecoderSpec, Draw, Example, ExampleBatch,
    ModelBatch, Objective, Weighting,
    decoder_spec::LayerMlp,
    plan::{
        BottleneckRule, Estimator, GeneratePlan, Recompute, RunPlan, StatePrecision, TrainPlan,
    },
};
use t3s_engine::{
    Accumulation, Columns, Decoder, EngineError, Footprint, Grads, Part, Scoring,
    adamw::{AdamW, state_bytes},
    footprint::{Answers, GENERATION_WORKSPACE, PassRows},
    generate, init_params,
    layers::lora,
    loss_and_gradients, score,
};

use crate::{error::PipelineError, student::Student, summary::CorpusSummary};

/// Bytes of an f32.
const F32: u64 = 4;
/// How often each is timed.
const ROUNDS: usize = 5;

/// How much is timed: what keeps the device busy, and no more.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Largest vocabulary; a larger one is scaled up from it.
    vocab: usize,
    /// Tokens of a pass, at most.
    tokens: usize,
    /// Tokens of a generation.
    steps: usize,
    /// Blocks of the smaller of two models, at least; the other has one more.
    layers: usize,
}

impl Sizes {
    fn on(device: &Device) -> Self {
        match device {
            Device::Cpu => Self {
                vocab: 4096,
                tokens: 1024,
                steps: 12,
                layers: 0,
            },
            _ => Self {
                vocab: 1 << 15,
                tokens: 1 << 14,
                steps: 64,
                layers: 1,
            },
        }
    }
}

/// What a run will cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Weights of the student.
    pub parameters: u64,
    /// Weights that learn.
    pub trainable: u64,
    /// Most memory that is held at once, bytes: by the process, or on a GPU by its tensors there.
    pub peak_memory: u64,
    /// Seconds of each stage, in order.
    pub stages: Vec<StagePrediction>,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagePrediction {
    /// `probe`, `accuracy`, ...
    pub stage: String,
    /// Its work in words, e.g. `50 steps, 1.2 M tokens`.
    pub work: String,
    /// Seconds.
    pub seconds: f64,
}

impl Prediction {
    /// Seconds of the whole run, nothing cached.
    pub fn seconds(&self) -> f64 {
        self.stages.iter().map(|stage| stage.seconds).sum()
    }
}

/// Predicts the cost of `plan` on this machine for `student` and a corpus of these counts; `problems`
/// is the number of problems of the evaluation.
///
/// # Errors
/// When the timed block cannot be built.
pub fn predict(
    plan: &RunPlan,
    student: &Student,
    corpus: &CorpusSummary,
    problems: u64,
) -> Result<Prediction, PipelineError> {
    let error = PipelineError::engine("check");
    let spec = &student.spec;
    let objective = student.objective()?;
    let parameters = spec.n_parameters() as u64;
    let trainable = trainable(spec, &plan.train).map_err(&error)?;
    let rates = Rates::measure(student, objective.as_ref(), plan, corpus).map_err(&error)?;
    let examples = corpus.examples.max(1) as f64;
    let mean_tokens = corpus.tokens as f64 / examples;
    let mean_answer = corpus.response_tokens as f64 / examples;

    let mut stages = Vec::new();
    let mut push = |stage: &str, work: String, seconds: f64| {
        stages.push(StagePrediction {
            stage: stage.to_owned(),
            work,
            seconds,
        });
    };
    let training = |train: &TrainPlan| {
        let tokens = train.steps as f64 * tokens_per_step(train, corpus, mean_tokens);
        let optimiser = train.steps as f64 * trainable as f64 * rates.optimiser;
        let work = format!("{} steps, {} tokens", train.steps, count(tokens));
        (work, tokens * rates.train + optimiser)
    };
    let answering = |answers: u64, generate: &GeneratePlan| {
        let tokens = mean_answer.min(generate.max_new_tokens as f64);
        let work = format!("{answers} answers of about {tokens:.0} tokens");
        (work, answers as f64 * tokens * rates.generate)
    };
    // Another student's trajectory is there already.
    let own = plan.selection.selector().is_none();
    if own {
        let (work, seconds) = training(&plan.probe.training);
        push("probe", work, seconds);
    }
    let checkpoints = match plan.probe.checkpoint_every {
        0 => 1,
        every => plan.probe.training.steps.div_ceil(every),
    };
    let bottleneck = &plan.bottleneck;
    if own && bottleneck.step == 0 && bottleneck.by == BottleneckRule::TrainAccuracy {
        let prompts = match bottleneck.prompts as u64 {
            0 => corpus.problems,
            limit => corpus.problems.min(limit),
        };
        let answers = (checkpoints + 1) * prompts * bottleneck.samples as u64;
        let (work, seconds) = answering(answers, &bottleneck.generate);
        push("accuracy", work, seconds);
    }
    if own {
        let draws = match plan.score.estimator {
            Estimator::Corruptions => objective.weighting().draws(plan.score.draws),
            Estimator::BlockCausal => 1,
        };
        let scored = 2.0 * f64::from(draws) * corpus.tokens as f64;
        push(
            "score",
            format!("{} tokens", count(scored)),
            scored * rates.score,
        );
    }
    let (work, seconds) = training(&plan.train);
    push("train", work, seconds);
    let models = if own { 4 } else { 2 };
    let answers = models * problems * plan.eval.samples as u64;
    let (work, seconds) = answering(answers, &plan.eval.generate);
    push("evaluate", work, seconds);
    Ok(Prediction {
        parameters,
        trainable,
        peak_memory: match student.device {
            Device::Cpu => peak_memory(spec, objective.attention(), plan, corpus, trainable),
            _ => device_memory(student, objective.attention(), plan, corpus, problems)
                .map_err(&error)?,
        },
        stages,
    })
}

/// `1234567` as `1.2 M`.
pub fn count(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.1} G", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e4 => format!("{:.0} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// The number of weights that learn.
pub(crate) fn trainable(spec: &DecoderSpec, train: &TrainPlan) -> Result<u64, EngineError> {
    let Some(plan) = &train.lora else {
        return Ok(spec.n_parameters() as u64);
    };
    let adapted = spec
        .tensors()
        .into_iter()
        .filter(|tensor| tensor.shape.len() == 2 && lora::is_target(plan, &tensor.name));
    Ok(adapted
        .map(|tensor| (plan.rank * (tensor.shape[0] + tensor.shape[1])) as u64)
        .sum())
}

fn tokens_per_step(train: &TrainPlan, corpus: &CorpusSummary, mean_tokens: f64) -> f64 {
    let by_examples = match train.batch_examples {
        0 => f64::INFINITY,
        n => n as f64 * mean_tokens,
    };
    let by_tokens = match train.batch_tokens {
        0 => f64::INFINITY,
        n => n as f64,
    };
    let all = corpus.tokens as f64;
    let least = by_examples.min(by_tokens);
    if least.is_finite() { least } else { all }
}

/// Floats that block `layer` keeps for its backward pass, per row.
fn saved_per_row(spec: &DecoderSpec, layer: usize) -> u64 {
    let (q, kv) = (
        spec.n_heads * spec.head_dim,
        spec.n_kv_heads * spec.head_dim,
    );
    // Inputs and outputs of both norms; queries, keys and values before and after norm and rotary;
    // attention's output and log-sum-exp; gate, up and their product.
    let norms = 4 * spec.width;
    let attention = 3 * q + 4 * kv + spec.n_heads;
    let mlp = match spec.mlp.at(layer) {
        LayerMlp::Dense { hidden } => 3 * hidden,
        // The input and the router's scores; gate and up of each expert; the shared expert's.
        LayerMlp::Experts(moe) => {
            let routed = 2 * moe.n_chosen * moe.hidden;
            spec.width + moe.n_experts + routed + 3 * moe.shared_hidden
        }
    };
    (norms + attention + mlp) as u64
}

/// Floats that block `layer` holds for a moment beside them, per row: rows sorted by expert.
fn passing_per_row(spec: &DecoderSpec, layer: usize) -> u64 {
    match spec.mlp.at(layer) {
        LayerMlp::Dense { .. } => 0,
        LayerMlp::Experts(moe) => (2 * moe.n_chosen * (spec.width + moe.hidden)) as u64,
    }
}

/// Program, tokenizer, and pages that the allocator keeps.
pub(crate) const PROGRAM_BYTES: u64 = 96 << 20;
/// Tokens, mask and weights of an example in memory, per token.
pub(crate) const EXAMPLE_BYTES: u64 = 16;

/// What the block that takes most takes, by `floats`.
fn largest(spec: &DecoderSpec, floats: fn(&DecoderSpec, usize) -> u64) -> u64 {
    let blocks = 0..spec.n_layers;
    blocks.map(|layer| floats(spec, layer)).max().unwrap_or(0)
}

/// Floats that all blocks save for their backward pass, per row.
fn all_blocks(spec: &DecoderSpec) -> u64 {
    (0..spec.n_layers)
        .map(|layer| saved_per_row(spec, layer))
        .sum()
}

/// Activations of a training pass over `rows` rows of the decoder.
fn pass_bytes(spec: &DecoderSpec, recompute: Recompute, rows: u64) -> u64 {
    let layers = spec.n_layers as u64;
    let block = largest(spec, saved_per_row);
    let kept = match recompute {
        Recompute::None => all_blocks(spec),
        Recompute::Block => layers * spec.width as u64 + block,
        Recompute::Every(n) => {
            let n = (n as u64).clamp(1, layers.max(1));
            layers.div_ceil(n) * spec.width as u64 + n * block
        }
    };
    // Gradients of one block's activations are alive beside what is saved.
    let hidden_states = 4 * spec.width as u64;
    rows * (kept + block + largest(spec, passing_per_row) + hidden_states) * F32
}

/// One chunk of logits.
pub(crate) fn head_bytes(spec: &DecoderSpec, rows: u64) -> u64 {
    512.min(rows) * spec.vocab as u64 * F32
}

/// Gradients, optimiser and activations of training with passes of `rows` rows.
pub(crate) fn training_bytes(
    spec: &DecoderSpec,
    recompute: Recompute,
    states: StatePrecision,
    trainable: u64,
    rows: u64,
) -> u64 {
    trainable * F32
        + state_bytes(states, trainable)
        + pass_bytes(spec, recompute, rows)
        + head_bytes(spec, rows)
}

/// Activations of a pass that keeps nothing for a backward one.
pub(crate) fn scoring_bytes(spec: &DecoderSpec, rows: u64) -> u64 {
    let floats = largest(spec, saved_per_row) + largest(spec, passing_per_row) + spec.width as u64;
    rows * floats * F32 + head_bytes(spec, rows)
}

/// The cache and logits of `answers` answers side by side, each of `positions` tokens.
pub(crate) fn generation_bytes(spec: &DecoderSpec, answers: u64, positions: u64) -> u64 {
    let cache = 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim;
    answers * (positions * cache as u64 + 2 * spec.vocab as u64) * F32
}

/// The weights.
pub(crate) fn weight_bytes(spec: &DecoderSpec) -> u64 {
    spec.n_parameters() as u64 * F32
}

/// Tokens of a training pass of `train`, at most.
fn pass_tokens(train: &TrainPlan, corpus: &CorpusSummary) -> u64 {
    let longest = corpus.longest.max(1);
    let pass = (train.micro_batch_tokens as u64).max(longest);
    let step = match train.batch_examples as u64 {
        0 => pass,
        n => n * corpus.tokens.div_ceil(corpus.examples.max(1)),
    };
    pass.min(step.max(longest))
}

/// Most bytes of tensors on the student's GPU in any stage. The `problems` of the evaluation are taken to
/// be no longer than the longest prompt of the corpus.
fn device_memory(
    student: &Student,
    attention: AttentionPattern,
    plan: &RunPlan,
    corpus: &CorpusSummary,
    problems: u64,
) -> Result<u64, EngineError> {
    let longest = corpus.longest.max(1);
    let rows = |tokens: u64| PassRows {
        rows: tokens * attention.rows_per_token() as u64,
        asked: tokens,
        positions: longest,
        attention,
    };
    let footprint = |train| Footprint::of(&student.spec, student.dtype, train);
    let training = [&plan.probe.training, &plan.train].map(|train| {
        let footprint = footprint(train);
        let check =
            footprint.gradient_check(rows(longest.max(t3s_engine::trainer::CHECKED_TOKENS)));
        footprint
            .training(rows(pass_tokens(train, corpus)))
            .max(check)
    });
    let scored = (plan.score.batch_tokens as u64)
        .max(longest)
        .min(corpus.tokens);
    let scoring = footprint(&plan.train).scoring(rows(scored));
    let mut most = training.into_iter().fold(scoring, u64::max);
    for (generate, prompts, samples) in [
        (
            &plan.bottleneck.generate,
            corpus.problems,
            plan.bottleneck.samples,
        ),
        (&plan.eval.generate, problems, plan.eval.samples),
    ] {
        let answers = Answers {
            plan: generate,
            rule: &student.decode,
            prompts,
            samples: samples as u64,
            longest: corpus.longest_prompt,
        };
        most = most.max(footprint(&plan.train).generation(answers)? + GENERATION_WORKSPACE);
    }
    Ok(most)
}

fn peak_memory(
    spec: &DecoderSpec,
    attention: AttentionPattern,
    plan: &RunPlan,
    corpus: &CorpusSummary,
    trainable: u64,
) -> u64 {
    let longest = corpus.longest.max(1);
    let training = [&plan.probe.training, &plan.train].map(|train| {
        let tokens = pass_tokens(train, corpus);
        let rows = tokens * attention.rows_per_token() as u64;
        training_bytes(spec, train.recompute, train.adamw.states, trainable, rows)
    });
    let generating = [&plan.bottleneck.generate, &plan.eval.generate].map(|generate| {
        let positions = longest + generate.max_new_tokens as u64;
        generation_bytes(spec, generate.batch as u64, positions)
    });
    let most = training.into_iter().chain(generating).max().unwrap_or(0);
    PROGRAM_BYTES + corpus.tokens * EXAMPLE_BYTES + weight_bytes(spec) + most
}

/// Seconds per token and per weight on this machine.
#[derive(Debug, Clone, Copy)]
struct Rates {
    train: f64,
    score: f64,
    generate: f64,
    optimiser: f64,
}

/// Seconds of one timed model.
#[derive(Debug, Clone, Copy)]
struct Timed {
    train: f64,
    score: f64,
    generate: f64,
    optimiser: f64,
}

impl Rates {
    fn measure(
        student: &Student,
        objective: &dyn Objective,
        plan: &RunPlan,
        corpus: &CorpusSummary,
    ) -> Result<Self, EngineError> {
        let spec = &student.spec;
        let sizes = Sizes::on(&student.device);
        let length = (corpus.tokens / corpus.examples.max(1)).clamp(4, sizes.tokens as u64);
        let pass = plan.train.micro_batch_tokens.clamp(1, sizes.tokens);
        let examples = (pass as u64).div_ceil(length).max(1);
        let answers = plan.eval.generate.batch.clamp(1, 256);
        let timed = |n_layers| {
            let small = DecoderSpec {
                n_layers,
                vocab: spec.vocab.min(sizes.vocab),
                eos_ids: Vec::new(),
                ..spec.clone()
            };
            time(
                &small,
                student,
                objective,
                plan,
                (length, examples, answers),
            )
        };
        // A model without blocks has nothing to adapt.
        let layers = sizes.layers.max(usize::from(plan.train.lora.is_some()));
        let (fewer, more) = (timed(layers)?, timed(layers + 1)?);
        let tokens = (length * examples) as f64;
        let generated = (answers * timed_steps(student)) as f64;
        let vocab = spec.vocab as f64 / spec.vocab.min(sizes.vocab) as f64;
        let whole = |fewer: f64, more: f64, units: f64| {
            let block = (more - fewer).max(0.0);
            let head = (fewer - layers as f64 * block).max(0.0);
            (vocab * head + spec.n_layers as f64 * block) / units
        };
        Ok(Self {
            train: whole(fewer.train, more.train, tokens),
            score: whole(fewer.score, more.score, tokens),
            generate: whole(fewer.generate, more.generate, generated),
            optimiser: more.optimiser,
        })
    }
}

/// Tokens of a timed answer.
fn timed_steps(student: &Student) -> usize {
    let steps = Sizes::on(&student.device).steps;
    steps.max(student.decode.unit())
}

/// An objective for a model with fewer ids.
struct Folded<'o> {
    objective: &'o dyn Objective,
    vocab: u32,
}

impl Objective for Folded<'_> {
    fn attention(&self) -> AttentionPattern {
        self.objective.attention()
    }

    fn weighting(&self) -> Weighting {
        self.objective.weighting()
    }

    fn prepare(
        &self,
        batch: &ExampleBatch<'_>,
        draw: Draw,
        out: &mut ModelBatch,
    ) -> Result<(), ComponentError> {
        self.objective.prepare(batch, draw, out)?;
        for id in &mut out.input_ids {
            *id = (*id).min(self.vocab - 1);
        }
        Ok(())
    }
}

/// Times one small model: the best of a few rounds, since everything that disturbs a round slows it.
fn time(
    spec: &DecoderSpec,
    student: &Student,
    objective: &dyn Objective,
    plan: &RunPlan,
    (length, examples, answers): (u64, u64, usize),
) -> Result<Timed, EngineError> {
    let objective = Folded {
        objective,
        vocab: spec.vocab as u32,
    };
    let rng = CounterRng::new(plan.seed, "estimate");
    let device = &student.device;
    let mut params = init_params(spec, plan.seed, device, student.dtype)?;
    if let Some(lora) = &plan.train.lora {
        lora::attach(spec, &mut params, lora, plan.seed)?;
    }
    let decoder = Decoder::new(spec.clone(), params, plan.train.lora.as_ref())?;
    let learning = trainable(spec, &plan.train)?.max(1);
    // A GPU computes on while the host goes on.
    let since = |started: Instant| -> Result<f64, EngineError> {
        device.synchronize()?;
        Ok(started.elapsed().as_secs_f64())
    };
    let reserved = student.decode.reserved();
    let id = |e, i| match (rng.bits(e, i) % spec.vocab as u64) as u32 {
        id if Some(id) == reserved => (id + 1) % spec.vocab as u32,
        id => id,
    };
    let tokens = (length * examples) as f64;
    let examples: Vec<Example> = (0..examples)
        .map(|e| Example {
            id: e,
            ids: (0..length).map(|i| id(e, i)).collect(),
            trainable: (0..length).map(|i| i >= length / 4).collect(),
            weights: vec![objective.weighting().neutral(); length as usize],
            prompt_len: length as usize / 4,
            noisy_ids: None,
            answer: None,
        })
        .collect();
    let prompts: Vec<Vec<u32>> = (0..answers as u64)
        .map(|e| (0..length.min(16)).map(|i| id(e, i)).collect())
        .collect();
    let part = Part {
        examples: examples.iter().collect(),
        draw: 0,
    };
    let how = Accumulation::of(&plan.train, plan.seed);
    let mut grads = Grads::new(&decoder.params);
    let mut optimizer = AdamW::new(plan.train.adamw.clone(), &decoder.params)?;
    let generating = GeneratePlan {
        max_new_tokens: timed_steps(student),
        batch: answers,
        ..plan.eval.generate.clone()
    };
    let mut timed = Timed {
        train: f64::INFINITY,
        score: f64::INFINITY,
        generate: f64::INFINITY,
        optimiser: f64::INFINITY,
    };
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let parts = [part.clone()];
        loss_and_gradients(&decoder, &objective, &parts, &how, &mut grads)?;
        timed.train = timed.train.min(since(started)?);

        let started = Instant::now();
        // A rate of 0 times the step, without moving the weights.
        let clip = grads.clip(0.0, &[], None)?;
        optimizer.step(&decoder.params, &mut grads, 0.0, &clip)?;
        let per_weight = since(started)? / learning as f64;
        timed.optimiser = timed.optimiser.min(per_weight);

        let started = Instant::now();
        let scoring = Scoring {
            draws: 1,
            ..Scoring::of(&plan.score, Columns::SCALARS, plan.seed)
        };
        let mut read = 0;
        score(&decoder, &objective, &examples, &scoring, &mut |done| {
            read = done;
            ControlFlow::Continue(())
        })?;
        let seconds = since(started)?;
        timed.score = timed.score.min(seconds * tokens / read.max(1) as f64);

        let started = Instant::now();
        let go_on = &mut |_| ControlFlow::Continue(());
        let rule = student.decode.within(spec.vocab);
        generate(&decoder, &rule, &prompts, 1, &generating, plan.seed, go_on)?;
        timed.generate = timed.generate.min(since(started)?);
    }
    Ok(timed)
}
