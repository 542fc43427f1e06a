//! What has the right type and still makes no sense.

use super::{
    error::Problem,
    merge::{MergeModel, MergePlan, MergeTerm},
    sections::{BottleneckRule, GeneratePlan, RunPlan, Then, TrainPlan},
};
use crate::CheckpointRef;

/// Reports every key of `plan` whose value makes no sense.
pub(super) fn check(plan: &RunPlan, report: &mut dyn FnMut(&str, Problem)) {
    let mut check = Check { report };
    check.text("name", &plan.name);
    check.path("out", &plan.out);
    check.path("student.path", &plan.student.path);

    check.path("data.train", &plan.data.train);
    check.rule(
        "data.max_tokens",
        plan.data.max_tokens,
        plan.data.max_tokens >= 2,
        "must be at least 2: a token and one to predict",
    );
    check.text("data.fields.question", &plan.data.fields.question);
    check.text("data.fields.response", &plan.data.fields.response);

    let extract = &plan.grader.extract;
    check.rule(
        "grader.extract",
        format!("{extract:?}"),
        matches!(extract.as_str(), "boxed" | "hash") || extract.contains('('),
        "write boxed, hash, or a regular expression with a group, e.g. \"answer: (.*)\"",
    );

    check.whole("probe.checkpoint_every", plan.probe.checkpoint_every);
    check.training("probe", &plan.probe.training);
    check.training("train", &plan.train);

    let bottleneck = &plan.bottleneck;
    check.whole("bottleneck.samples", bottleneck.samples as u64);
    check.not_negative("bottleneck.minimum_drop", bottleneck.minimum_drop);
    let (every, last) = (plan.probe.checkpoint_every, plan.probe.training.steps);
    let step = bottleneck.step;
    check.rule(
        "bottleneck.step",
        step,
        step == last || every == 0 || (step < last && step.is_multiple_of(every)),
        &checkpoints(plan),
    );
    check.rule(
        "bottleneck.watch",
        "true",
        !bottleneck.watch || (bottleneck.by == BottleneckRule::TrainAccuracy && step == 0),
        "what is watched is the train-accuracy, and the rule finds the step: leave out bottleneck.by \
         and bottleneck.step",
    );
    check.rule(
        "bottleneck.patience",
        bottleneck.patience,
        !bottleneck.watch || bottleneck.patience > 0,
        "must be at least 1: the last measurement may still fall",
    );
    check.rule(
        "bottleneck.then",
        "\"go-on\"",
        bottleneck.then == Then::Restart || plan.selection.selector().is_none(),
        "beside selection.from there is no probe to go on from: leave it at restart",
    );
    check.generate("bottleneck.generate", &bottleneck.generate);

    let reference = &plan.reference;
    check.rule(
        "reference.store",
        reference.store.display(),
        reference.path.as_os_str().is_empty() || reference.store.as_os_str().is_empty(),
        "only one of reference.path and reference.store, which are two ways to name one model",
    );
    check.whole("score.batch_tokens", plan.score.batch_tokens as u64);
    check.whole("score.draws", u64::from(plan.score.draws));

    for (name, merge) in &plan.merge {
        check.merge(name, merge, plan);
    }

    check.whole("eval.samples", plan.eval.samples as u64);
    check.text("eval.fields.question", &plan.eval.fields.question);
    check.generate("eval.generate", &plan.eval.generate);
    for id in plan.signals.keys() {
        let key = format!("signals.{id}");
        check.rule(
            &key,
            format!("{id:?}"),
            !id.is_empty() && !id.contains('.'),
            "a signal's id must have no dot and not be empty",
        );
    }
}

/// Whether the probe keeps the model after `step` steps, from 1.
pub(super) fn has_checkpoint(plan: &RunPlan, step: u64) -> bool {
    let (every, last) = (plan.probe.checkpoint_every, plan.probe.training.steps);
    step == last || (step < last && every > 0 && step.is_multiple_of(every))
}

/// Which checkpoints the probe lays down, in words.
pub(super) fn checkpoints(plan: &RunPlan) -> String {
    format!(
        "the probe has checkpoints every {} steps and at its last, {}",
        plan.probe.checkpoint_every, plan.probe.training.steps
    )
}

struct Check<'r> {
    report: &'r mut dyn FnMut(&str, Problem),
}

