//! `t3s plugin test`: the laws, in a child process, so that a plugin that ends its process is a line
//! of the report.

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitStatus},
};

use t3s_core::{
    laws,
    registry::{Kind, Registration},
    toml::Table,
};

use crate::failure::Failure;

/// Starts the child and says what became of it.
pub fn parent(file: &Path) -> Result<(), Failure> {
    let program = env::current_exe().map_err(Failure::failed)?;
    let notes = env::temp_dir().join(format!("t3s-plugin-test-{}", std::process::id()));
    let ended = Command::new(program)
        .args(["plugin", "test"])
        .arg(file)
        .arg("--notes")
        .arg(&notes)
        .status();
    let noted = fs::read_to_string(&notes).unwrap_or_default();
    // The notes are of this call only; one that cannot be removed does no harm.
    let _ = fs::remove_file(&notes);
    let status = ended.map_err(Failure::failed)?;
    match status.code() {
        Some(0) => Ok(()),
        // The child has said why.
        Some(1) => Err(Failure::Failed(format!(
            "{} does not keep the laws",
            file.display()
        ))),
        Some(2) => Err(Failure::Usage(format!("{} was not tested", file.display()))),
        _ => Err(Failure::Failed(format!(
            "plugin {} ended the process: {}{}",
            file.display(),
            death(status),
            if noted.is_empty() {
                "; it was being loaded".to_owned()
            } else {
                format!("\n{noted}")
            }
        ))),
    }
}

fn death(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return match signal {
            6 => "it aborted (SIGABRT)".to_owned(),
            7 => "it touched memory that no file backs (SIGBUS)".to_owned(),
            8 => "it divided by zero (SIGFPE)".to_owned(),
            11 => "it read or wrote outside its columns (SIGSEGV)".to_owned(),
            other => format!("it was ended by signal {other}"),
        };
    }
    format!("it called exit ({status})")
}

/// Holds every component to the laws, noting each question in `notes` before it is asked.
pub fn child(file: &Path, notes: &Path) -> Result<(), Failure> {
    let plugin = super::open(file)?;
    let notes: &'static Path = Box::leak(notes.to_owned().into_boxed_path());
    let mut broken = 0;
    for entry in plugin.components() {
        let (kind, name) = (entry.kind(), entry.name);
        let note: &'static (dyn Fn(&str) + Send + Sync) =
            Box::leak(Box::new(move |input: &str| {
                let law = laws::current();
                // Without the note only the report of a crash is poorer.
                let _ = fs::write(
                    notes,
                    format!("{kind} {name:?}, law {law:?}, input:\n{input}"),
                );
            }));
        note("(none yet)");
        match laws::registration(&watched(entry, note), &Table::new()) {
            Ok(()) if kind == Kind::Adapter => {
                println!("{kind} {name}: its registration is good; adapters have no laws");
            }
            Ok(()) => println!("{kind} {name}: keeps the laws"),
            Err(fault) => {
                println!("{kind} {name}: {fault}");
                broken += 1;
            }
        }
    }
    if broken > 0 {
        return Err(Failure::Failed(format!("{broken} broken")));
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn watched(entry: &Registration, note: &'static (dyn Fn(&str) + Send + Sync)) -> Registration {
    t3s_core::plugin::guard::guarded(entry, note)
}

#[cfg(not(target_os = "linux"))]
fn watched(entry: &Registration, _: &'static (dyn Fn(&str) + Send + Sync)) -> Registration {
    *entry
}
