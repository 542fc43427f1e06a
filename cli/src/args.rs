//! The command line.

mod bench;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use t3s_core::plan::{DataFormat, DeviceChoice, Estimator, Normaliser, Recompute, TooLong};
use t3s_pipeline::analyse::{StepRule, Subsets};

pub use bench::BenchArgs;

/// Which tokens of a teacher's trace should a student learn from.
#[derive(Debug, Parser)]
#[command(name = "t3s", version, about, propagate_version = true)]
pub struct Args {
    /// Threads to compute with; 0: one per core
    #[arg(long, global = true, default_value_t = 0)]
    pub threads: usize,
    /// One JSON object per line on standard output, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a plan: probe, bottleneck, selection, training, evaluation; goes on where it stopped
    Run(PlanArgs),
    /// Plain fine-tuning: the training and evaluation of a plan, on every response token
    Train(PlanArgs),
    /// Run variants of a plan under several seeds and compare them; goes on where it stopped
    Ablate(AblateArgs),
    /// Validate a plan and predict what it costs, before any model is loaded
    Check(PlanArgs),
    /// Say which file and line a value of a plan comes from
    Explain(ExplainArgs),
    /// List every strategy, signal and model adapter with its options
    List(ListArgs),
    /// Write the gradient of every parameter for one batch, to hold against a reference
    Grads(GradsArgs),
    /// Score response tokens into a token store
    Score(ScoreArgs),
    /// Select tokens on stores that lie there
    Select(SelectArgs),
    /// Generate and grade answers
    Eval(EvalArgs),
    /// Diagnose a run: gradients of anchors and others, one-step interventions, loss transfer
    Analyse(AnalyseArgs),
    /// Show a trace token by token, coloured by a column
    Lens(LensArgs),
    /// Write report.html of a run again: charts, tables and the token lens on one page
    Report(ReportArgs),
    /// Add and take away the weights of models: t3s merge BASE + FINAL - BOTTLENECK --out FOLDER
    Merge(MergeArgs),
    /// Make a random student from a config and a tokenizer
    Init(InitArgs),
    /// Train a byte-level BPE tokenizer on the texts of data files
    Tokenizer(TokenizerArgs),
    /// Write the rows of a synthetic task
    Task(TaskArgs),
    /// Measure what training, scoring, generation and the head cost here, on random weights; prints
    /// one JSON object where standard output is no terminal
    Bench(BenchArgs),
    /// Begin a plugin, look into one, or hold one to the laws
    Plugin(PluginArgs),
}

/// `t3s merge`.
#[derive(Debug, ClapArgs)]
pub struct MergeArgs {
    /// Folders of models with + and - between them, each a word of its own
    #[arg(required = true, value_name = "FOLDER +|- FOLDER")]
    pub expression: Vec<String>,
    /// The folder to write, with the files and element types of the first model
    #[arg(long)]
    pub out: PathBuf,
}

/// `t3s plugin`.
#[derive(Debug, ClapArgs)]
pub struct PluginArgs {
    /// What to do
    #[command(subcommand)]
    pub command: PluginCommand,
}

/// What is done with plugins. Loading one runs its code with your rights.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Write a crate (or a C file with a Makefile) with a component, its test and a plan
    New {
        /// Name of the component and of the folder, kebab-case
        name: String,
        /// What it is
        #[arg(long, value_enum, default_value = "strategy")]
        kind: PluginKind,
        /// What it is written in
        #[arg(long, value_enum, default_value = "rust")]
        lang: PluginLanguage,
        /// The folder of the crate t3s-plugin, for Rust; found by itself in a checkout
        #[arg(long)]
        sdk: Option<PathBuf>,
    },
    /// Say what is in plugins, one line per component
    List {
        /// The libraries
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Say everything about a plugin: interface, digest, components, schemas of their options
    Inspect {
        /// The library
        file: PathBuf,
    },
    /// Hold a plugin's components to the laws, in a child process on guarded memory
    Test(PluginTestArgs),
}

/// `t3s plugin test`.
#[derive(Debug, ClapArgs)]
pub struct PluginTestArgs {
    /// The library
    pub file: PathBuf,
    /// An option of a component, e.g. my-rule.share=0.2; repeatable
    #[arg(long = "set", value_name = "COMPONENT.KEY=VALUE")]
    pub overrides: Vec<String>,
    /// A config.json for the model adapters; a generic one of their name when left out
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The child: where it notes what it is about to ask
    #[arg(long, hide = true)]
    pub notes: Option<PathBuf>,
    /// The child: the component to begin with
    #[arg(long, hide = true, default_value_t = 0)]
    pub component: usize,
    /// The child: what it asks
    #[arg(long, hide = true, value_enum, default_value = "from")]
    pub resume: Resume,
}

