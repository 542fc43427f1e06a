//! What a run comes to: every figure with its counts and its interval.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use t3s_core::corpus::CorpusHashes;

use crate::{
    bottleneck::{Bottleneck, Point},
    evaluate::Accuracy,
    select::Selection,
    stage::StageCost,
    training::TrainLog,
};

/// `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The plan's name.
    pub name: String,
    /// Fingerprint of the resolved plan.
    pub plan: String,
    /// Seed of every random stream.
    pub seed: u64,
    /// Version of this program.
    pub version: String,
    /// The run folder.
    pub out: PathBuf,
    /// The model adapter.
    pub adapter: String,
    /// Number of weights of the student.
    pub parameters: u64,
    /// What was learnt from.
    pub corpus: CorpusSummary,
    /// The run of another student whose trajectory selected: `probe`, the curves and the bottleneck
    /// are then that run's.
    #[serde(default)]
    pub selector: Option<PathBuf>,
    /// The plain fine-tuning run.
    pub probe: TrainLog,
    /// Accuracy on the training prompts of every checkpoint of the probe, base first; empty where
    /// it was not measured.
    pub train_accuracy: Vec<StepAccuracy>,
    /// Mean log-probability of the answers' tokens at every checkpoint; empty where it was not
    /// measured.
    pub answer_logp: Vec<Point>,
    /// Where the imitation bottleneck is.
    pub bottleneck: Bottleneck,
    /// What was kept.
    pub selection: Selection,
    /// The training run with the selection's weights.
    pub train: TrainLog,
    /// How the models compare; empty where no problem has a gold answer.
    pub evaluation: Vec<Evaluation>,
    /// What each stage cost, in order.
    pub stages: Vec<StageCost>,
    /// Sum of the stages' seconds: what the whole run costs when nothing is cached.
    pub seconds: f64,
    /// Everything that was warned of.
    pub warnings: Vec<String>,
    /// The trained student, a Hugging Face folder (or a PEFT adapter of the base).
    pub student: PathBuf,
    /// The selection, a Parquet file.
    pub selection_file: PathBuf,
}

impl Summary {
    /// Share of the response tokens that had a weight above zero: in the selection, or, for a
    /// strategy that is asked in every step, in training.
    pub fn kept_share(&self) -> f64 {
        match self.selection.online {
            true => self.train.kept_share(),
            false => self.selection.kept_share,
        }
    }
}

/// The training data, counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CorpusSummary {
    /// Examples that are trained on.
    pub examples: u64,
    /// Tokens, prompts included.
    pub tokens: u64,
    /// Tokens that may be trained on.
    pub response_tokens: u64,
    /// Tokens of the longest example.
    pub longest: u64,
    /// Tokens of the longest prompt.
    #[serde(default)]
    pub longest_prompt: u64,
    /// Different prompts with a gold answer.
    pub problems: u64,
    /// What the token stores have to agree with.
    pub hashes: CorpusHashes,
    /// Dropped, truncated and otherwise odd rows.
    pub warnings: Vec<String>,
}

/// Accuracy of one checkpoint on the training prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepAccuracy {
    /// Optimiser steps done; 0 is the base.
    pub step: u64,
    /// The counts.
    pub accuracy: Accuracy,
}

/// One model's examination at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Which model.
    pub model: Role,
    /// Its name: `base`, `bottleneck`, `sft`, `student`, or the plan's in `[merge]`.
    pub name: String,
    /// The probe's step, where it is one of its checkpoints.
    pub step: Option<u64>,
    /// The counts.
    pub accuracy: Accuracy,
    /// Every answer with its verdict, JSONL; in the folder of the stage, whose name tells models
    /// apart.
    pub answers: PathBuf,
}

/// The models that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The student before training.
    Base,
    /// The probe's checkpoint of lowest accuracy.
    Bottleneck,
    /// The probe's last checkpoint: plain fine-tuning.
    ProbeFinal,
    /// A sum of others, named in `[merge]`.
    Merged,
    /// The student trained with the selection.
    Student,
}

impl Evaluation {
    /// The model in words, for a table.
    pub fn label(&self) -> String {
        match (self.model, self.step) {
            (Role::Merged, _) => self.name.clone(),
            (role, Some(step)) if step > 0 => format!("{}, step {step}", role.label()),
            (role, _) => role.label().to_owned(),
        }
    }
}

impl Role {
    /// What a student is compared with.
    pub const COMPARED: [Self; 3] = [Self::Base, Self::Bottleneck, Self::ProbeFinal];

    /// In one word, for a command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Merged => "merged",
            Self::Base => "base",
            Self::Bottleneck => "bottleneck",
            Self::ProbeFinal => "sft",
            Self::Student => "student",
        }
    }

    /// In words, for a table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Bottleneck => "bottleneck",
            Self::ProbeFinal => "probe (plain SFT)",
            Self::Merged => "merged",
            Self::Student => "student",
        }
    }
}
