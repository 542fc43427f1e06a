//! `t3s bench`.

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use t3s_core::plan::{DeviceChoice, LoraPlan, Recompute, StatePrecision};
use t3s_pipeline::bench::{BenchPlan, Rows, Work};

use super::{device, plan_value};

/// `t3s bench`.
#[derive(Debug, ClapArgs)]
pub struct BenchArgs {
    /// What is measured
    #[command(subcommand)]
    pub work: BenchWork,
}

/// The kinds of work.
#[derive(Debug, Subcommand)]
pub enum BenchWork {
    /// Optimiser steps: forward, backward, clipping, AdamW
    Train(TrainBench),
    /// The scoring pass: statistics of every token, no gradients
    Score(RowsBench),
    /// Greedy answers of one length: reading the prompts and writing apart
    Generate(GenerateBench),
    /// The head's forward and backward, with all rows and with those kept
    Head(HeadBench),
}

/// What all have in common.
#[derive(Debug, ClapArgs)]
pub struct CommonBench {
    /// tiny, qwen3-0.6b, 1.7b, 4b, 8b, 14b, 32b (each qwen3-...), or a config.json
    #[arg(long, default_value = "tiny")]
    pub config: String,
    /// Repetitions that count
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// Repetitions before them
    #[arg(long, default_value_t = 2)]
    pub warmup: usize,
    /// auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: DeviceChoice,
    /// Seed of weights and tokens
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// On a GPU: one repetition more, with a clock around every kernel
    #[arg(long)]
    pub profile: bool,
}

/// The rows of a step.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub struct Examples {
    /// Tokens per example
    #[arg(long, default_value_t = 512)]
    pub seq: usize,
    /// Examples per step
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Most tokens per pass, packed; the whole step in one when left out
    #[arg(long)]
    pub tokens: Option<usize>,
}

impl Examples {
    fn rows(self, kept: f64) -> Rows {
        Rows {
            batch: self.batch,
            seq: self.seq,
            pass_tokens: self.tokens.unwrap_or(self.batch.saturating_mul(self.seq)),
            kept,
        }
    }
}

/// `t3s bench score`.
#[derive(Debug, ClapArgs)]
pub struct RowsBench {
    #[command(flatten)]
    pub common: CommonBench,
    #[command(flatten)]
    pub examples: Examples,
    /// Share of the tokens that are asked about
    #[arg(long, default_value_t = 1.0)]
    pub kept: f64,
}

/// `t3s bench train`.
#[derive(Debug, ClapArgs)]
pub struct TrainBench {
    #[command(flatten)]
    pub rows: RowsBench,
    /// Which weights learn
    #[arg(long, value_enum, default_value = "full")]
    pub method: Method,
    /// Of the adapters, with --method lora; 16 when left out
    #[arg(long)]
    pub rank: Option<usize>,
    /// Which activations are recomputed: none, block or "every N"
    #[arg(long, default_value = "none", value_parser = plan_value::<Recompute>)]
    pub recompute: Recompute,
    /// How AdamW's moments are kept: f32, bf16 or 8bit
    #[arg(long, default_value = "f32", value_parser = plan_value::<StatePrecision>)]
    pub states: StatePrecision,
}

/// Which weights learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// All
    Full,
    /// Low-rank adapters of every projection
    Lora,
}

/// `t3s bench generate`.
#[derive(Debug, ClapArgs)]
pub struct GenerateBench {
    #[command(flatten)]
    pub common: CommonBench,
    /// Tokens per prompt
    #[arg(long, default_value_t = 128)]
    pub seq: usize,
    /// Answers written side by side
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Tokens per answer
    #[arg(long, default_value_t = 128)]
    pub new_tokens: usize,
}

/// `t3s bench head`.
#[derive(Debug, ClapArgs)]
pub struct HeadBench {
    #[command(flatten)]
    pub common: CommonBench,
    /// Hidden states per example
    #[arg(long, default_value_t = 512)]
    pub seq: usize,
    /// Examples
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Share of the rows with a target, besides all of them
    #[arg(long, default_value_t = 0.4)]
    pub kept: f64,
}

impl BenchArgs {
    /// What is asked for.
    ///
    /// # Errors
    /// When options do not go together.
    pub fn plan(&self) -> Result<BenchPlan, String> {
        let (common, work) = match &self.work {
            BenchWork::Train(train) => {
                let rows = train.rows.examples.rows(train.rows.kept);
                let lora = match (train.method, train.rank) {
                    (Method::Full, Some(rank)) => {
                        return Err(format!(
                            "--rank {rank}: only adapters have one; add --method lora"
                        ));
                    }
                    (Method::Full, None) => None,
                    (Method::Lora, rank) => {
                        let plan = LoraPlan::default();
                        let rank = rank.unwrap_or(plan.rank);
                        Some(LoraPlan { rank, ..plan })
                    }
                };
                let work = Work::Train {
                    rows,
                    lora,
                    recompute: train.recompute,
                    states: train.states,
                };
                (&train.rows.common, work)
            }
            BenchWork::Score(score) => {
                let rows = score.examples.rows(score.kept);
                (&score.common, Work::Score { rows })
            }
            BenchWork::Generate(generate) => {
                let work = Work::Generate {
                    batch: generate.batch,
                    prompt: generate.seq,
                    new: generate.new_tokens,
                };
                (&generate.common, work)
            }
            BenchWork::Head(head) => {
                let examples = Examples {
                    seq: head.seq,
                    batch: head.batch,
                    tokens: None,
                };
                let rows = examples.rows(head.kept);
                (&head.common, Work::Head { rows })
            }
        };
        Ok(BenchPlan {
            config: common.config.clone(),
            work,
            steps: common.steps,
            warmup: common.warmup,
            device: common.device.clone(),
            seed: common.seed,
            profile: common.profile,
        })
    }
}