/// What a child of `t3s plugin test` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Resume {
    /// Every law, from a component on
    From,
    /// What its notes say, once more
    Same,
    /// What is smaller than its notes say
    Smaller,
}

/// The kinds of component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PluginKind {
    /// A selection strategy
    Strategy,
    /// A confidence signal
    Signal,
    /// A model adapter
    Adapter,
}

/// The languages of templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PluginLanguage {
    /// A crate
    Rust,
    /// A file and a Makefile
    C,
}

/// A plan.
#[derive(Debug, ClapArgs)]
pub struct PlanArgs {
    /// The plan, TOML
    pub plan: PathBuf,
    /// Override a key, e.g. selection.strategy=all or train.lora.targets='["q_proj"]'; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `t3s ablate`.
#[derive(Debug, ClapArgs)]
pub struct AblateArgs {
    /// The plan, TOML
    pub plan: PathBuf,
    /// Vary a key: selection.strategy=t3s,all; repeatable, every combination is a cell
    #[arg(long = "grid", value_name = "KEY=A,B,C")]
    pub grids: Vec<String>,
    /// A cell of its own: low:selection.strategy=static-confidence,selection.mask=low; repeatable
    #[arg(long = "cell", value_name = "NAME:KEY=VALUE,...")]
    pub cells: Vec<String>,
    /// A TOML file of cells, one table each: [cell.low.selection]; repeatable
    #[arg(long = "cells", value_name = "FILE")]
    pub cell_files: Vec<PathBuf>,
    /// Runs per cell: under the plan's seed and those after it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: u64,
    /// Give each seed a probe, a bottleneck and scores of its own too
    #[arg(long)]
    pub reseed_probe: bool,
    /// What differences are to: a cell, base, bottleneck or sft (the probe's last checkpoint)
    #[arg(long, default_value = "sft")]
    pub baseline: String,
    /// Runs at once, sharing the threads; 1 when left out. With slurm: tasks at once
    #[arg(long, value_parser = at_least_one)]
    pub jobs: Option<usize>,
    /// Who runs them: this process, or tasks of an array job whose script is written
    #[arg(long, value_enum, default_value = "local")]
    pub launcher: Launcher,
    /// Run nothing; write the table of what is there
    #[arg(long)]
    pub collect: bool,
    /// The ablation's folder; NAME-ablation beside the plan's run folder when left out
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Override a key in every cell; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Who runs the cells of an ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Launcher {
    /// This process
    Local,
    /// An array job
    Slurm,
}

/// `t3s explain`.
#[derive(Debug, ClapArgs)]
pub struct ExplainArgs {
    /// The plan, TOML
    pub plan: PathBuf,
    /// A key such as train.steps, or a table; all keys when left out
    #[arg(default_value = "")]
    pub key: String,
    /// Override a key; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `t3s list`.
#[derive(Debug, ClapArgs)]
pub struct ListArgs {
    /// Only these
    #[arg(value_enum)]
    pub kind: Option<ListKind>,
    /// A plugin, a library with further components; repeatable
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
}

/// What is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListKind {
    /// Selection strategies
    Strategies,
    /// Confidence signals
    Signals,
    /// Model adapters
    Adapters,
}

/// A model folder and where it computes.
#[derive(Debug, ClapArgs)]
pub struct ModelArgs {
    /// A Hugging Face folder, or a PEFT adapter (then with --base)
    pub model: PathBuf,
    /// The model that MODEL adapts
    #[arg(long)]
    pub base: Option<PathBuf>,
    /// auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: DeviceChoice,
    /// An option of the family, as in the student's table of a plan: objective.KEY=VALUE or decode.KEY=VALUE;
    /// repeatable
    #[arg(long = "student", value_name = "KEY=VALUE")]
    pub student: Vec<String>,
    /// A plugin, a library with further components; repeatable
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
}

/// A data file.
#[derive(Debug, ClapArgs)]
pub struct DataArgs {
    /// Rows: JSONL or Parquet
    #[arg(long)]
    pub data: PathBuf,
    /// How rows are read: auto, messages, sharegpt, question-answer, tokenized
    #[arg(long, default_value = "auto", value_parser = plan_value::<DataFormat>)]
    pub format: DataFormat,
    /// Longest example, tokens
    #[arg(long, default_value_t = 4096)]
    pub max_tokens: usize,
    /// What happens to a longer one: truncate, drop, error
    #[arg(long, default_value = "truncate", value_parser = plan_value::<TooLong>)]
    pub too_long: TooLong,
    /// A Jinja file used instead of the tokenizer's chat template
    #[arg(long)]
    pub chat_template: Option<PathBuf>,
    /// Only the first rows; 0: all
    #[arg(long, default_value_t = 0)]
    pub limit: usize,
}

/// `t3s grads`.
#[derive(Debug, ClapArgs)]
pub struct GradsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// The file to write: safetensors, by Hugging Face tensor name, and `loss`
    #[arg(long)]
    pub out: PathBuf,
    /// sum_weights, kept_tokens, all_response_tokens or per_sequence
    #[arg(long, default_value = "sum_weights", value_parser = plan_value::<Normaliser>)]
    pub normaliser: Normaliser,
    /// Several examples per pass, never seeing each other
    #[arg(long)]
    pub pack: bool,
    /// Most tokens per pass, with --pack
    #[arg(long, default_value_t = 8192)]
    pub batch_tokens: usize,
    /// Which activations are recomputed: none, block or "every N"
    #[arg(long, default_value = "none", value_parser = plan_value::<Recompute>)]
    pub recompute: Recompute,
}

/// `t3s score`.
#[derive(Debug, ClapArgs)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// The token store to write, Parquet
    #[arg(long)]
    pub out: PathBuf,
    /// Width of gradient sketches; 0: none
    #[arg(long, default_value_t = 0)]
    pub sketch_width: usize,
    /// How a model that masks its input is scored: corruptions or block-causal
    #[arg(long, default_value = "corruptions", value_parser = plan_value::<Estimator>)]
    pub estimator: Estimator,
    /// Corruptions of each example, for `corruptions`
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub draws: u32,
    /// Seed of the sketches and of the corruptions
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tokens per pass
    #[arg(long, default_value_t = 8192)]
    pub batch_tokens: usize,
}

