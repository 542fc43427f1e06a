//! `t3s plugin test`: the laws, in child processes, so that a plugin that ends its process is a line
//! of the report. A child notes each question before it asks; where it dies, the next child asks
//! smaller ones, until the smallest is found, and one more goes on with the next component.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use serde::{Deserialize, Serialize};
use t3s_core::{
    laws::{self, Again, Asked},
    registry::Registration,
    toml::Table,
};

use super::guarded::{Fenced, SIDES, no_core_file, watched};
use crate::{
    args::{PluginTestArgs, Resume},
    commands::set,
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
        print!(
            "law {:?}, smallest input found:\n{input}{}",
            asked.law(),
            if self.dies(Resume::Same, &smallest)?.is_some() {
                ""
            } else {
                "(asked about this alone, it lives: what was asked before it matters)\n"
            }
        );
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
        if at.asked.is_none() {
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

/// Holds the components from one on to the laws, or asks one about one input again.
pub fn child(args: &PluginTestArgs, notes: &Path) -> Result<(), Failure> {
    no_core_file();
    let before = fs::read(notes).ok();
    let before: Option<Notes> = before.and_then(|text| serde_json::from_slice(&text).ok());
    // Until a component is asked, the plugin is being loaded.
    write(notes, &Notes::default())?;
    let tested = tested(args, notes, before);
    let ended = match &tested {
        Ok(ended) => *ended,
        Err(_) => Ended::Refused,
    };
    write(
        notes,
        &Notes {
            at: None,
            ended: Some(ended),
        },
    )?;
    tested.map(drop)
}

fn tested(args: &PluginTestArgs, notes: &Path, before: Option<Notes>) -> Result<Ended, Failure> {
    let plugin = super::open(&args.file)?;
    let entries = plugin.components();
    let sets = overrides(&args.overrides, entries)?;
    let first = args.component.min(entries.len());
    if args.resume != Resume::From {
        let at = before.and_then(|notes| notes.at);
        let (Some(at), Some(entry)) = (at, entries.get(first)) else {
            return Err(Failure::usage("no notes to resume from"));
        };
        let again = match args.resume {
            Resume::Smaller => Again::Smaller,
            _ => Again::Same,
        };
        if let Some(asked) = &at.asked {
            let entry = watched(entry, at.fenced, note(notes, first, entry, at.fenced));
            laws::ask_again(&entry, &sets[first], asked, again);
        }
        return Ok(Ended::Kept);
    }
    let mut worst = Ended::Kept;
    for (index, entry) in entries.iter().enumerate().skip(first) {
        worst = worst.max(held(index, entry, &sets[index], notes));
    }
    Ok(worst)
}

/// Holds one component to the laws and says whether it keeps them.
fn held(index: usize, entry: &Registration, options: &Table, notes: &Path) -> Ended {
    let (kind, name) = (entry.kind(), entry.name);
    let lacking = laws::required(entry, options);
    if !lacking.is_empty() {
        let sets: Vec<String> = lacking
            .iter()
            .map(|option| format!("--set {name}.{option}=VALUE"))
            .collect();
        println!("{kind} {name}: not tested; it needs {}", sets.join(" "));
        return Ended::Untested;
    }
    for fenced in SIDES {
        let note = note(notes, index, entry, *fenced);
        note("");
        if let Err(fault) = laws::registration(&watched(entry, *fenced, note), options) {
            println!("{kind} {name}: {fault}");
            return Ended::Broken;
        }
    }
    println!("{kind} {name}: keeps the laws");
    Ended::Kept
}

/// Writes down what the component `entry` is about to be asked.
fn note(
    notes: &Path,
    index: usize,
    entry: &Registration,
    fenced: Fenced,
) -> &'static (dyn Fn(&str) + Send + Sync) {
    let notes = notes.to_owned();
    let who = format!("{} {}", entry.kind(), entry.name);
    Box::leak(Box::new(move |input: &str| {
        let at = At {
            index,
            who: who.clone(),
            fenced,
            asked: laws::asked(),
            input: input.to_owned(),
        };
        // Without the note only the report of a crash is poorer.
        let _ = write(
            &notes,
            &Notes {
                at: Some(at),
                ended: None,
            },
        );
    }))
}

/// The options of each component: `NAME.KEY=VALUE`, with more keys for tables inside.
fn overrides(pairs: &[String], entries: &[Registration]) -> Result<Vec<Table>, Failure> {
    let mut sets = vec![Table::new(); entries.len()];
    for text in pairs {
        let (path, value) = set::pair(text, "COMPONENT.KEY=VALUE, e.g. my-rule.share=0.2")?;
        let Some((name, path)) = path.split_once('.') else {
            return Err(Failure::usage(format!(
                "--set {text}: write COMPONENT.KEY=VALUE; which component is meant?"
            )));
        };
        let mut known = false;
        for (entry, options) in entries.iter().zip(&mut sets) {
            if entry.name == name {
                known = true;
                put(options, path, value.clone())
                    .map_err(|at| Failure::usage(format!("--set {text}: {at} is no table")))?;
            }
        }
        if !known {
            let names: Vec<&str> = entries.iter().map(|entry| entry.name).collect();
            return Err(Failure::usage(format!(
                "--set {text}: the plugin has no component {name:?}; it has {}",
                names.join(", ")
            )));
        }
    }
    Ok(sets)
}

/// Puts `value` at `path`; the key that stands in the way if it cannot.
fn put<'p>(table: &mut Table, path: &'p str, value: t3s_core::toml::Value) -> Result<(), &'p str> {
    let Some((first, rest)) = path.split_once('.') else {
        table.insert(path.to_owned(), value);
        return Ok(());
    };
    let inner = table
        .entry(first)
        .or_insert_with(|| Table::new().into())
        .as_table_mut()
        .ok_or(first)?;
    put(inner, rest, value)
}
