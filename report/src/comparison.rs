//! The page of an ablation: its table, and the overlap of what its cells keep.

use std::{fs, path::Path};

use minijinja::{context, value::Serde};
use serde::Serialize;
use t3s_pipeline::{
    ablate::{
        TABLE,
        collect::{Comparison, Row},
        is_ablation, render,
    },
    statistics::Interval,
};

use crate::{error::ReportError, page};

const HTML: &str = include_str!("page/comparison.html");

/// A row of the table; text is as it stands there.
#[derive(Debug, Serialize)]
struct Line {
    model: String,
    baseline: bool,
    accuracy: String,
    interval: String,
    place: Option<Place>,
    difference: String,
    difference_interval: String,
    difference_place: Option<Place>,
    kept: String,
    runs: String,
    truncated: String,
    unparsed: String,
    tokens: String,
}

/// A value and its interval on a line, per cent of it.
#[derive(Debug, Serialize)]
struct Place {
    at: f64,
    low: Option<f64>,
    width: f64,
}

#[derive(Debug, Serialize)]
struct Overlap {
    names: Vec<String>,
    rows: Vec<OverlapRow>,
}

#[derive(Debug, Serialize)]
struct OverlapRow {
    name: String,
    cells: Vec<Option<Cell>>,
}

#[derive(Debug, Serialize)]
struct Cell {
    value: String,
    strength: f64,
}

/// The comparison in the ablation's folder `folder`; `None` of another folder.
///
/// # Errors
/// When it has none yet, or it cannot be read.
pub fn read(folder: &Path) -> Result<Option<Comparison>, ReportError> {
    if !is_ablation(folder) {
        return Ok(None);
    }
    let path = folder.join(TABLE);
    let missing = |what: String| {
        ReportError::Missing(format!(
            "{}: {what}; t3s ablate with --collect writes it",
            path.display()
        ))
    };
    let text = fs::read(&path).map_err(|error| missing(error.to_string()))?;
    let comparison = serde_json::from_slice(&text)
        .map_err(|error| missing(format!("is not what this version wrote: {error}")))?;
    Ok(Some(comparison))
}

/// The page.
///
/// # Errors
/// When the template is wrong.
pub fn render(comparison: &Comparison) -> Result<String, ReportError> {
    let scale = scale(&comparison.rows);
    let lines: Vec<Line> = comparison
        .rows
        .iter()
        .map(|row| line(row, &comparison.baseline, scale))
        .collect();
    let overlap = &comparison.overlap;
    let cell = |value: &Option<f64>| {
        value.map(|value| Cell {
            value: format!("{value:.2}"),
            strength: value,
        })
    };
    let overlap = Overlap {
        names: overlap.cells.clone(),
        rows: match overlap.cells.len() {
            // One overlaps with itself.
            0 | 1 => Vec::new(),
            _ => overlap
                .cells
                .iter()
                .zip(&overlap.jaccard)
                .map(|(name, row)| OverlapRow {
                    name: name.clone(),
                    cells: row.iter().map(cell).collect(),
                })
                .collect(),
        },
    };
    page::fill(
        HTML,
        context! {
            name => comparison.name.as_str(),
            version => comparison.version.as_str(),
            caption => render::caption(comparison),
            rows => Serde(lines),
            scale => (100.0 * scale).round() as u64,
            overlap => Serde(overlap),
            failures => render::failure_lines(comparison),
        },
    )
}

/// How far the lines of differences reach to either side: the furthest interval, in tenths.
fn scale(rows: &[Row]) -> f64 {
    let ends = rows.iter().flat_map(|row| {
        let interval = row.difference_interval.map(|i| [i.low.abs(), i.high.abs()]);
        interval
            .into_iter()
            .flatten()
            .chain(row.difference.map(f64::abs))
    });
    let furthest = ends.fold(0.1, f64::max);
    (10.0 * furthest).ceil() / 10.0
}

fn line(row: &Row, baseline: &str, scale: f64) -> Line {
    let percent =
        |share: Option<f64>| share.map_or(String::new(), |s| format!("{:.1} %", 100.0 * s));
    let [_, runs, _, interval, difference, difference_interval, _] = render::fields(row);
    let place = |value: Option<f64>, interval: Option<Interval>, on: &dyn Fn(f64) -> f64| {
        let on = |value| (10.0 * on(value)).round() / 10.0;
        value.map(|value| Place {
            at: on(value),
            low: interval.map(|i| on(i.low)),
            width: interval.map_or(0.0, |i| on(i.high) - on(i.low)),
        })
    };
    Line {
        model: row.model.clone(),
        baseline: row.model == baseline
            || (row.shared && row.accuracy.is_some() && row.difference.is_none()),
        accuracy: percent(row.accuracy),
        interval,
        place: place(row.accuracy, row.interval, &|share| 100.0 * share),
        difference,
        difference_interval,
        difference_place: place(row.difference, row.difference_interval, &|d| {
            50.0 + 50.0 * d / scale
        }),
        kept: percent(row.kept_share),
        runs,
        truncated: percent(row.truncated),
        unparsed: percent(row.unparsed),
        tokens: row.mean_tokens.map_or(String::new(), |n| format!("{n:.0}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_every_row_and_what_failed_and_no_script_of_theirs() {
        let interval = Interval {
            low: 0.4,
            high: 0.6,
        };
        let row = |model: &str| Row {
            model: model.to_owned(),
            accuracy: Some(0.5),
            interval: Some(interval),
            difference: Some(-0.12),
            difference_interval: Some(Interval {
                low: -0.22,
                high: 0.0,
            }),
            ..Row::default()
        };
        let mut comparison: Comparison = serde_json::from_value(serde_json::json!({
            "name": "n", "version": "0", "baseline": "sft", "problems": 10, "samples": 1,
            "intervals": { "resamples": 1, "seed": 0 }, "rows": [],
            "overlap": { "cells": ["a", "b"], "jaccard": [[1.0, 0.25], [0.25, 1.0]] },
        }))
        .unwrap();
        comparison.rows = vec![row("a"), row("<script>b"), Row::default()];
        comparison.rows[2].failures = vec![t3s_pipeline::ablate::collect::Failure {
            seed: 7,
            message: "no <b>".to_owned(),
        }];
        let html = render(&comparison).unwrap();
        assert_eq!(html.matches("<script").count(), 1);
        assert!(html.contains("seed 7: no &lt;b&gt;"));
        assert!(html.contains("are 30 points to either side") && html.contains("0.25"));
        assert!(
            html.contains("-22.0 to +0.0") && html.contains("left:30.0%"),
            "{html}"
        );
    }
}
