//! The comparison as CSV and Markdown.

use std::{fmt::Write as _, path::Path};

use t3s_core::atomic;

use super::{
    AblateError, Ablation, TABLE,
    collect::{Comparison, Row},
};
use crate::{error::PipelineError, evaluate::Accuracy, stage::write_json, statistics::Interval};

/// Writes `table.json`, `table.csv`, `table.md` and `overlap.csv` into the ablation's folder, each
/// whole or not at all.
///
/// # Errors
/// When one cannot be written.
pub fn write(ablation: &Ablation, comparison: &Comparison) -> Result<(), AblateError> {
    let at = |name: &str| ablation.folder.join(name);
    write_json(&at(TABLE), comparison)?;
    for (name, text) in [
        ("table.csv", csv(comparison)),
        ("overlap.csv", overlap_csv(comparison)),
        ("table.md", markdown(comparison)),
    ] {
        put(&at(name), &text)?;
    }
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<(), PipelineError> {
    Ok(atomic::write_bytes(path, text.as_bytes())?)
}

/// One line per row; shares of 1, empty where there is no figure.
pub fn csv(comparison: &Comparison) -> String {
    let mut lines = vec![
        [
            "model",
            "shared",
            "strategy",
            "overrides",
            "seeds",
            "accuracy",
            "low",
            "high",
            "difference",
            "difference_low",
            "difference_high",
            "kept_share",
            "truncated",
            "unparsed",
            "mean_tokens",
            "train_seconds",
            "failures",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let ends = |interval: Option<Interval>| (interval.map(|i| i.low), interval.map(|i| i.high));
    for row in &comparison.rows {
        let (low, high) = ends(row.interval);
        let (difference_low, difference_high) = ends(row.difference_interval);
        let seeds: Vec<String> = row.seeds.iter().map(u64::to_string).collect();
        lines.push(vec![
            row.model.clone(),
            row.shared.to_string(),
            row.strategy.clone().unwrap_or_default(),
            row.overrides.join(" "),
            seeds.join(" "),
            number(row.accuracy),
            number(low),
            number(high),
            number(row.difference),
            number(difference_low),
            number(difference_high),
            number(row.kept_share),
            number(row.truncated),
            number(row.unparsed),
            number(row.mean_tokens),
            number(row.train_seconds),
            failures(row, "; "),
        ]);
    }
    lines_of(lines)
}

/// The matrix with the cells' names before and above it.
pub fn overlap_csv(comparison: &Comparison) -> String {
    let overlap = &comparison.overlap;
    let mut lines = vec![vec!["cell".to_owned()]];
    lines[0].extend(overlap.cells.iter().cloned());
    for (name, row) in overlap.cells.iter().zip(&overlap.jaccard) {
        let mut line = vec![name.clone()];
        line.extend(
            row.iter()
                .map(|v| v.map_or(String::new(), |v| v.to_string())),
        );
        lines.push(line);
    }
    lines_of(lines)
}

/// RFC 4180, with line feeds.
fn lines_of(lines: Vec<Vec<String>>) -> String {
    let mut text = String::new();
    for line in lines {
        let fields: Vec<String> = line
            .into_iter()
            .map(|field| match field.contains([',', '"', '\n', '\r']) {
                true => format!("\"{}\"", field.replace('"', "\"\"")),
                false => field,
            })
            .collect();
        text += &fields.join(",");
        text.push('\n');
    }
    text
}

/// The head of the table that people read.
pub const HEADER: [&str; 7] = [
    "model",
    "runs",
    "accuracy, %",
    "95 % interval",
    "difference",
    "95 % interval",
    "kept, %",
];

/// The fields of a row under [`HEADER`].
pub fn fields(row: &Row) -> [String; 7] {
    let percent =
        |value: Option<f64>| value.map_or_else(String::new, |v| format!("{:.1}", 100.0 * v));
    let signed =
        |value: Option<f64>| value.map_or_else(String::new, |v| format!("{:+.1}", 100.0 * v));
    let ends = |interval: Option<Interval>, show: &dyn Fn(Option<f64>) -> String| {
        interval.map_or_else(String::new, |i| {
            format!("{} to {}", show(Some(i.low)), show(Some(i.high)))
        })
    };
    let runs = match row.failures.len() {
        0 => row.seeds.len().to_string(),
        lost => format!("{} of {}", row.seeds.len(), row.seeds.len() + lost),
    };
    [
        row.model.clone(),
        runs,
        percent(row.accuracy),
        ends(row.interval, &percent),
        signed(row.difference),
        ends(row.difference_interval, &signed),
        percent(row.kept_share),
    ]
}

/// What the figures are, in a sentence.
pub fn caption(comparison: &Comparison) -> String {
    let what = match (comparison.problems, comparison.samples) {
        (Some(problems), Some(samples)) => Accuracy::asked(problems, samples),
        _ => "no results yet".to_owned(),
    };
    format!(
        "{what}; differences are to {}, paired by problem and seed; intervals by {} resamples of \
         seeds and problems (seed {})",
        comparison.baseline, comparison.intervals.resamples, comparison.intervals.seed
    )
}

/// Runs without a result, one sentence each.
pub fn failure_lines(comparison: &Comparison) -> Vec<String> {
    let of = |row: &Row| {
        let line =
            |f: &super::collect::Failure| format!("{}, seed {}: {}", row.model, f.seed, f.message);
        row.failures.iter().map(line).collect::<Vec<_>>()
    };
    comparison.rows.iter().flat_map(of).collect()
}

fn failures(row: &Row, between: &str) -> String {
    let all: Vec<String> = row
        .failures
        .iter()
        .map(|failure| format!("seed {}: {}", failure.seed, failure.message))
        .collect();
    all.join(between)
}

/// Both tables and what failed.
pub fn markdown(comparison: &Comparison) -> String {
    let mut text = format!("# {}\n\n{}.\n\n", comparison.name, caption(comparison));
    let rows: Vec<Vec<String>> = comparison
        .rows
        .iter()
        .map(|row| fields(row).to_vec())
        .collect();
    table(&mut text, &HEADER.map(str::to_owned), &rows);
    let overlap = &comparison.overlap;
    if overlap.cells.len() > 1 {
        text += "\nOverlap of the kept tokens (Jaccard), the mean over seeds:\n\n";
        let mut header = vec![String::new()];
        header.extend(overlap.cells.iter().cloned());
        let lines = overlap.cells.iter().zip(&overlap.jaccard);
        let rows: Vec<Vec<String>> = lines
            .map(|(name, row)| {
                let values = row
                    .iter()
                    .map(|value| value.map_or(String::new(), |value| format!("{value:.2}")));
                std::iter::once(name.clone()).chain(values).collect()
            })
            .collect();
        table(&mut text, &header, &rows);
    }
    let lost = failure_lines(comparison);
    if !lost.is_empty() {
        text += "\nWithout a result:\n\n";
        for line in lost {
            let _ = writeln!(text, "* {}", line.replace('\n', " "));
        }
    }
    text
}

fn table(text: &mut String, header: &[String], rows: &[Vec<String>]) {
    let line = |fields: &[String]| {
        let fields: Vec<String> = fields.iter().map(|f| f.replace('|', "\\|")).collect();
        format!("| {} |\n", fields.join(" | "))
    };
    *text += &line(header);
    *text += &format!("|---|{}\n", "---:|".repeat(header.len() - 1));
    for row in rows {
        *text += &line(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_with_commas_and_quotes_are_quoted() {
        let line = ["a, b", "say \"x\"", "plain"].map(str::to_owned).to_vec();
        assert_eq!(lines_of(vec![line]), "\"a, b\",\"say \"\"x\"\"\",plain\n");
    }
}
