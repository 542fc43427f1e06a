//! `t3s lens`: a trace token by token in a terminal, coloured by a column.

mod draw;

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

use serde_json::{Map, Value, json};
use t3s_data::Tokenizer;
use t3s_pipeline::recorded::RecordedRun;
use t3s_report::{Column, Tokens, Trace, tokenizer_of};

use crate::{
    args::{ColourChoice, LensArgs},
    display::Display,
    failure::Failure,
};
use draw::Canvas;

/// Shows a trace.
pub fn run(args: &LensArgs, display: &Display) -> Result<(), Failure> {
    let tokens = open(args)?;
    let trace = tokens.trace(index(&tokens, args.example)?)?;
    let column = column(&tokens, args.by.as_deref())?;
    let mut text = Vec::new();
    if args.numbers {
        draw::numbers(&mut text, &tokens, &trace, width(args))
    } else {
        let canvas = Canvas {
            width: width(args),
            colour: colour(args.colour),
        };
        draw::trace(&mut text, &tokens, &trace, column, canvas)
    }
    .map_err(Failure::failed)?;
    display.result(&as_json(&tokens, &trace), || {
        // Into `head`, for example: whoever reads has seen enough.
        let _ = io::stdout().write_all(&text);
    });
    Ok(())
}

fn open(args: &LensArgs) -> Result<Tokens, Failure> {
    let path = &args.store;
    let named = match &args.tokenizer {
        Some(folder) => Some(Tokenizer::load(folder, None)?),
        None => None,
    };
    if path.is_dir() {
        let run = RecordedRun::open(path)?;
        let tokens = Tokens::of_run(&run)?.ok_or_else(|| {
            Failure::usage(format!(
                "{}: nothing was scored in this run yet; go on with t3s run",
                path.display()
            ))
        })?;
        return Ok(match named {
            Some(tokenizer) => tokens.with_tokenizer(tokenizer),
            None => tokens,
        });
    }
    let tokenizer = match named {
        Some(tokenizer) => Some(tokenizer),
        None => around(path)?,
    };
    if tokenizer.is_none() {
        eprintln!(
            "warning: {} lies in no run folder, so tokens are shown by their ids; name a folder \
             with tokenizer.json in --tokenizer",
            path.display()
        );
    }
    Ok(Tokens::of_file(path, tokenizer)?)
}

/// The tokenizer of the run folder that `path` lies in.
fn around(path: &Path) -> Result<Option<Tokenizer>, Failure> {
    let Some(folder) = RecordedRun::around(path) else {
        return Ok(None);
    };
    Ok(tokenizer_of(&RecordedRun::open(&folder)?)?)
}

/// Where the example with the row number `id` stands.
fn index(tokens: &Tokens, id: u64) -> Result<usize, Failure> {
    let ids = tokens.view().example_ids();
    ids.iter().position(|known| *known == id).ok_or_else(|| {
        let some: Vec<String> = ids.iter().take(8).map(u64::to_string).collect();
        Failure::usage(format!(
            "--example {id}: there is no such row among the {} scored ones; they begin with {}",
            ids.len(),
            some.join(", ")
        ))
    })
}

/// The column to colour by: the one named, or the first of those that say most.
fn column<'t>(tokens: &'t Tokens, name: Option<&str>) -> Result<&'t Column, Failure> {
    let found = match name {
        Some(name) => tokens.column(name),
        None => ["delta-c", "weight"]
            .iter()
            .find_map(|name| tokens.column(name))
            .or(tokens.columns.first()),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = tokens.columns.iter().map(|c| c.name.as_str()).collect();
        Failure::usage(format!(
            "--by {}: there is no such column; there are {}",
            name.unwrap_or_default(),
            names.join(", ")
        ))
    })
}

fn width(args: &LensArgs) -> usize {
    let asked = args.width.filter(|width| *width > 0);
    let known = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    asked.or_else(known).unwrap_or(80).clamp(20, 400)
}

/// Colours on a terminal, unless `NO_COLOR` is set to something (no-color.org).
fn colour(choice: ColourChoice) -> bool {
    match choice {
        ColourChoice::Always => true,
        ColourChoice::Never => false,
        ColourChoice::Auto => {
            let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            io::stdout().is_terminal() && !refused && !dumb
        }
    }
}

fn as_json(tokens: &Tokens, trace: &Trace) -> Value {
    let columns: Map<String, Value> = tokens
        .columns
        .iter()
        .map(|column| {
            let values = &column.values[trace.rows.clone()];
            (column.name.clone(), json!(values))
        })
        .collect();
    let view = tokens.view();
    json!({
        "example": trace.id,
        "prompt": tokens.prompt(trace.id).map(|prompt| &prompt.text),
        "tokens": trace.pieces,
        "token_ids": &view.token_ids()[trace.rows.clone()],
        "positions": &view.positions()[trace.rows.clone()],
        "columns": columns,
    })
}
