//! The tables of a plan. Each doc comment is the manual's entry for its key.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::merge::MergePlan;
pub use super::train_section::{
    AdamWPlan, LoraPlan, Normaliser, Recompute, Schedule, StatePrecision, TrainPlan,
};

/// A resolved plan. What is saved with every run, and what its stages are keyed by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunPlan {
    /// Name of the run, shown in tables.
    pub name: String,
    /// Seed of every random stream of the run; each stream has a name of its own.
    pub seed: u64,
    /// Where it computes.
    pub device: DeviceChoice,
    /// The run folder.
    #[schemars(extend("x-path" = true))]
    pub out: PathBuf,
    /// The model that learns.
    pub student: StudentPlan,
    /// The teacher traces.
    pub data: DataPlan,
    /// How an answer is found in a text and compared with the gold one.
    #[serde(default)]
    pub grader: GraderPlan,
    /// The plain fine-tuning run that lays down the trajectory.
    pub probe: ProbePlan,
    /// Which checkpoint of the probe is the imitation bottleneck.
    #[serde(default)]
    pub bottleneck: BottleneckPlan,
    /// Another model of the same tokenizer, for strategies that read `logp@reference`.
    #[serde(default)]
    pub reference: ReferencePlan,
    /// Which columns the scoring pass records besides `logp`.
    #[serde(default)]
    pub score: ScorePlan,
    /// Named signals with options of their own.
    #[serde(default)]
    pub signals: BTreeMap<String, SignalPlan>,
    /// Which tokens are in the loss.
    pub selection: SelectionPlan,
    /// The training run.
    pub train: TrainPlan,
    /// Further models, each a signed sum of others, examined beside the student, e.g.
    /// `rrt = "base + final - bottleneck"`. The words are `base`, `bottleneck`, `final`, `step:N` and
    /// `student`.
    #[serde(default)]
    pub merge: BTreeMap<String, MergePlan>,
    /// How models are compared at the end.
    #[serde(default)]
    pub eval: EvalPlan,
    /// Components from outside. A plugin runs with your rights.
    #[serde(default)]
    pub plugins: PluginsPlan,
}

/// `[plugins]`: libraries with further components.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PluginsPlan {
    /// Libraries with further signals, strategies and model adapters. `$NAME` and `${NAME}` stand
    /// for environment variables.
    #[schemars(extend("items" = { "type": "string", "x-path": true }))]
    pub load: Vec<PathBuf>,
    /// What the SHA-256 of a library has to be, by its file name, e.g.
    /// `{ "librule.so" = "9f86d0..." }`. A resolved plan pins every library that was loaded.
    pub sha256: BTreeMap<String, String>,
}

/// Where a run computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
#[schemars(with = "String")]
pub enum DeviceChoice {
    /// `"auto"`: the first CUDA device where there is one, else the CPU.
    Auto,
    /// `"cpu"`.
    Cpu,
    /// `"cuda:N"`.
    Cuda(usize),
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        match choice {
            DeviceChoice::Auto => "auto".to_owned(),
            DeviceChoice::Cpu => "cpu".to_owned(),
            DeviceChoice::Cuda(n) => format!("cuda:{n}"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("{text:?} is not a device; write auto, cpu or cuda:N")),
        }
    }
}

/// The type of weights and activations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 on a GPU, f32 on the CPU.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// bfloat16; GPUs only.
    Bf16,
}

/// `[student]`: the model that learns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StudentPlan {
    /// A Hugging Face folder: `config.json`, `tokenizer.json`, safetensors.
    #[schemars(extend("x-path" = true))]
    pub path: PathBuf,
    /// Name of the model adapter; empty: the one that claims `config.json`.
    #[serde(default)]
    pub adapter: String,
    /// The type of weights and activations. Sums, statistics, gradients, adapters and optimiser
    /// states are f32 whatever it is.
    #[serde(default)]
    pub precision: Precision,
    /// Options of the family's training objective.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub objective: toml::Table,
    /// Options of the family's decoding.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub decode: toml::Table,
}

