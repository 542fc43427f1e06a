//! What a model gets right: answers generated, graded, counted.

use std::{collections::BTreeSet, fs, ops::ControlFlow, path::Path, time::Instant};

use serde::{Deserialize, Serialize};
use t3s_core::{Corpus, CounterRng, DecodeRule, atomic, plan::GeneratePlan};
use t3s_data::{Problem, Tokenizer};
use t3s_engine::{Decoder, Finish, Generation, generate};

use crate::{
    error::PipelineError,
    events::{Event, Recorder},
    grader::{Grader, Verdict},
    interrupt::Interrupt,
    statistics::{Interval, over_prompts},
};

/// What a model got right. Every answer is right, wrong or unparsed; a truncated one is counted
/// besides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Problems with a gold answer.
    pub problems: u64,
    /// Generated answers per problem.
    pub samples: u32,
    /// Answers in all.
    pub answers: u64,
    /// Equal to the gold answer.
    pub right: u64,
    /// Another answer.
    pub wrong: u64,
    /// No answer was found in the text.
    pub unparsed: u64,
    /// Cut off at `max_new_tokens`; each is also right, wrong or unparsed.
    pub truncated: u64,
    /// `right / answers`.
    pub share: f64,
    /// 95 % interval of `share`, over problems.
    pub interval: Interval,
    /// Generated tokens per answer.
    pub mean_tokens: f64,
}

impl Accuracy {
    /// How many questions were asked how often: `200 problems, 4 answers to each`.
    pub fn asked(problems: u64, samples: u32) -> String {
        let s = if samples == 1 { "" } else { "s" };
        format!("{problems} problems, {samples} answer{s} to each")
    }

    /// Share of answers that were cut off.
    pub fn truncated_share(&self) -> f64 {
        self.truncated as f64 / self.answers.max(1) as f64
    }

    /// Share of answers in which no answer was found.
    pub fn unparsed_share(&self) -> f64 {
        self.unparsed as f64 / self.answers.max(1) as f64
    }
}

/// A problem as generation needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Row number in its data file.
    pub id: u64,
    /// What the model is given.
    pub prompt: Vec<u32>,
    /// The gold answer.
    pub answer: String,
}

/// The training prompts that have a gold answer, each once, at most `limit` of them (0: all).
pub fn training_questions(corpus: &Corpus, limit: usize) -> Vec<Question> {
    let mut seen = BTreeSet::new();
    corpus
        .examples
        .iter()
        .filter_map(|example| {
            let prompt = example.ids[..example.prompt_len].to_vec();
            let answer = example.answer.clone()?;
            // Several traces of one prompt are one problem.
            seen.insert(prompt.clone()).then_some(Question {
                id: example.id,
                prompt,
                answer,
            })
        })
        .take(if limit == 0 { usize::MAX } else { limit })
        .collect()
}

/// The problems that have a gold answer.
pub fn questions(problems: Vec<Problem>) -> Vec<Question> {
    problems
        .into_iter()
        .filter_map(|problem| {
            Some(Question {
                id: problem.id,
                prompt: problem.prompt_ids,
                answer: problem.answer?,
            })
        })
        .collect()
}

/// How a model is examined.
pub struct Examination<'a> {
    /// The problems.
    pub questions: &'a [Question],
    /// Generated answers per problem.
    pub samples: usize,
    /// How they are generated.
    pub generate: &'a GeneratePlan,
    /// How the model decodes.
    pub rule: &'a DecodeRule,
    /// Finds and compares answers.
    pub grader: &'a Grader,
    /// Makes text of token ids.
    pub tokenizer: &'a Tokenizer,
    /// The run's seed; the draws have a stream of their own.
    pub seed: u64,
    /// The stage, for events.
    pub stage: &'a str,
    /// Who is told.
    pub recorder: &'a Recorder<'a>,
    /// Who may stop it.
    pub interrupt: &'a Interrupt,
}

#[derive(Serialize)]
struct GradedAnswer<'a> {
    id: u64,
    sample: usize,
    verdict: Verdict,
    truncated: bool,
    tokens: usize,
    gold: &'a str,
    answer: Option<&'a str>,
    text: &'a str,
}

