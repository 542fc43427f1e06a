//! Runs that can be compared with a run: those that it shares stages with and that were examined on
//! the same problems.

use std::{fs, path::Path};

use crate::{
    Summary,
    ablate::graded::Graded,
    error::PipelineError,
    evaluate::Accuracy,
    recorded::{Ending, RecordedRun},
    share::neighbours,
    stage::StageCost,
    statistics::{Interval, of_difference},
    summary::{Evaluation, Role},
};

/// A run beside another, or that one itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Name of its folder.
    pub name: String,
    /// Whether it is the run that the others are compared with.
    pub own: bool,
    /// Its strategy.
    pub strategy: String,
    /// The plan's seed.
    pub seed: u64,
    /// Share of the response tokens with a weight above zero.
    pub kept_share: f64,
    /// Its student's examination.
    pub accuracy: Accuracy,
    /// Its student's accuracy less that of the run's own, and the 95 % interval of that, paired by
    /// problem; absent for the run itself, and where the answers are no longer there.
    pub difference: Option<(f64, Interval)>,
}

/// `run` and the finished runs beside it, by name; empty where there are none, or it is not done. Those whose base was
/// examined otherwise, on other problems or by other draws, are left out.
///
/// # Errors
/// When `run` has a summary that cannot be read. Of runs beside it, those are left out.
pub fn variants(run: &RecordedRun) -> Result<Vec<Variant>, PipelineError> {
    let examined = |stages: &[StageCost]| {
        let mut stages = stages.iter();
        stages
            .find(|stage| stage.stage == "evaluate-base")
            .map(|stage| stage.key.clone())
    };
    if run.ending != Ending::Done {
        return Ok(Vec::new());
    }
    let Some(own) = read(&run.folder)? else {
        return Ok(Vec::new());
    };
    let (Some(key), Some(student)) = (examined(&own.stages), student(&own)) else {
        return Ok(Vec::new());
    };
    let graded = graded(&run.folder, student);
    let folder =
        std::path::absolute(&run.folder).map_err(|e| PipelineError::io(&run.folder, "find", e))?;
    let mut found: Vec<Variant> = neighbours(&folder)
        .into_iter()
        .filter_map(|folder| Some((read(&folder).ok()??, folder)))
        .filter(|(summary, _)| examined(&summary.stages).as_ref() == Some(&key))
        .filter_map(|(summary, folder)| {
            let less = || {
                let other = self::graded(&folder, self::student(&summary)?)?;
                let less = other.less(graded.as_ref()?)?;
                let mean = less.iter().sum::<f64>() / less.len().max(1) as f64;
                Some((mean, of_difference(&[less])?))
            };
            Variant::new(&folder, &summary, less())
        })
        .collect();
    if found.is_empty() {
        return Ok(found);
    }
    found.extend(Variant::new(&folder, &own, None).map(|own| Variant { own: true, ..own }));
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl Variant {
    fn new(folder: &Path, summary: &Summary, difference: Option<(f64, Interval)>) -> Option<Self> {
        Some(Self {
            name: folder.file_name()?.to_string_lossy().into_owned(),
            own: false,
            strategy: summary.selection.strategy.clone(),
            seed: summary.seed,
            kept_share: summary.kept_share(),
            accuracy: student(summary)?.accuracy.clone(),
            difference,
        })
    }
}

/// The summary in `folder`; `None` where there is none.
fn read(folder: &Path) -> Result<Option<Summary>, PipelineError> {
    let path = folder.join("summary.json");
    let Ok(text) = fs::read(&path) else {
        return Ok(None);
    };
    let summary = serde_json::from_slice(&text)
        .map_err(|error| PipelineError::io(&path, "understand", error.into()))?;
    Ok(Some(summary))
}

fn student(summary: &Summary) -> Option<&Evaluation> {
    let mut models = summary.evaluation.iter();
    models.find(|evaluation| evaluation.model == Role::Student)
}

/// The answers of `evaluation`, of the run in `folder`, which may have been moved since.
fn graded(folder: &Path, evaluation: &Evaluation) -> Option<Graded> {
    let mut moved = evaluation.clone();
    let (file, stage) = (
        evaluation.answers.file_name()?,
        evaluation.answers.parent()?,
    );
    moved.answers = folder.join("stages").join(stage.file_name()?).join(file);
    Graded::read(&moved).ok()
}