impl StudentPlan {
    /// The model in the folder `path`, by the adapter that claims it, with default options.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            adapter: String::new(),
            precision: Precision::Auto,
            objective: toml::Table::new(),
            decode: toml::Table::new(),
        }
    }
}

/// `[data]`: the teacher traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataPlan {
    /// A JSONL or Parquet file.
    #[schemars(extend("x-path" = true))]
    pub train: PathBuf,
    /// How its rows are read.
    #[serde(default)]
    pub format: DataFormat,
    /// Longest example, tokens, prompt included.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// What happens to a longer one.
    #[serde(default)]
    pub too_long: TooLong,
    /// A Jinja file used instead of the tokenizer's chat template; empty: the tokenizer's own
    /// (`chat_template.jinja` or `tokenizer_config.json` in the student's folder).
    #[serde(default)]
    #[schemars(extend("x-path" = true))]
    pub chat_template: PathBuf,
    /// A system message put before every conversation that has none; empty: none.
    #[serde(default)]
    pub system: String,
    /// Use only the first rows, counted before `filter`; 0: all.
    #[serde(default)]
    pub limit: usize,
    /// Row fields to read, where they are not called `question`, `answer`, `messages`, ...
    #[serde(default)]
    pub fields: FieldNames,
    /// Only rows in which a field has a given value; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<RowFilter>,
}

/// `[data.filter]`: only rows in which a field has a given value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RowFilter {
    /// The field. A dot goes down: `175b_verification.is_correct`.
    pub field: String,
    /// Its value: a text, a number, or true or false.
    #[schemars(with = "serde_json::Value")]
    pub equals: toml::Value,
}

impl DataPlan {
    /// The file `train`, with every other key at its default.
    pub fn new(train: PathBuf) -> Self {
        Self {
            train,
            format: DataFormat::default(),
            max_tokens: default_max_tokens(),
            too_long: TooLong::default(),
            chat_template: PathBuf::new(),
            system: String::new(),
            limit: 0,
            fields: FieldNames::default(),
            filter: None,
        }
    }
}

/// Names of the fields of a question-answer row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FieldNames {
    /// The problem.
    pub question: String,
    /// The trace that is learnt from. A dot goes down: `175b_verification.solution`.
    pub response: String,
    /// The gold answer; empty: found in the response by the grader's rule.
    pub answer: String,
}

impl Default for FieldNames {
    fn default() -> Self {
        Self {
            question: "question".into(),
            response: "response".into(),
            answer: "answer".into(),
        }
    }
}

/// How rows are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// By the fields of the first row.
    #[default]
    Auto,
    /// `{"messages": [{"role": ..., "content": ...}], "answer": ...}`.
    Messages,
    /// `{"conversations": [{"from": "human", "value": ...}]}`.
    Sharegpt,
    /// `{"question": ..., "response": ..., "answer": ...}`.
    QuestionAnswer,
    /// `{"input_ids": [...], "prompt_length": n, "weights": [...]}`.
    Tokenized,
}

/// What happens to an example longer than `max_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TooLong {
    /// The end is cut off.
    #[default]
    Truncate,
    /// The example is left out.
    Drop,
    /// The run stops before it starts.
    Error,
}

/// `[grader]`: how an answer is found in a text and compared with the gold one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GraderPlan {
    /// Where the answer is: `boxed` (the last `\boxed{}`), `hash` (after the last `####`), or a
    /// regular expression whose first group is the answer; the last match counts.
    pub extract: String,
    /// When two answers are equal.
    pub compare: Compare,
}

impl Default for GraderPlan {
    fn default() -> Self {
        Self {
            extract: "boxed".into(),
            compare: Compare::Numeric,
        }
    }
}

/// When two answers are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// The same text, spaces at the ends aside.
    Exact,
    /// The same number: thousands separators, currency signs and percent signs aside, to 1e-6
    /// relative; texts that are no numbers fall back to exact.
    Numeric,
    /// Numeric, and `1/2`, `\frac{1}{2}` and `0.5` are one number.
    Fraction,
}