impl Examination<'_> {
    /// Examines `decoder` and writes every answer into `answers` (JSONL).
    ///
    /// # Errors
    /// When generation or decoding fails, `answers` cannot be written, or the run was asked to stop.
    pub fn run(&self, decoder: &Decoder, answers: &Path) -> Result<Accuracy, PipelineError> {
        self.run_by_problem(decoder, answers).map(|(all, _)| all)
    }

    /// The same, with the number of right answers to each question.
    ///
    /// # Errors
    /// As [`Examination::run`].
    pub fn run_by_problem(
        &self,
        decoder: &Decoder,
        answers: &Path,
    ) -> Result<(Accuracy, Vec<u32>), PipelineError> {
        let generations = self.generate(decoder)?;
        let mut right_of = vec![0_u32; self.questions.len()];
        let (mut wrong, mut unparsed, mut truncated, mut tokens) = (0, 0, 0, 0_u64);
        let mut lines = Vec::new();
        for generation in &generations {
            let question = &self.questions[generation.prompt];
            let text = self
                .tokenizer
                .decode(&generation.ids, true)
                .map_err(PipelineError::data(self.stage))?;
            let verdict = self.grader.grade(&text, &question.answer);
            match verdict {
                Verdict::Right => right_of[generation.prompt] += 1,
                Verdict::Wrong => wrong += 1,
                Verdict::Unparsed => unparsed += 1,
            }
            let cut = generation.finish == Finish::Length;
            truncated += u64::from(cut);
            tokens += generation.ids.len() as u64;
            let graded = GradedAnswer {
                id: question.id,
                sample: generation.sample,
                verdict,
                truncated: cut,
                tokens: generation.ids.len(),
                gold: &question.answer,
                answer: self.grader.extract(&text),
                text: &text,
            };
            serde_json::to_writer(&mut lines, &graded).expect("writing to memory");
            lines.push(b'\n');
        }
        atomic::write_bytes(answers, &lines)?;
        let n = generations.len() as u64;
        let right: u64 = right_of.iter().map(|r| u64::from(*r)).sum();
        let samples = u32::try_from(self.samples).unwrap_or(u32::MAX);
        let accuracy = Accuracy {
            problems: self.questions.len() as u64,
            samples,
            answers: n,
            right,
            wrong,
            unparsed,
            truncated,
            share: right as f64 / n.max(1) as f64,
            interval: over_prompts(&right_of, samples),
            mean_tokens: tokens as f64 / n.max(1) as f64,
        };
        Ok((accuracy, right_of))
    }

    fn generate(&self, decoder: &Decoder) -> Result<Vec<Generation>, PipelineError> {
        let prompts: Vec<Vec<u32>> = self.questions.iter().map(|q| q.prompt.clone()).collect();
        // One stream for all models of a run: they are compared on the same draws.
        let seed = CounterRng::new(self.seed, "answers").bits(0, 0);
        let started = Instant::now();
        let mut progress = |done: t3s_engine::GenerateProgress| -> ControlFlow<()> {
            self.recorder.event(&Event::Progress {
                stage: self.stage.to_owned(),
                done: done.answers_done as u64,
                total: done.answers as u64,
                unit: "answers".into(),
                tokens_per_second: done.tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
            });
            self.interrupt.flow()
        };
        generate(
            decoder,
            self.rule,
            &prompts,
            self.samples,
            self.generate,
            seed,
            &mut progress,
        )
        .map_err(PipelineError::engine(self.stage))
    }
}

/// Reads a result that an interrupted attempt left at `path`, or makes and writes it.
pub(crate) fn once<T: Serialize + serde::de::DeserializeOwned>(
    path: &Path,
    make: impl FnOnce() -> Result<T, PipelineError>,
) -> Result<T, PipelineError> {
    // One that cannot be read is made again: it is only half of a stage.
    if let Some(value) = fs::read(path)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
    {
        return Ok(value);
    }
    let value = make()?;
    atomic::write(path, |file| {
        file.write_all(&serde_json::to_vec_pretty(&value)?)
    })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use t3s_core::{Example, Fingerprint, corpus::CorpusHashes};

    use super::*;

    fn example(id: u64, prompt: u32, answer: Option<&str>) -> Example {
        Example {
            id,
            ids: vec![prompt, 2, 3],
            trainable: vec![false, true, true],
            weights: vec![1.0; 3],
            prompt_len: 1,
            noisy_ids: None,
            answer: answer.map(str::to_owned),
        }
    }

    #[test]
    fn a_prompt_with_two_traces_is_one_problem() {
        let fingerprint = Fingerprint::of_bytes(b"");
        let corpus = Corpus {
            examples: vec![
                example(0, 7, Some("1")),
                example(1, 7, Some("1")),
                example(2, 8, None),
                example(3, 9, Some("2")),
            ],
            hashes: CorpusHashes {
                data: fingerprint.clone(),
                tokenizer: fingerprint.clone(),
                chat_template: fingerprint.clone(),
                tokens: fingerprint,
            },
            warnings: Vec::new(),
        };
        let ids = |limit| -> Vec<u64> {
            let found = training_questions(&corpus, limit);
            found.iter().map(|q| q.id).collect()
        };
        assert_eq!(ids(0), [0, 3]);
        assert_eq!(ids(1), [0]);
    }
}
