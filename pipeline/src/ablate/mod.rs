//! Many variants of one plan, run and compared.
//!
//! The folder of an ablation:
//!
//! | path | what it is |
//! |---|---|
//! | `ablation.json` | says that this is an ablation, and of which cells |
//! | `runs/CELL-sSEED/` | a run folder each; stages are shared among them and with run folders beside the ablation |
//! | `plans/CELL-sSEED.toml` | the resolved plan of each, to be run by itself |
//! | `table.json`, `table.csv`, `table.md` | the comparison |
//! | `overlap.csv` | the overlap of masks |
//! | `report.html` | both as a page, by `t3s ablate` and `t3s report` |
//!
//! A seed changes what comes after the scores: the draws of the selection, the data order and the
//! fresh adapters of the training. The probe and what finds the bottleneck keep `probe.seed`, and
//! all answers are drawn under one `eval.seed`, so that everything before the selection is done once
//! for all cells and seeds, and models are compared on the same draws.

pub mod cells;
pub mod collect;
pub mod execute;
pub(crate) mod graded;
pub mod render;
pub mod slurm;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use t3s_core::{
    Fingerprint,
    plan::{self, Loaded, PlanErrors, RunPlan},
    registry::Registry,
};

use crate::{
    error::PipelineError,
    share::{ABLATION, RUNS},
    stage::write_json,
};
use cells::Cell;

/// The layout that this version writes and reads.
const FORMAT: u32 = 1;
/// In an ablation's folder: the comparison as JSON.
pub const TABLE: &str = "table.json";
/// Below an ablation's folder: the resolved plans.
const PLANS: &str = "plans";

/// Whether `folder` is an ablation's.
pub fn is_ablation(folder: &Path) -> bool {
    folder.join(ABLATION).is_file()
}

/// Why an ablation could not begin or end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AblateError {
    /// What is to be varied cannot be read.
    #[error("{0}")]
    Grid(String),
    /// A cell's plan is wrong.
    #[error("cell {cell:?}: {source}")]
    Plan {
        /// Its name.
        cell: String,
        /// Every problem.
        #[source]
        source: PlanErrors,
    },
    /// The baseline is no row of the table.
    #[error("--baseline {given:?} is no row; choose one of {known}")]
    Baseline {
        /// What was asked for.
        given: String,
        /// The rows.
        known: String,
    },
    /// The folder holds something else.
    #[error(
        "{}: is not empty and not the folder of an ablation (it has no {ABLATION}); choose another \
         with --out",
        .0.display()
    )]
    Foreign(PathBuf),
    /// Files could not be read or written.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

/// What is varied, and how often.
#[derive(Debug, Clone)]
pub struct Design {
    /// The variants.
    pub cells: Vec<Cell>,
    /// Runs of each, with the plan's seed and those after it.
    pub seeds: u64,
    /// Whether each seed has a probe of its own too.
    pub reseed_probe: bool,
}

/// A design with its plans, checked and not yet run.
#[derive(Debug)]
pub struct Ablation {
    /// The plan's name.
    pub name: String,
    /// Where everything is.
    pub folder: PathBuf,
    /// The variants, in the order of the table.
    pub cells: Vec<PlannedCell>,
    /// Whether each seed has a probe of its own too.
    pub reseed_probe: bool,
}

/// A variant with its runs.
#[derive(Debug)]
pub struct PlannedCell {
    /// Its name.
    pub name: String,
    /// What it overrides.
    pub overrides: Vec<String>,
    /// Every component that its plan knows.
    pub registry: Registry,
    /// One per seed.
    pub runs: Vec<PlannedRun>,
}

/// One cell under one seed.
#[derive(Debug, Clone)]
pub struct PlannedRun {
    /// Name of its run folder.
    pub id: String,
    /// The plan, with absolute paths.
    pub plan: RunPlan,
}

/// `ablation.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    kind: String,
    format: u32,
    name: String,
    version: String,
    cells: Vec<MarkedCell>,
}

#[derive(Debug, Serialize, Deserialize)]
struct MarkedCell {
    name: String,
    overrides: Vec<String>,
    runs: Vec<String>,
}

