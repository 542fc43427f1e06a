//! `t3s bench`: what training, scoring, generation and the head cost on random weights of a true
//! geometry.

mod flops;
mod gemm;
mod geometry;
pub mod machine;
mod report;
mod work;

use candle_core::{DType, Device};
use serde_json::{Map, Value, json};
use t3s_core::{
    AttentionPattern, DecodeRule, DecoderSpec,
    plan::{DeviceChoice, LoraPlan, Precision, Recompute, StatePrecision, TrainPlan},
    registry::Registry,
};
use t3s_engine::{
    EngineError, Footprint,
    footprint::{self, Answers, GENERATION_WORKSPACE, PassRows},
    memory,
};

pub use gemm::GemmPeak;
pub use report::{Memory, Part, Report, Spread};

use crate::{error::PipelineError, estimate};
use machine::Machine;

/// What is measured, and how often.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchPlan {
    /// Name of a geometry, or the path of a `config.json`.
    pub config: String,
    /// The work.
    pub work: Work,
    /// Repetitions that count.
    pub steps: usize,
    /// Repetitions before them.
    pub warmup: usize,
    /// Where it is done.
    pub device: DeviceChoice,
    /// Of weights and tokens.
    pub seed: u64,
    /// Whether one repetition more is run with a clock around every kernel of a GPU.
    pub profile: bool,
}

/// The work that is measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Optimiser steps: forward, backward, clipping, AdamW.
    Train {
        /// What is read.
        rows: Rows,
        /// Adapters that learn instead of all weights.
        lora: Option<LoraPlan>,
        /// Which activations are computed twice.
        recompute: Recompute,
        /// How AdamW's moments are kept.
        states: StatePrecision,
    },
    /// Teacher-forced statistics of every row with a target.
    Score {
        /// What is read.
        rows: Rows,
    },
    /// Answers of one length, greedily: the prompts' pass and the others apart.
    Generate {
        /// Answers side by side.
        batch: usize,
        /// Tokens of each prompt.
        prompt: usize,
        /// Tokens of each answer; at least 2.
        new: usize,
    },
    /// The head's forward and backward with all rows, and with `rows.kept` of them.
    Head {
        /// What is read.
        rows: Rows,
    },
}

/// The rows of a step: `batch` examples of `seq` tokens, packed into passes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rows {
    /// Examples per step.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Most tokens per pass; a step takes as many passes as it needs.
    pub pass_tokens: usize,
    /// Share of the predicted tokens that have a target, above 0 up to 1; evenly spread.
    pub kept: f64,
}

impl Rows {
    /// Tokens per step.
    fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    /// Whether row `row` of many has a target: every row at 1, two of five at 0.4.
    fn keeps(&self, row: usize) -> bool {
        let below = |n: usize| (n as f64 * self.kept).floor();
        below(row + 1) > below(row)
    }

    /// Whether the token at `position` of an example is a target; nothing predicts the first.
    fn is_target(&self, position: usize) -> bool {
        position > 0 && self.keeps(position - 1)
    }

