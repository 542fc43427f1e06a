//! `t3s ablate`: variants of a plan, run and compared.

use std::{collections::BTreeSet, env, time::Instant};

use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use t3s_core::registry::Registry;
use t3s_pipeline::{
    Event, Observer,
    ablate::{
        AblateError, Ablation, Design, PlannedCell, PlannedRun,
        cells::{combine, parse_cell, parse_grid, read_cells},
        collect::{Comparison, compare, find_baseline, missing},
        execute::{AblationObserver, Outcome, execute},
        render, slurm,
    },
};

use crate::{
    args::{AblateArgs, Launcher},
    display::{Display, duration, print_json},
    failure::Failure,
    interrupt::on_ctrl_c,
};

/// Plans, runs and compares.
pub fn run(args: &AblateArgs, display: &Display) -> Result<(), Failure> {
    let mut cells = Vec::new();
    for path in &args.cell_files {
        cells.extend(read_cells(path)?);
    }
    for text in &args.cells {
        cells.push(parse_cell(text)?);
    }
    let grids = args
        .grids
        .iter()
        .map(|text| parse_grid(text))
        .collect::<Result<Vec<_>, _>>()?;
    let design = Design {
        cells: combine(cells, &grids)?,
        seeds: args.seeds,
        reseed_probe: args.reseed_probe,
    };
    let mut said = BTreeSet::new();
    let ablation = Ablation::plan(
        &args.plan,
        &args.overrides,
        &design,
        args.out.as_deref(),
        &Registry::linked()?,
        &mut |warning| {
            if said.insert(warning.clone()) {
                eprintln!("warning: {warning}");
            }
        },
    )?;
    // A baseline that is no row is found now, not after the last run.
    find_baseline(&ablation, &args.baseline)?;
    ablation.open()?;
    match (args.collect, args.launcher) {
        (true, _) => finish(args, &ablation, &[].into(), display),
        (false, Launcher::Slurm) => {
            let program = env::current_exe().map_err(Failure::failed)?;
            let script = slurm::write(&ablation, &program, args.jobs.unwrap_or(0))?;
            display.result(&serde_json::json!({ "script": script }), || {
                println!(
                    "{} tasks: sbatch {}",
                    ablation.runs().len(),
                    script.display()
                );
                println!("afterwards, the same command with --collect writes the table");
            });
            Ok(())
        }
        (false, Launcher::Local) => {
            let interrupt = on_ctrl_c()?;
            let jobs = args.jobs.unwrap_or(1);
            let observer = Shown {
                display,
                json: display.is_json(),
                quiet: jobs > 1,
                started: Instant::now(),
            };
            let outcomes = execute(&ablation, jobs, &observer, &interrupt)?;
            finish(args, &ablation, &outcomes, display)?;
            if interrupt.is_raised() {
                return Err(Failure::Interrupted(
                    "interrupted; what was done is saved, and the same command goes on".to_owned(),
                ));
            }
            Ok(())
        }
    }
}

/// Writes and prints the table; fails when runs have no result.
fn finish(
    args: &AblateArgs,
    ablation: &Ablation,
    outcomes: &std::collections::BTreeMap<String, Outcome>,
    display: &Display,
) -> Result<(), Failure> {
    let comparison = compare(ablation, outcomes, &args.baseline)?;
    render::write(ablation, &comparison)?;
    // The table is worth no less without its page.
    let page = t3s_report::write(&ablation.folder, None, t3s_report::Budget::default());
    if let Err(error) = &page {
        eprintln!("warning: report.html was not written: {error}");
    }
    display.result(&comparison, || {
        print(ablation, &comparison);
        if let Ok(page) = page {
            println!("report: {}", page.display());
        }
    });
    let failed = outcomes
        .values()
        .any(|outcome| matches!(outcome, Outcome::Failed(_)));
    match missing(&comparison) {
        lost if failed => Err(Failure::Failed(format!(
            "{lost} of {} runs have no result; the table says why",
            ablation.runs().len()
        ))),
        _ => Ok(()),
    }
}

fn print(ablation: &Ablation, comparison: &Comparison) {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(render::HEADER);
    for row in &comparison.rows {
        table.add_row(render::fields(row));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!();
    println!("{}: {}", comparison.name, render::caption(comparison));
    println!("{table}");
    for line in render::failure_lines(comparison) {
        println!("no result: {line}");
    }
    println!("table: {}", ablation.folder.join("table.md").display());
}

/// Runs on the terminal: with one job each as `t3s run` shows it, with several a line each.
struct Shown<'d> {
    display: &'d Display,
    json: bool,
    quiet: bool,
    started: Instant,
}

impl AblationObserver for Shown<'_> {
    fn started(&self, cell: &PlannedCell, run: &PlannedRun, n: usize, total: usize) {
        let seed = run.plan.seed;
        match self.json {
            true => print_json(&serde_json::json!({
                "event": "cell-started", "run": run.id, "cell": cell.name, "seed": seed,
            })),
            false => eprintln!("run {n} of {total}: {}, seed {seed}", cell.name),
        }
    }

    fn event(&self, run: &PlannedRun, event: &Event) {
        match (self.json, event) {
            (true, event) => {
                let mut value = serde_json::to_value(event).unwrap_or_default();
                value["run"] = run.id.clone().into();
                print_json(&value);
            }
            (false, Event::RunStarted { .. } | Event::StageCached { .. }) => {}
            (false, Event::StageFinished { .. } | Event::Warning { .. }) if self.quiet => {
                if let Some(line) = crate::display::line_of(event) {
                    eprintln!("{}: {line}", run.id);
                }
            }
            (false, _) if self.quiet => {}
            (false, event) => self.display.event(event),
        }
    }

    fn finished(&self, cell: &PlannedCell, run: &PlannedRun, outcome: &Outcome) {
        let (word, message) = match outcome {
            Outcome::Done(_) => ("done", ""),
            Outcome::Failed(message) => ("failed", message.as_str()),
            Outcome::Unfinished => ("unfinished", ""),
        };
        let seed = run.plan.seed;
        match (self.json, outcome) {
            (true, _) => print_json(&serde_json::json!({
                "event": "cell-finished", "run": run.id, "cell": cell.name, "seed": seed,
                "outcome": word, "message": message,
            })),
            (false, Outcome::Failed(message)) => {
                eprintln!("{}, seed {seed}: failed: {message}", cell.name);
            }
            (false, Outcome::Done(_)) => eprintln!(
                "{}, seed {seed}: done, {} since the start",
                cell.name,
                duration(self.started.elapsed().as_secs_f64())
            ),
            (false, Outcome::Unfinished) => {}
        }
    }
}

impl From<AblateError> for Failure {
    fn from(error: AblateError) -> Self {
        match error {
            AblateError::Pipeline(error) => error.into(),
            error => Self::usage(error),
        }
    }
}