impl Ablation {
    /// Loads the plan at `path` once for every cell of `design`, under `overrides` and the cell's
    /// own, and gives each run its folder in `folder` (without one, the folder `NAME-ablation`
    /// beside the plan's run folder). Warnings of the plans go to `warn`.
    ///
    /// # Errors
    /// Every problem of the first cell whose plan is wrong; nothing is begun then.
    pub fn plan(
        path: &Path,
        overrides: &[String],
        design: &Design,
        folder: Option<&Path>,
        registry: &Registry,
        warn: &mut dyn FnMut(String),
    ) -> Result<Self, AblateError> {
        let mut loaded = Vec::new();
        for cell in &design.cells {
            let error = |source| AblateError::Plan {
                cell: cell.name.clone(),
                source,
            };
            let all = [overrides, &cell.overrides].concat();
            let found = plan::load(path, &all, registry).map_err(error)?;
            let last = found.plan.seed.max(found.plan.probe.seed);
            if last
                .checked_add(design.seeds)
                .is_none_or(|last| i64::try_from(last).is_err())
            {
                return Err(AblateError::Grid(format!(
                    "{} seeds from {last} on are more than there are",
                    design.seeds
                )));
            }
            for warning in &found.warnings {
                warn(warning.to_string());
            }
            loaded.push((cell, found));
        }
        let Some((_, first)) = loaded.first() else {
            return Err(AblateError::Grid("there is no cell".to_owned()));
        };
        let name = first.plan.name.clone();
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None => {
                let stem = first.plan.out.file_name().unwrap_or_default();
                let stem = format!("{}-ablation", stem.to_string_lossy());
                first.plan.out.with_file_name(stem)
            }
        };
        let folder =
            std::path::absolute(&folder).map_err(|e| PipelineError::io(&folder, "find", e))?;
        let cells = loaded
            .into_iter()
            .map(|(cell, found)| PlannedCell::new(cell, found, design, &folder))
            .collect();
        Ok(Self {
            name,
            folder,
            cells,
            reseed_probe: design.reseed_probe,
        })
    }

    /// Every run, all cells under the first seed before any under the second, so that a table of all
    /// cells is there early.
    pub fn runs(&self) -> Vec<(&PlannedCell, &PlannedRun)> {
        let seeds = self.cells.iter().map(|cell| cell.runs.len()).max();
        (0..seeds.unwrap_or(0))
            .flat_map(|seed| {
                self.cells
                    .iter()
                    .filter_map(move |cell| Some((cell, cell.runs.get(seed)?)))
            })
            .collect()
    }

    /// Makes the folder, or opens it, and writes down the cells and their plans.
    ///
    /// # Errors
    /// When it holds something else, or cannot be written.
    pub fn open(&self) -> Result<(), AblateError> {
        let io = |action| move |e| PipelineError::io(&self.folder, action, e);
        fs::create_dir_all(&self.folder).map_err(io("create"))?;
        let marker = self.folder.join(ABLATION);
        let empty = || fs::read_dir(&self.folder).map(|mut entries| entries.next().is_none());
        if !marker.exists() && !empty().map_err(io("read"))? {
            return Err(AblateError::Foreign(self.folder.clone()));
        }
        let cells = self.cells.iter().map(|cell| MarkedCell {
            name: cell.name.clone(),
            overrides: cell.overrides.clone(),
            runs: cell.runs.iter().map(|run| run.id.clone()).collect(),
        });
        let contents = Marker {
            kind: "t3s-ablation".to_owned(),
            format: FORMAT,
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cells: cells.collect(),
        };
        write_json(&marker, &contents)?;
        for folder in [RUNS, PLANS] {
            fs::create_dir_all(self.folder.join(folder)).map_err(io("create folders in"))?;
        }
        for (_, run) in self.runs() {
            let text = run.plan.to_toml();
            t3s_core::atomic::write_bytes(&self.plan_file(run), text.as_bytes())
                .map_err(PipelineError::Write)?;
        }
        Ok(())
    }

    /// The resolved plan of `run`.
    pub fn plan_file(&self, run: &PlannedRun) -> PathBuf {
        self.folder.join(PLANS).join(format!("{}.toml", run.id))
    }
}

impl PlannedCell {
    fn new(cell: &Cell, found: Loaded, design: &Design, folder: &Path) -> Self {
        let plan = found.plan.absolute();
        let short = folder_name(&cell.name);
        let runs = (0..design.seeds.max(1)).map(|more| {
            let mut plan = plan.clone();
            plan.seed += more;
            if design.reseed_probe {
                plan.probe.seed += more;
            }
            let id = format!("{short}-s{}", plan.seed);
            plan.name = format!("{}: {}, seed {}", found.plan.name, cell.name, plan.seed);
            plan.out = folder.join(RUNS).join(&id);
            PlannedRun { id, plan }
        });
        Self {
            name: cell.name.clone(),
            overrides: cell.overrides.clone(),
            runs: runs.collect(),
            registry: found.registry,
        }
    }
}

/// A cell's name as part of a folder's name: readable, and different for different names.
fn folder_name(name: &str) -> String {
    const LONGEST: usize = 60;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.=".contains(c);
    let safe: String = name
        .replace(", ", "+")
        .chars()
        .map(|c| if plain(c) || c == '+' { c } else { '_' })
        .take(LONGEST)
        .collect();
    let exact = safe.replace('+', ", ") == name && !safe.starts_with('.');
    match exact {
        true => safe,
        false => format!(
            "{}-{}",
            safe.trim_start_matches('.'),
            &Fingerprint::of_bytes(name.as_bytes()).as_str()[..6]
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_are_readable_and_different() {
        assert_eq!(folder_name("t3s, steps=10"), "t3s+steps=10");
        assert_ne!(folder_name("a/b"), folder_name("a_b"));
        assert!(folder_name("a/b").starts_with("a_b-"));
        assert!(!folder_name("..").starts_with('.'));
        let long = "x".repeat(300);
        assert!(folder_name(&long).len() < 80);
        assert_ne!(folder_name(&long), folder_name(&(long.clone() + "y")));
    }
}
