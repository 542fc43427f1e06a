//! `t3s task`: the rows of a synthetic task.

use t3s_core::atomic;
use t3s_data::arithmetic::{Split, Style, row};

use crate::{
    args::{StyleArg, Task, TaskArgs},
    failure::Failure,
};

/// Writes a task.
pub fn run(args: &TaskArgs) -> Result<(), Failure> {
    let Task::Arithmetic {
        rows,
        style,
        prefix,
        held_out,
        largest,
        seed,
        out,
    } = &args.task;
    let style = match style {
        StyleArg::Student => Style::Student,
        StyleArg::Teacher => Style::Teacher,
        StyleArg::Tutor => Style::Tutor,
    };
    let split = if *held_out {
        Split::HeldOut
    } else {
        Split::Train
    };
    atomic::write(out, |file| {
        for index in 0..*rows {
            let mut row = row(*seed, split, style, *largest, index);
            if let Some(question) = row["question"].as_str() {
                row["question"] = format!("{prefix}{question}").into();
            }
            serde_json::to_writer(&mut *file, &row)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })?;
    println!("{rows} rows: {}", out.display());
    Ok(())
}