/// `t3s select`.
#[derive(Debug, ClapArgs)]
pub struct SelectArgs {
    /// A token store and the checkpoint it is of, e.g. base=base.parquet; repeatable
    #[arg(long = "store", value_name = "CHECKPOINT=FILE", required = true)]
    pub stores: Vec<String>,
    /// Name of the strategy
    #[arg(long, default_value = "t3s")]
    pub strategy: String,
    /// A plugin, a library with further components; repeatable
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
    /// An option of the strategy (threshold=0.1) or a signal (signals.ID.KEY=VALUE); repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Seed of the strategy's draws
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The selection to write, Parquet
    #[arg(long)]
    pub out: PathBuf,
}

/// `t3s eval`.
#[derive(Debug, ClapArgs)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// Answers per problem
    #[arg(long, default_value_t = 1)]
    pub samples: usize,
    /// boxed, hash, or a regular expression whose first group is the answer
    #[arg(long, default_value = "boxed")]
    pub extract: String,
    /// exact, numeric or fraction
    #[arg(long, default_value = "numeric", value_parser = plan_value::<t3s_core::plan::Compare>)]
    pub compare: t3s_core::plan::Compare,
    /// Most tokens per answer
    #[arg(long, default_value_t = 512)]
    pub max_new_tokens: usize,
    /// 0: the likeliest token
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample among the likeliest tokens whose probabilities sum to this
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Sample among this many likeliest tokens; 0: all
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Answers generated side by side
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where the answers go, JSONL
    #[arg(long)]
    pub out: PathBuf,
}

/// `t3s analyse`.
#[derive(Debug, ClapArgs)]
pub struct AnalyseArgs {
    /// The run folder: what the plan calls out
    pub run: PathBuf,
    /// Examples to look at, evenly spread over the data
    #[arg(long, default_value_t = 32)]
    pub examples: usize,
    /// How the one step is taken: adamw (its first step) or sgd
    #[arg(long, default_value = "adamw", value_parser = plan_value::<StepRule>)]
    pub rule: StepRule,
    /// Rate of the one step; the run's peak when left out
    #[arg(long)]
    pub learning_rate: Option<f64>,
    /// The four parts of the transfer matrix: anchors (each group cut at its median confidence), or
    /// the quarters of a column such as delta-c, logp@base or entropy@bottleneck
    #[arg(long, default_value = "anchors")]
    pub subsets: Subsets,
    /// Optimiser steps on each part
    #[arg(long, default_value_t = 10)]
    pub transfer_steps: u64,
    /// Width of the gradient sketches on the map
    #[arg(long, default_value_t = 64)]
    pub sketch_width: usize,
    /// Most tokens on the map, of each model
    #[arg(long, default_value_t = 1500)]
    pub map_tokens: usize,
}

/// `t3s lens`.
#[derive(Debug, ClapArgs)]
pub struct LensArgs {
    /// A token store or a selection, Parquet; or a run folder
    pub store: PathBuf,
    /// Which example: its row number in the data
    #[arg(long, default_value_t = 0)]
    pub example: u64,
    /// The column to colour by, e.g. delta-c, weight, logp, entropy@base, 'signal ID'
    #[arg(long)]
    pub by: Option<String>,
    /// One line per token with its numbers
    #[arg(long)]
    pub numbers: bool,
    /// A folder with tokenizer.json; found by itself in a run folder
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// Colours: on a terminal, always or never. Auto respects NO_COLOR
    #[arg(long = "color", value_enum, default_value = "auto")]
    pub colour: ColourChoice,
    /// Columns to write in; those of the terminal when left out, 80 elsewhere
    #[arg(long)]
    pub width: Option<usize>,
}