    /// Targets per step.
    fn targets(&self) -> usize {
        self.batch * (0..self.seq).filter(|p| self.is_target(*p)).count()
    }
}

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Self::Train { .. } => "train",
            Self::Score { .. } => "score",
            Self::Generate { .. } => "generate",
            Self::Head { .. } => "head",
        }
    }

    /// The model that is made: for the head, one without blocks.
    fn spec(&self, spec: &DecoderSpec) -> DecoderSpec {
        match self {
            Self::Head { .. } => DecoderSpec {
                n_layers: 0,
                ..spec.clone()
            },
            _ => spec.clone(),
        }
    }

    fn lora(&self) -> Option<&LoraPlan> {
        match self {
            Self::Train { lora, .. } => lora.as_ref(),
            _ => None,
        }
    }

    /// Tokens per example and examples.
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Train { rows, .. } | Self::Score { rows } | Self::Head { rows } => {
                (rows.seq, rows.batch)
            }
            Self::Generate { batch, prompt, .. } => (*prompt, *batch),
        }
    }

    fn options(&self) -> Map<String, Value> {
        let options = match self {
            Self::Train {
                rows,
                recompute,
                states,
                ..
            } => {
                let recompute = String::from(*recompute);
                json!({ "pass_tokens": rows.pass_tokens, "recompute": recompute, "states": states })
            }
            Self::Score { rows } => json!({ "pass_tokens": rows.pass_tokens }),
            Self::Generate { new, .. } => json!({ "new_tokens": new }),
            Self::Head { .. } => json!({}),
        };
        match options {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

impl BenchPlan {
    fn check(&self, spec: &DecoderSpec) -> Result<(), PipelineError> {
        let refuse = |key: &str, message: String| Err(PipelineError::plan(key, message));
        if self.steps == 0 {
            return refuse("--steps", "0; at least one repetition has to count".into());
        }
        let (seq, batch) = self.work.size();
        if batch == 0 {
            return refuse("--batch", "0; there has to be an example".into());
        }
        let longest = match self.work {
            Work::Generate { prompt: 0, .. } => {
                return refuse("--seq", "0; a prompt has at least one token".into());
            }
            Work::Generate { new: 0 | 1, .. } => {
                let message = "the first token is the prompt's; ask for at least 2";
                return refuse("--new-tokens", message.into());
            }
            Work::Generate { prompt, new, .. } => prompt + new,
            _ => seq,
        };
        if longest > spec.max_positions {
            let most = spec.max_positions;
            return refuse(
                "--seq",
                format!("{longest} tokens; {} reads up to {most}", self.config),
            );
        }
        let (Work::Train { rows, .. } | Work::Score { rows } | Work::Head { rows }) = &self.work
        else {
            return Ok(());
        };
        if !(rows.kept > 0.0 && rows.kept <= 1.0) {
            let kept = rows.kept;
            return refuse("--kept", format!("{kept}; a share above 0, up to 1"));
        }
        if rows.seq < 2 || rows.targets() == 0 {
            let (seq, kept) = (rows.seq, rows.kept);
            return refuse(
                "--seq",
                format!("of {seq} tokens, {kept} of them kept, none is a target; ask for more"),
            );
        }
        if rows.pass_tokens < rows.seq {
            let (pass, seq) = (rows.pass_tokens, rows.seq);
            return refuse(
                "--tokens",
                format!("{pass} per pass; an example has {seq}, and is not cut"),
            );
        }
        Ok(())
    }

    /// Most bytes of tensors that a GPU will hold at once.
    fn predicted_on_device(
        &self,
        spec: &DecoderSpec,
        dtype: DType,
        train: &TrainPlan,
    ) -> Result<u64, EngineError> {
        let footprint = Footprint::of(spec, dtype, train);
        let pass = |rows: &Rows| {
            let tokens = rows.pass_tokens.min(rows.tokens());
            PassRows {
                rows: tokens as u64,
                asked: (tokens as f64 * rows.kept).ceil() as u64,
                positions: rows.seq as u64,
                attention: AttentionPattern::Causal,
            }
        };
        Ok(match &self.work {
            Work::Train { rows, .. } => footprint.training(pass(rows)),
            Work::Score { rows } => footprint.scoring(pass(rows)),
            Work::Generate { batch, prompt, new } => {
                let answers = Answers {
                    plan: &work::answers_plan(*batch, *new),
                    rule: &DecodeRule::LeftToRight,
                    prompts: *batch as u64,
                    samples: 1,
                    longest: *prompt as u64,
                };
                footprint.generation(answers)? + GENERATION_WORKSPACE
            }
            Work::Head { rows } => {
                let all = PassRows {
                    rows: rows.tokens() as u64,
                    asked: rows.tokens() as u64,
                    positions: 1,
                    attention: AttentionPattern::Causal,
                };
                footprint.weights() + footprint.gradients() + footprint.pass(all)
            }
        })
    }

    /// Most bytes that the process will hold at once on the CPU.
    fn predicted_bytes(&self, spec: &DecoderSpec, trainable: u64) -> u64 {
        let weights = estimate::weight_bytes(spec);
        let pass = |rows: &Rows| rows.pass_tokens.min(rows.tokens()) as u64;
        let rounds = (self.steps + self.warmup) as u64;
        let work = match &self.work {
            Work::Train {
                rows,
                lora,
                recompute,
                states,
            } => {
                let adapters = lora.as_ref().map_or(0, |_| 4 * trainable);
                let text = rounds * rows.tokens() as u64 * estimate::EXAMPLE_BYTES;
                let step =
                    estimate::training_bytes(spec, *recompute, *states, trainable, pass(rows));
                adapters + text + step
            }
            Work::Score { rows } => estimate::scoring_bytes(spec, pass(rows)),
            Work::Generate { batch, prompt, new } => {
                // The matrices are packed anew for it on the CPU.
                let cache = estimate::generation_bytes(spec, *batch as u64, (prompt + new) as u64);
                weights + cache
            }
            Work::Head { rows } => {
                let states = 2 * 4 * (rows.tokens() * spec.width) as u64;
                weights + states + estimate::head_bytes(spec, rows.tokens() as u64)
            }
        };
        estimate::PROGRAM_BYTES + weights + work
    }
}

/// Measures what `plan` says.
///
/// # Errors
/// When the plan makes no sense, the device is not there or has no room (the message has the predicted
/// bytes; nothing has been allocated then), or the engine fails.
pub fn bench(plan: &BenchPlan, registry: &Registry) -> Result<Report, PipelineError> {
    let whole = geometry::open(&plan.config, registry)?;
    plan.check(&whole)?;
    let spec = plan.work.spec(&whole);
    let (device, dtype) = t3s_engine::device::open(&plan.device, Precision::Auto)
        .map_err(|error| PipelineError::plan("--device", error.to_string()))?;
    let failed = PipelineError::engine("bench");
    let train = work::train_plan(plan);
    let learns = matches!(plan.work, Work::Train { .. });
    let trainable = match learns {
        true => estimate::trainable(&spec, &train).map_err(&failed)?,
        false => 0,
    };
    let (predicted, outside) = match device {
        Device::Cpu => (plan.predicted_bytes(&spec, trainable), 0),
        _ => (
            plan.predicted_on_device(&spec, dtype, &train)
                .map_err(&failed)?,
            footprint::OUTSIDE_BYTES,
        ),
    };
    if let Some(available) = memory::available_bytes(&device)
        && predicted + outside > available
    {
        return Err(PipelineError::plan(
            "--config",
            format!(
                "{} {} needs about {} bytes ({:.1} GiB), {available} ({:.1} GiB) are free; take \
                 fewer --tokens per pass, --recompute block, --states 8bit, --method lora or a smaller \
                 model",
                plan.work.name(),
                plan.config,
                predicted,
                gib(predicted),
                gib(available),
            ),
        ));
    }
    memory::reset_peak(&device);
    let machine = Machine::now(t3s_engine::device::name(&device));
    let measured = work::measure(plan, &spec, &whole, (&device, dtype), train).map_err(&failed)?;
    let peak_bytes = memory::peak_bytes(&device);
    let gemm = GemmPeak::measure(&device, dtype).map_err(&failed)?;
    let (seq, batch) = plan.work.size();
    Ok(Report {
        what: plan.work.name(),
        who: "t3s",
        version: env!("CARGO_PKG_VERSION"),
        config: plan.config.clone(),
        parameters: spec.n_parameters() as u64,
        trainable,
        method: learns.then_some(match plan.work.lora() {
            Some(_) => "lora",
            None => "full",
        }),
        rank: plan.work.lora().map(|lora| lora.rank),
        dtype: name_of_type(dtype).to_owned(),
        machine,
        seq,
        batch,
        kept: match &plan.work {
            Work::Train { rows, .. } | Work::Score { rows } | Work::Head { rows } => rows.kept,
            Work::Generate { .. } => 1.0,
        },
        warmup: plan.warmup,
        steps: plan.steps,
        options: plan.work.options(),
        parts: measured
            .parts
            .into_iter()
            .map(|part| part.against(&gemm))
            .collect(),
        gemm,
        memory: Memory {
            peak_bytes,
            kind: if device.is_cpu() {
                "resident"
            } else {
                "allocated"
            },
            predicted_bytes: Some(predicted),
        },
        loss: measured.loss,
    })
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

fn name_of_type(dtype: DType) -> &'static str {
    dtype.as_str()
}
