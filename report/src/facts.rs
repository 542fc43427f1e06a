//! What the page is about, read from the run folder.

use std::collections::HashMap;

use serde::Deserialize;
use t3s_data::store;
use t3s_pipeline::{
    beside::{Variant, variants},
    bottleneck::Point,
    evaluate::Accuracy,
    events::StepEvent,
    recorded::{Ending, RecordedProbe, RecordedRun},
    run::Trajectory,
    select::Selection,
    summary::{CorpusSummary, StepAccuracy},
};

use crate::{error::ReportError, tokens::Tokens};

/// Everything that the page shows. What the run did not come to is absent.
pub struct Facts {
    /// The run.
    pub run: RecordedRun,
    /// Its resolved plan.
    pub plan: String,
    /// The training data, counted.
    pub corpus: Option<CorpusSummary>,
    /// Steps of the probe.
    pub probe_steps: Vec<StepEvent>,
    /// Accuracy of its checkpoints on the training prompts.
    pub accuracy: Option<Vec<StepAccuracy>>,
    /// Mean log-probability of the answers' tokens at its checkpoints.
    pub answer_logp: Option<Vec<Point>>,
    /// What was kept.
    pub selection: Option<Selection>,
    /// The tokens, with weights where they were selected.
    pub tokens: Option<Tokens>,
    /// Confidence at the checkpoints of the probe.
    pub trajectories: Option<Vec<Moment>>,
    /// Steps of the training run: `train`, or `sft` of `t3s train`.
    pub train_steps: Vec<StepEvent>,
    /// Whether it is the plain fine-tuning of `t3s train`.
    pub plain: bool,
    /// Examinations at the end, in the run's order.
    pub evaluations: Vec<Examined>,
    /// This run and the comparable ones beside it; empty where there are none.
    pub variants: Vec<Variant>,
}

/// A model's examination.
#[derive(Debug, Clone, PartialEq)]
pub struct Examined {
    /// In words.
    pub model: String,
    /// The counts.
    pub accuracy: Accuracy,
}

/// The confidence of the sampled tokens at one checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    /// The probe's step.
    pub step: u64,
    /// `c_t` of the tokens that had become likelier by the bottleneck.
    pub anchors: Vec<f32>,
    /// Of the others.
    pub others: Vec<f32>,
    /// `c_t` of kept tokens, where tokens were selected.
    pub kept: Vec<f32>,
    /// Of dropped ones.
    pub dropped: Vec<f32>,
}

impl Facts {
    /// Reads what the last run in `run`'s folder left.
    ///
    /// # Errors
    /// When something that is said to be there cannot be read.
    pub fn read(run: RecordedRun) -> Result<Self, ReportError> {
        #[derive(Deserialize)]
        struct AnswerLogp {
            curve: Vec<Point>,
        }
        let plain = run.get("sft").is_some();
        let probe = run.probe()?;
        let tokens = Tokens::of_run(&run)?;
        let trajectories = match &tokens {
            Some(tokens) => trajectories(&run, tokens)?,
            None => None,
        };
        let answer_logp: Option<AnswerLogp> = run.output("answer-logp")?;
        Ok(Self {
            plan: run.plan()?,
            corpus: run.output("corpus")?,
            probe_steps: run.steps("probe"),
            evaluations: evaluations(&run, probe.as_ref())?,
            accuracy: probe.and_then(|probe| probe.accuracy),
            answer_logp: answer_logp.map(|found| found.curve),
            selection: run.output("select")?,
            train_steps: run.steps(if plain { "sft" } else { "train" }),
            variants: variants(&run)?,
            trajectories,
            tokens,
            plain,
            run,
        })
    }

    /// The probe's step of the bottleneck.
    pub fn bottleneck(&self) -> Option<u64> {
        Some(self.run.bottleneck.as_ref()?.step)
    }

    /// Why something that comes late in a run is not there.
    pub fn why_missing(&self) -> String {
        match &self.run.ending {
            Ending::Done => String::new(),
            Ending::Stopped(message) => format!(" The run stopped before: {message}"),
            Ending::Open => " The run has not come to its end.".to_owned(),
        }
    }
}

fn evaluations(
    run: &RecordedRun,
    probe: Option<&RecordedProbe>,
) -> Result<Vec<Examined>, ReportError> {
    let last = probe.map(|probe| probe.log.steps);
    let stopped = probe.is_some_and(|probe| probe.stopped);

    let mut found = Vec::new();
    let bottleneck = run.bottleneck.as_ref().map(|b| b.step);
    for stage in &run.stages {
        let Some(model) = stage.name.strip_prefix("evaluate-") else {
            continue;
        };
        let Some(accuracy) = run.output::<Accuracy>(&stage.name)? else {
            continue;
        };
        let step: Option<u64> = model
            .strip_prefix("step-")
            .and_then(|step| step.parse().ok());
        let model = match (model, step) {
            ("base", _) => "base".to_owned(),
            ("student", _) => "student, trained with the selection".to_owned(),
            (_, Some(step)) if Some(step) == bottleneck && Some(step) == last => {
                format!("bottleneck and end of the probe, step {step}")
            }
            (_, Some(step)) if Some(step) == bottleneck => format!("bottleneck, step {step}"),
            (_, Some(step)) if Some(step) == last && stopped => {
                format!("where the probe was stopped, step {step}")
            }
            (_, Some(step)) if Some(step) == last => {
                format!("end of the probe (plain fine-tuning), step {step}")
            }
            (other, _) => other.to_owned(),
        };
        found.push(Examined { model, accuracy });
    }
    if run.get("sft").is_some() {
        for examined in &mut found {
            if examined.model.starts_with("student") {
                examined.model = "student, plain fine-tuning".to_owned();
            }
        }
    }
    Ok(found)
}

fn trajectories(run: &RecordedRun, tokens: &Tokens) -> Result<Option<Vec<Moment>>, ReportError> {
    let (Some(found), Some(delta)) = (
        run.output::<Trajectory>("trajectory")?,
        tokens.column("delta-c"),
    ) else {
        return Ok(None);
    };
    let Some(folder) = run.done("trajectory") else {
        return Ok(None);
    };
    let rows: HashMap<u64, std::ops::Range<usize>> = tokens.view().examples().collect();
    let mut moments = Vec::new();
    for step in found.steps {
        let (table, _) = store::read_table(&folder.join(Trajectory::store(step)))?;
        let view = table.view();
        let Ok(logp) = view.column("logp") else {
            continue;
        };
        let mut moment = Moment {
            step,
            anchors: Vec::new(),
            others: Vec::new(),
            kept: Vec::new(),
            dropped: Vec::new(),
        };
        for (id, here) in view.examples() {
            // Both are all response tokens of the example, in order.
            let Some(there) = rows.get(&id).filter(|rows| rows.len() == here.len()) else {
                continue;
            };
            for (logp, row) in logp[here].iter().zip(there.clone()) {
                match delta.values[row] > 0.0 {
                    true => moment.anchors.push(*logp),
                    false => moment.others.push(*logp),
                }
                match &tokens.weights {
                    Some(weights) if weights[row] > 0.0 => moment.kept.push(*logp),
                    Some(_) => moment.dropped.push(*logp),
                    None => {}
                }
            }
        }
        moments.push(moment);
    }
    Ok(Some(moments))
}