/// When there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ColourChoice {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// `t3s report`.
#[derive(Debug, ClapArgs)]
pub struct ReportArgs {
    /// The run folder: what the plan calls out; or an ablation's
    pub run: PathBuf,
    /// The file to write; report.html in that folder when left out
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Most traces in the token lens
    #[arg(long, default_value_t = 200)]
    pub traces: usize,
}

/// `t3s init`.
#[derive(Debug, ClapArgs)]
pub struct InitArgs {
    /// A Hugging Face config.json
    #[arg(long)]
    pub config: PathBuf,
    /// A folder with tokenizer.json
    #[arg(long)]
    pub tokenizer: PathBuf,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// A plugin, a library with further components; repeatable
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
    /// The folder to make
    #[arg(long)]
    pub out: PathBuf,
}

/// `t3s tokenizer`.
#[derive(Debug, ClapArgs)]
pub struct TokenizerArgs {
    /// Text files, or JSONL or Parquet files whose texts are used
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Only these fields of JSONL or Parquet rows; all texts when left out; repeatable
    #[arg(long = "field")]
    pub fields: Vec<String>,
    /// Number of tokens, special ones included
    #[arg(long, default_value_t = 4096)]
    pub vocab: usize,
    /// The folder to make
    #[arg(long)]
    pub out: PathBuf,
}

/// `t3s task`.
#[derive(Debug, ClapArgs)]
pub struct TaskArgs {
    /// Which task
    #[command(subcommand)]
    pub task: Task,
}

/// The synthetic tasks.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Two or three steps of arithmetic, told tersely or in a teacher's longer style
    Arithmetic {
        /// How many rows
        #[arg(long)]
        rows: u64,
        /// Who tells the solution
        #[arg(long, value_enum, default_value = "student")]
        style: StyleArg,
        /// What every question begins with
        #[arg(long, default_value = "")]
        prefix: String,
        /// Problems that are never among the others
        #[arg(long)]
        held_out: bool,
        /// The largest number in a problem; operands go up to a fifth of it
        #[arg(long, default_value_t = 99, value_parser = clap::value_parser!(u32).range(99..=999_999))]
        largest: u32,
        /// Seed of the problems
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// The JSONL file to write
        #[arg(long)]
        out: PathBuf,
    },
}

/// Who tells a solution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StyleArg {
    /// Equations only
    Student,
    /// In words, with checks
    Teacher,
    /// In words, with checks, each step digit by digit
    Tutor,
}

/// A value as a plan would write it, so that the command line and plans have one vocabulary.
fn plan_value<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|e| e.to_string())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(error) => Err(format!("{error}")),
    }
}

fn device(text: &str) -> Result<DeviceChoice, String> {
    DeviceChoice::try_from(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use t3s_pipeline::bench::Work;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn values_are_spelt_as_in_plans() {
        let parse = |text: &str| Args::try_parse_from(text.split_whitespace());
        let args = parse("t3s grads m --data d --out o --normaliser per_sequence").unwrap();
        let Command::Grads(grads) = args.command else {
            panic!("another command")
        };
        assert_eq!(grads.normaliser, Normaliser::PerSequence);
        let error = parse("t3s grads m --data d --out o --normaliser mean").unwrap_err();
        assert!(error.to_string().contains("sum_weights"), "{error}");
        assert!(parse("t3s score m --data d --out o --device gpu").is_err());
    }
    #[test]
    fn benchmarks_take_options_that_go_together() {
        let plan = |text: &str| {
            let args = Args::try_parse_from(text.split_whitespace()).map_err(|e| e.to_string())?;
            match args.command {
                Command::Bench(bench) => bench.plan(),
                _ => Err("another command".to_owned()),
            }
        };
        let lora = plan("t3s bench train --method lora --rank 4 --seq 64 --batch 2").unwrap();
        let Work::Train {
            rows,
            lora: Some(adapted),
            ..
        } = lora.work
        else {
            panic!("{:?}", lora.work)
        };
        assert_eq!((adapted.rank, rows.pass_tokens), (4, 128));
        let error = plan("t3s bench train --rank 4").unwrap_err();
        assert!(error.contains("--method lora"), "{error}");
        for wrong in [
            "t3s bench",
            "t3s bench decode",
            "t3s bench score --method lora",
            "t3s bench generate --kept 0.4",
            "t3s bench train --method qlora",
        ] {
            assert!(plan(wrong).is_err(), "{wrong}");
        }
    }
}
