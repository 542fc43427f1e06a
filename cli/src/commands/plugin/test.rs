//! `t3s plugin test`: the laws, in child processes, so that a plugin that ends its process is a line
//! of the report. A child notes each question before it asks; where it dies, the next child asks
//! smaller ones, until the smallest is found, and one more goes on with the next component.

mod child;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use serde::{Deserialize, Serialize};
use t3s_core::laws::Asked;

pub use child::child;

use super::guarded::Fenced;
use crate::{
    args::{PluginTestArgs, Resume},
    failure::Failure,
};

/// Children that may look for a smaller input. Each finds one, or is the last.
const MOST_CHILDREN: usize = 400;

/// What a child leaves behind.
#[derive(Serialize, Deserialize, Default)]
struct Notes {
    /// What it was doing; absent while the plugin was being loaded.
    at: Option<At>,
    /// How far it came, of its own will.
    ended: Option<Ended>,
}

/// A question to a component.
#[derive(Serialize, Deserialize, Clone)]
struct At {
    /// Which of the plugin's components.
    index: usize,
    /// Kind and name of the component.
    who: String,
    fenced: Fenced,
    /// The law under way, and its input.
    asked: Option<Asked>,
    /// What the component was given, one token per line.
    input: String,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
enum Ended {
    /// Every component keeps the laws.
    Kept,
    /// Some were not tested, the others keep the laws.
    Untested,
    /// Some component breaks a law.
    Broken,
    /// Nothing was tested.
    Refused,
}

/// Starts the children and says what became of them.
pub fn parent(args: &PluginTestArgs) -> Result<(), Failure> {
    let folder = env::temp_dir().join(format!("t3s-plugin-test-{}", std::process::id()));
    let parent = Parent {
        args,
        notes: folder,
    };
    let outcome = parent.all();
    // The notes are of this call only; one that cannot be removed does no harm.
    let _ = fs::remove_file(&parent.notes);
    let file = args.file.display();
    match outcome? {
        Ended::Kept => Ok(()),
        Ended::Broken => Err(Failure::Failed(format!("{file} does not keep the laws"))),
        Ended::Refused => Err(Failure::Usage(format!("{file} was not tested"))),
        Ended::Untested => Err(Failure::Incomplete(format!(
            "{file} keeps the laws as far as it was tested"
        ))),
    }
}

struct Parent<'a> {
    args: &'a PluginTestArgs,
    notes: PathBuf,
}

impl Parent<'_> {
    /// One component after the other, whatever becomes of each.
    fn all(&self) -> Result<Ended, Failure> {
        let (mut worst, mut from) = (Ended::Kept, 0);
        loop {
            let status = self.child(Resume::From, from)?;
            let notes = self.noted();
            if let Some(ended) = notes.ended {
                return Ok(worst.max(ended));
            }
            let Some(at) = notes.at else {
                return Err(Failure::Failed(format!(
                    "plugin {} ended the process: {}; it was being loaded",
                    self.args.file.display(),
                    death(status)
                )));
            };
            from = at.index + 1;
            self.report(status, at)?;
            worst = Ended::Broken;
        }
    }

    /// Says what ended the child, and the smallest input that does.
    fn report(&self, status: ExitStatus, at: At) -> Result<(), Failure> {
        let (smallest, status) = self.smallest(at, status)?;
        let At {
            who, asked, input, ..
        } = &smallest;
        println!("{who}: it ended the process: {}", death(status));
        let Some(asked) = asked else {
            println!("asked about its options, before any law");
            return Ok(());
        };
        println!("law {:?}, smallest input found:", asked.law());
        print!("{input}");
        if asked.shrinks() && self.dies(Resume::Same, &smallest)?.is_none() {
            println!("(asked about this alone, it lives: what was asked before it matters)");
        }
        Ok(())
    }

    /// The smallest question that a child dies of, and how.
    fn smallest(&self, mut at: At, mut status: ExitStatus) -> Result<(At, ExitStatus), Failure> {
        for _ in 0..MOST_CHILDREN {
            match self.dies(Resume::Smaller, &at)? {
                Some(died) => (at, status) = died,
                None => break,
            }
        }
        Ok((at, status))
    }

    /// Starts a child that asks about the input of `at`, or smaller ones: what it died of, and how.
    fn dies(&self, resume: Resume, at: &At) -> Result<Option<(At, ExitStatus)>, Failure> {
        if !at.asked.as_ref().is_some_and(Asked::shrinks) {
            return Ok(None);
        }
        write(
            &self.notes,
            &Notes {
                at: Some(at.clone()),
                ended: None,
            },
        )?;
        let status = self.child(resume, at.index)?;
        let notes = self.noted();
        Ok(match (notes.ended, notes.at) {
            (None, Some(found)) if found.asked.is_some() => Some((found, status)),
            _ => None,
        })
    }

    fn child(&self, resume: Resume, index: usize) -> Result<ExitStatus, Failure> {
        let program = env::current_exe().map_err(Failure::failed)?;
        let mut command = Command::new(program);
        command
            .args(["plugin", "test"])
            .arg(&self.args.file)
            .arg("--notes")
            .arg(&self.notes)
            .args(["--component", &index.to_string()]);
        if let Some(config) = &self.args.config {
            command.arg("--config").arg(config);
        }
        for pair in &self.args.overrides {
            command.args(["--set", pair]);
        }
        match resume {
            // What a plugin prints belongs to no report but the first.
            Resume::From => drop(fs::remove_file(&self.notes)),
            Resume::Same => drop(command.args(["--resume", "same"])),
            Resume::Smaller => drop(command.args(["--resume", "smaller"])),
        }
        if resume != Resume::From {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        command.status().map_err(Failure::failed)
    }

    fn noted(&self) -> Notes {
        // A child that died before its first note has left none.
        let text = fs::read(&self.notes).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

fn write(notes: &Path, noted: &Notes) -> Result<(), Failure> {
    let text = serde_json::to_vec(noted).map_err(Failure::failed)?;
    fs::write(notes, text).map_err(|error| Failure::failed(format!("{}: {error}", notes.display())))
}

fn death(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return match signal {
            6 => "it aborted (SIGABRT)".to_owned(),
            7 => "it touched memory that no file backs (SIGBUS)".to_owned(),
            8 => "it divided by zero (SIGFPE)".to_owned(),
            11 => "it read or wrote outside its columns, or wrote into one (SIGSEGV)".to_owned(),
            other => format!("it was ended by signal {other}"),
        };
    }
    format!("it called exit ({status})")
}