impl Check<'_> {
    fn rule(&mut self, key: &str, found: impl ToString, holds: bool, accepted: &str) {
        if !holds {
            let problem = Problem::Refused {
                found: found.to_string(),
                accepted: accepted.to_owned(),
            };
            (self.report)(key, problem);
        }
    }

    fn text(&mut self, key: &str, text: &str) {
        self.rule(key, "\"\"", !text.is_empty(), "must not be empty");
    }

    fn path(&mut self, key: &str, path: &std::path::Path) {
        let named = !path.as_os_str().is_empty();
        self.rule(key, "\"\"", named, "must not be empty");
    }

    fn whole(&mut self, key: &str, number: u64) {
        self.rule(key, number, number > 0, "must be at least 1");
    }

    fn positive(&mut self, key: &str, number: f64) {
        let holds = number.is_finite() && number > 0.0;
        self.rule(key, number, holds, "must be finite and above 0");
    }

    fn not_negative(&mut self, key: &str, number: f64) {
        let holds = number.is_finite() && number >= 0.0;
        self.rule(key, number, holds, "must be finite and 0 or more");
    }

    fn training(&mut self, at: &str, train: &TrainPlan) {
        let key = |name: &str| format!("{at}.{name}");
        self.whole(&key("steps"), train.steps);
        self.rule(
            &key("batch_examples"),
            "0 beside batch_tokens = 0",
            train.batch_examples > 0 || train.batch_tokens > 0,
            "one of the two must limit the batch",
        );
        let micro = key("micro_batch_tokens");
        self.whole(&micro, train.micro_batch_tokens as u64);
        self.positive(&key("learning_rate"), train.learning_rate);
        self.rule(
            &key("warmup"),
            train.warmup,
            (0.0..=1.0).contains(&train.warmup),
            "must be a share of the steps, 0 to 1",
        );
        for (name, beta) in [("beta1", train.adamw.beta1), ("beta2", train.adamw.beta2)] {
            let holds = (0.0..1.0).contains(&beta);
            self.rule(
                &key(&format!("adamw.{name}")),
                beta,
                holds,
                "must be 0 or more and below 1",
            );
        }
        self.positive(&key("adamw.eps"), train.adamw.eps);
        self.not_negative(&key("adamw.weight_decay"), train.adamw.weight_decay);
        self.not_negative(&key("clip_norm"), train.clip_norm);
        if let Some(lora) = &train.lora {
            self.whole(&key("lora.rank"), lora.rank as u64);
            self.positive(&key("lora.alpha"), lora.alpha);
            let targets = key("lora.targets");
            self.rule(
                &targets,
                "[]",
                !lora.targets.is_empty(),
                "must name at least one projection",
            );
        }
    }

    fn merge(&mut self, name: &str, merge: &MergePlan, plan: &RunPlan) {
        const TAKEN: [&str; 5] = ["base", "bottleneck", "final", "sft", "student"];
        let key = format!("merge.{name}");
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        self.rule(
            &key,
            format!("{name:?}"),
            !name.is_empty() && name.chars().all(plain) && !TAKEN.contains(&name),
            "a model's name has small letters, digits and hyphens and is none of base, bottleneck, \
             final, sft and student",
        );
        let own = |term: &MergeTerm| {
            matches!(
                term.model,
                MergeModel::Student | MergeModel::At(CheckpointRef::Base)
            )
        };
        if plan.selection.selector().is_some() {
            let other = merge.terms.iter().find(|term| !own(term));
            self.rule(
                &key,
                other.map_or_else(String::new, |term| term.model.to_string()),
                other.is_none(),
                "only base and student: beside selection.from there is no probe of this student",
            );
            return;
        }
        for term in &merge.terms {
            if let MergeModel::At(CheckpointRef::Step(step)) = term.model {
                let there = step == 0 || has_checkpoint(plan, step);
                self.rule(&key, format!("step:{step}"), there, &checkpoints(plan));
            }
        }
    }

    fn generate(&mut self, at: &str, generate: &GeneratePlan) {
        let key = |name: &str| format!("{at}.{name}");
        self.whole(&key("max_new_tokens"), generate.max_new_tokens as u64);
        self.not_negative(&key("temperature"), generate.temperature);
        self.rule(
            &key("top_p"),
            generate.top_p,
            generate.top_p > 0.0 && generate.top_p <= 1.0,
            "must be above 0 and at most 1",
        );
        self.whole(&key("batch"), generate.batch as u64);
    }
}