/// `[reference]`: another model of the same tokenizer, what strategies know as `reference`. One of
/// the two names it; without either there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReferencePlan {
    /// A Hugging Face folder, e.g. `student` in the run folder of another run, or a PEFT adapter of
    /// the student; it is scored where a strategy asks for it. Empty: none.
    #[schemars(extend("x-path" = true))]
    pub path: PathBuf,
    /// A token store of the same data, as `t3s score` and runs write them; it is read as it is.
    /// Empty: none.
    #[schemars(extend("x-path" = true))]
    pub store: PathBuf,
}

impl ReferencePlan {
    /// Whether there is one.
    pub fn is_named(&self) -> bool {
        !self.path.as_os_str().is_empty() || !self.store.as_os_str().is_empty()
    }
}

/// `[probe]`: plain supervised fine-tuning that lays down the trajectory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbePlan {
    /// Optimiser steps between two checkpoints. Step 0 (the base) and the last step are always
    /// checkpoints.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// Seed of everything up to the scores: the probe's data order and adapter, the draws of the
    /// answers that find the bottleneck, gradient sketches. Runs that share it share these stages.
    pub seed: u64,
    /// Everything `[train]` says, which `[probe]` inherits key by key.
    pub training: TrainPlan,
}

/// `[bottleneck]`: which checkpoint of the probe is the imitation bottleneck.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BottleneckPlan {
    /// What is lowest there.
    pub by: BottleneckRule,
    /// A step named by hand; 0: found by the rule.
    pub step: u64,
    /// Generated answers per training prompt and checkpoint, for `train-accuracy`.
    pub samples: usize,
    /// Use only the first prompts; 0: all.
    pub prompts: usize,
    /// How far below the base the lowest value has to be, in the rule's unit (accuracy: a share of
    /// 1; log-probability: nats); with less the run goes on and warns that there was no drop.
    pub minimum_drop: f64,
    /// Which of equally low checkpoints is taken.
    pub tie: Tie,
    /// Measure while the probe trains, and stop it when the bottleneck is behind it (`[valley]` in
    /// docs/equations.md); false: the whole probe first.
    pub watch: bool,
    /// For `watch`: each measurement is the mean with this many on either side; 0: as measured.
    pub smoothing: u64,
    /// For `watch`: measurements after the lowest one, none of them lower, before it counts.
    pub patience: u64,
    /// Where the training with the selection starts.
    pub then: Then,
    /// How answers are generated.
    pub generate: GeneratePlan,
}

impl Default for BottleneckPlan {
    fn default() -> Self {
        Self {
            by: BottleneckRule::TrainAccuracy,
            step: 0,
            samples: 4,
            prompts: 0,
            minimum_drop: 0.0,
            tie: Tie::Earliest,
            watch: false,
            smoothing: 0,
            patience: 2,
            then: Then::Restart,
            generate: GeneratePlan::default(),
        }
    }
}

/// What is lowest at the bottleneck. Step 0 never counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BottleneckRule {
    /// Accuracy of generated answers on the training prompts (`[bottleneck]` in
    /// docs/equations.md). Falls back to `answer-token-logp`, with a warning, where no row has an
    /// answer or nothing is ever right.
    TrainAccuracy,
    /// Mean log-probability of the answer's own tokens in the trace; needs no verifier.
    AnswerTokenLogp,
}

/// Which of equally low checkpoints is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Tie {
    /// The first.
    Earliest,
    /// The last.
    Latest,
}

/// Where the training with the selection starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// From the base, as in the paper.
    Restart,
    /// From the probe's last checkpoint, with a fresh optimiser.
    GoOn,
}

/// `[*.generate]`: how answers are generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratePlan {
    /// Most tokens per answer; an answer that reaches it is counted as truncated.
    pub max_new_tokens: usize,
    /// Divides the logits; 0: the arg max.
    pub temperature: f64,
    /// Sample among the likeliest tokens whose probabilities sum to this.
    pub top_p: f64,
    /// Sample among this many likeliest tokens; 0: all.
    pub top_k: usize,
    /// Answers generated side by side.
    pub batch: usize,
}

