//! An array job for Slurm: one task per run.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use t3s_core::atomic;

use super::{AblateError, Ablation};
use crate::error::PipelineError;

/// The script, in the ablation's folder.
const SCRIPT: &str = "array.sbatch";

/// Writes the script and says where it is. Each task runs the resolved plan of one run with
/// `program`; a task that finds another at a stage it needs waits for that stage. At most `jobs`
/// tasks run at once (0: no limit).
///
/// # Errors
/// When it cannot be written.
pub fn write(ablation: &Ablation, program: &Path, jobs: usize) -> Result<PathBuf, AblateError> {
    let path = ablation.folder.join(SCRIPT);
    let text = script(ablation, program, jobs);
    atomic::write_bytes(&path, text.as_bytes()).map_err(PipelineError::Write)?;
    Ok(path)
}

/// The script's text.
pub fn script(ablation: &Ablation, program: &Path, jobs: usize) -> String {
    let runs = ablation.runs();
    let limit = match jobs {
        0 => String::new(),
        jobs => format!("%{jobs}"),
    };
    let folder = ablation.folder.to_string_lossy();
    let mut text = format!(
        "#!/bin/bash\n\
         # One task per run of the ablation {name}. Resources (time, memory, GPUs, partition) are the\n\
         # cluster's matter: add #SBATCH lines, or give them to sbatch. Submitting it again goes on\n\
         # where tasks were stopped; what is done is not done again.\n\
         #SBATCH --job-name={job}\n\
         #SBATCH --array=0-{last}{limit}\n\
         #SBATCH --output={log}\n\
         set -euo pipefail\n\n\
         runs=(\n",
        name = one_line(&ablation.name),
        job = slug(&ablation.name),
        last = runs.len().saturating_sub(1),
        log = sbatch_value(&format!("{folder}/slurm-%A_%a.log")),
    );
    for (cell, run) in runs {
        let _ = writeln!(
            text,
            "  {}  # {}, seed {}",
            quoted(&run.id),
            one_line(&cell.name),
            run.plan.seed
        );
    }
    let _ = write!(
        text,
        ")\n\
         folder={folder}\n\
         exec {program} --threads \"${{SLURM_CPUS_PER_TASK:-0}}\" run \
         \"$folder/plans/${{runs[$SLURM_ARRAY_TASK_ID]}}.toml\"\n",
        folder = quoted(&folder),
        program = quoted(&program.to_string_lossy()),
    );
    text
}

/// For a shell: in single quotes.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+=".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// For an #SBATCH line, where a space would end the value.
fn sbatch_value(text: &str) -> String {
    match text.contains(char::is_whitespace) {
        true => format!("\"{text}\""),
        false => text.to_owned(),
    }
}

fn slug(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect()
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}