impl Default for GeneratePlan {
    fn default() -> Self {
        Self {
            max_new_tokens: 512,
            temperature: 0.6,
            top_p: 1.0,
            top_k: 0,
            batch: 64,
        }
    }
}

/// `[score]`: which columns the scoring pass records besides `logp`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScorePlan {
    /// Width of the gradient sketches; 0: none unless a signal asks, then 64.
    pub sketch_width: usize,
    /// Seed of the sketches' signs; `probe.seed` without one. Only sketches of one seed and width are
    /// comparable.
    pub sketch_seed: Option<u64>,
    /// Tokens per forward pass.
    pub batch_tokens: usize,
    /// How tokens are scored by a student that masks its input. One that reads everything before a
    /// token scores it exactly, in one pass.
    pub estimator: Estimator,
    /// Corruptions of each example that `corruptions` draws.
    pub draws: u32,
    /// Examples, evenly spread over the data, that every checkpoint of the probe scores: the
    /// confidence trajectories of the report. 0: none. Students that mask their input have none.
    pub trajectory_examples: usize,
}

impl Default for ScorePlan {
    fn default() -> Self {
        Self {
            sketch_width: 0,
            sketch_seed: None,
            batch_tokens: 8192,
            estimator: Estimator::default(),
            // What LLaDA (arXiv 2502.09992) draws for an estimate of a likelihood.
            draws: 128,
            trajectory_examples: 64,
        }
    }
}

/// How a token is scored by a student that masks its input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// The mean over the corruptions that mask the token (`[confidence-draws]` in docs/equations.md).
    /// Each draw takes the ratio from another part of its range; all checkpoints see the same draws.
    #[default]
    Corruptions,
    /// Exactly, in one pass: given every earlier block, the token's own block being masked whole
    /// (`[confidence-block]` in docs/equations.md). For block diffusion only.
    BlockCausal,
}

/// `[signals.ID]`: a signal under a name of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalPlan {
    /// Name of the signal; see `t3s list`.
    pub kind: String,
    /// Its options. In a plan they stand beside `kind`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub options: toml::Table,
}

/// `[selection]`: which tokens are in the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SelectionPlan {
    /// Name of the strategy; see `t3s list`.
    pub strategy: String,
    /// The run folder of another student with the same tokens, whose trajectory is read in place of
    /// this student's own: no probe is run and nothing is scored here. Empty: this student's own.
    #[serde(default)]
    #[schemars(extend("x-path" = true))]
    pub from: PathBuf,
    /// Its options. In a plan they stand beside `strategy`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub options: toml::Table,
}

impl SelectionPlan {
    /// The strategy `strategy` with these options, on the student's own trajectory.
    pub fn new(strategy: impl Into<String>, options: toml::Table) -> Self {
        Self {
            strategy: strategy.into(),
            from: PathBuf::new(),
            options,
        }
    }

    /// The other student's run, where its trajectory is read.
    pub fn selector(&self) -> Option<&std::path::Path> {
        Some(self.from.as_path()).filter(|path| !path.as_os_str().is_empty())
    }
}

/// `[eval]`: how models are compared at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalPlan {
    /// Held-out problems, in any of the data formats; empty: the training prompts.
    #[schemars(extend("x-path" = true))]
    pub data: PathBuf,
    /// How its rows are read.
    pub format: DataFormat,
    /// Names of its fields.
    pub fields: FieldNames,
    /// Use only the first rows; 0: all.
    pub limit: usize,
    /// Generated answers per problem.
    pub samples: usize,
    /// Seed of their draws. Models examined under one seed are compared on the same draws.
    pub seed: u64,
    /// How they are generated.
    pub generate: GeneratePlan,
}

impl Default for EvalPlan {
    fn default() -> Self {
        Self {
            data: PathBuf::new(),
            format: DataFormat::Auto,
            fields: FieldNames::default(),
            limit: 0,
            samples: 4,
            seed: 0,
            generate: GeneratePlan::default(),
        }
    }
}

fn default_checkpoint_every() -> u64 {
    5
}

fn default_max_tokens() -> usize {
    4096
}
