//! The figures of `t3s analyse`, drawn from the tables it wrote.

use std::{fs, path::Path};

use serde::Serialize;
use serde_json::Value;
use t3s_core::atomic;
use t3s_pipeline::analyse::FOLDER;

use crate::{
    chart::{Chart, Mark, Series, Size, Unit, palette},
    error::ReportError,
    figures::{Figure, Numbers},
};

/// What the page shows of an analysis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    /// What was looked at.
    about: String,
    ratio: Figure,
    cosine: Figure,
    intervention: Figure,
    suppressed: Figure,
    map: Figure,
    transfer: Transfer,
}

/// The transfer matrix.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Transfer {
    says: String,
    parts: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    name: String,
    cells: Vec<Cell>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Cell {
    #[serde(skip)]
    change: f64,
    value: String,
    /// How dark, per cent; its sign is in `rises`.
    strength: i64,
    rises: bool,
}

/// A table as it was written.
struct Table {
    about: Value,
    rows: Vec<Value>,
}

impl Table {
    /// `None` where the run was not analysed.
    fn read(run: &Path, name: &str) -> Result<Option<Self>, ReportError> {
        let path = run.join(FOLDER).join(format!("{name}.json"));
        let Ok(text) = fs::read(&path) else {
            return Ok(None);
        };
        let broken = || {
            ReportError::Missing(format!(
                "{}: is not what t3s analyse wrote; run it again",
                path.display()
            ))
        };
        let mut value: Value = serde_json::from_slice(&text).map_err(|_| broken())?;
        let Value::Array(rows) = value["rows"].take() else {
            return Err(broken());
        };
        let about = value["about"].take();
        Ok(Some(Self { about, rows }))
    }

    /// Points of two columns, of the rows that `pick` takes.
    fn points(&self, x: &str, y: &str, pick: impl Fn(&Value) -> bool) -> Vec<(f64, f64)> {
        let rows = self.rows.iter().filter(|row| pick(row));
        rows.filter_map(|row| Some((row[x].as_f64()?, row[y].as_f64()?)))
            .collect()
    }

    fn numbers(&self, columns: &[&str]) -> Numbers {
        let cell = |value: &Value| match value {
            Value::String(text) => text.clone(),
            value => match value.as_f64() {
                Some(number) if value.is_f64() => format!("{number:.4}"),
                _ => value.to_string(),
            },
        };
        Numbers {
            head: columns.iter().map(|name| name.replace('_', " ")).collect(),
            rows: self
                .rows
                .iter()
                .map(|row| columns.iter().map(|name| cell(&row[*name])).collect())
                .collect(),
        }
    }
}

/// Most dots of the map, so that the page stays small; the table has them all.
const DOTS: usize = 1500;

fn any(_: &Value) -> bool {
    true
}

/// The analysis of the run in the folder `run`, drawn; `None` where there is none. `bottleneck` is
/// marked.
///
/// # Errors
/// When a table is not what `t3s analyse` wrote, or cannot be drawn.
pub(crate) fn diagnosis(
    run: &Path,
    bottleneck: Option<u64>,
) -> Result<Option<Diagnosis>, ReportError> {
    let table = |name: &str| Table::read(run, name);
    let (Some(gradients), Some(steps), Some(transfer), Some(suppressed), Some(map)) = (
        table("gradients")?,
        table("intervention")?,
        table("transfer")?,
        table("suppressed")?,
        table("sketch-map")?,
    ) else {
        return Ok(None);
    };
    let about = &gradients.about;
    let about = format!(
        "{} tokens of {} evenly spread traces, {} of them anchors; one step of {} at rate {}.",
        about["tokens"],
        about["examples"],
        about["anchors"],
        match about["rule"].as_str() {
            Some("sgd") => "plain gradient descent",
            _ => "AdamW",
        },
        about["learning_rate"]
    );
    let rule = bottleneck.map(|step| (step as f64, format!("bottleneck, step {step}")));
    let along_probe = || Chart {
        x_label: "optimiser step of the probe".into(),
        rule: rule.clone(),
        ..Chart::default()
    };
    let line = |name: &str, colour, points| Series::new(name, colour, vec![Mark::Dotted(points)]);
    let ratio = Figure::draw(
        &Chart {
            y_include: vec![0.0],
            series: vec![line(
                "|g| of anchors over |g| of others",
                palette::KEPT,
                gradients.points("step", "ratio", any),
            )],
            ..along_probe()
        },
        "How much longer the gradient of the anchors' mean loss is than that of the others'."
            .into(),
        gradients.numbers(&["step", "anchor_norm", "other_norm", "ratio"]),
        "There is no checkpoint.",
    )?;
    let cosine = Figure::draw(
        &Chart {
            y_include: vec![-1.0, 1.0],
            series: vec![line(
                "cosine of both gradients",
                palette::KEPT,
                gradients.points("step", "cosine", any),
            )],
            ..along_probe()
        },
        "Below 0 a small step along one raises the loss of the other.".into(),
        gradients.numbers(&["step", "cosine", "anchor_loss", "other_loss"]),
        "There is no checkpoint.",
    )?;
    let on = |group: &'static str| move |row: &Value| row["on"] == group;
    let at_bottleneck = |column: &str, group: &'static str| {
        let points = steps.points("step", column, on(group));
        let found = points
            .iter()
            .find(|point| Some(point.0) == bottleneck.map(|b| b as f64));
        found.map(|point| point.1)
    };
    let says = match (
        at_bottleneck("anchors", "anchors"),
        at_bottleneck("others", "anchors"),
    ) {
        (Some(own), Some(others)) => format!(
            "What one step on the loss of one group alone does to the other. At the bottleneck a step \
             on the anchors changes their own loss by {own:+.4} nats and that of the others by \
             {others:+.4}."
        ),
        _ => "What one step on the loss of one group alone does to the other.".to_owned(),
    };
    let intervention = Figure::draw(
        &Chart {
            y_label: "change of the mean loss, nats".into(),
            y_include: vec![0.0],
            series: vec![
                line(
                    "others, after a step on the anchors",
                    palette::KEPT,
                    steps.points("step", "others", on("anchors")),
                ),
                line(
                    "anchors, after a step on the others",
                    palette::DROPPED,
                    steps.points("step", "anchors", on("others")),
                ),
                Series::new(
                    "others, foretold by the gradient",
                    palette::ALL,
                    vec![Mark::Dashed(steps.points(
                        "step",
                        "foretold",
                        on("anchors"),
                    ))],
                ),
            ],
            ..along_probe()
        },
        says,
        steps.numbers(&["step", "on", "anchors", "others", "foretold"]),
        "There is no checkpoint.",
    )?;
    let share = |name: &str, colour, column: &str| {
        line(name, colour, suppressed.points("step", column, any))
    };
    let suppressed = Figure::draw(
        &Chart {
            y_unit: Unit::Share,
            y_include: vec![0.0, 1.0],
            series: vec![
                share("all", palette::ALL, "all"),
                share("others", palette::KEPT, "others"),
                share("anchors", palette::DROPPED, "anchors"),
            ],
            ..along_probe()
        },
        "Share of tokens that are less likely than under the base. At the bottleneck this is what \
         parts anchors from others."
            .into(),
        suppressed.numbers(&["step", "all", "anchors", "others"]),
        "There is no checkpoint.",
    )?;
    let at_base = map.rows.iter().filter(|row| row["model"] == "base").count();
    let every = at_base.div_ceil(DOTS).max(1);
    let cloud = |name: &str, colour, group: &str| {
        let points = map.points("x", "y", |row| {
            row["group"] == group && row["model"] == "base"
        });
        let points = points.into_iter().step_by(every).collect();
        Series::new(name, colour, vec![Mark::Dots(points)])
    };
    let explained = &map.about["explained"];
    let shown = [&explained[0], &explained[1]].map(|part| 100.0 * part.as_f64().unwrap_or(0.0));
    let map = Figure::draw(
        &Chart {
            x_label: "first axis".into(),
            y_label: "second axis".into(),
            series: vec![
                cloud("others", palette::KEPT, "other"),
                cloud("anchors", palette::DROPPED, "anchor"),
            ],
            ..Chart::default()
        },
        format!(
            "Directions of the tokens' gradient sketches at the base, on the plane of their two \
             main axes, which hold {:.0} % and {:.0} % of the variance. What lies together here need \
             not lie together.",
            shown[0], shown[1]
        ),
        Numbers::default(),
        "There is no token.",
    )?;
    Ok(Some(Diagnosis {
        about,
        ratio,
        cosine,
        intervention,
        suppressed,
        map,
        transfer: matrix(&transfer),
    }))
}

fn matrix(table: &Table) -> Transfer {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut parts: Vec<String> = Vec::new();
    for row in &table.rows {
        let name = text(&row["learnt"]);
        if !parts.contains(&name) {
            parts.push(name);
        }
    }
    let change = |row: &Value| row["change"].as_f64().unwrap_or(f64::NAN);
    let largest = table
        .rows
        .iter()
        .map(|row| change(row).abs())
        .fold(0.0, f64::max);
    let cell = |value: f64| Cell {
        change: value,
        value: match format!("{value:+.3}").as_str() {
            "+0.000" | "-0.000" => "0.000".to_owned(),
            text => text.to_owned(),
        },
        strength: (100.0 * value.abs() / largest.max(1e-12)).round() as i64,
        rises: value > 0.0,
    };
    let rows = parts
        .iter()
        .map(|name| Row {
            name: name.clone(),
            cells: table
                .rows
                .iter()
                .filter(|row| row["learnt"] == name.as_str())
                .map(|row| cell(change(row)))
                .collect(),
        })
        .collect();
    Transfer {
        says: format!(
            "Change of the mean loss of each part (column), nats, after {} steps on one part alone \
             (row), from the base.",
            table.about["transfer_steps"]
        ),
        parts,
        rows,
    }
}

/// Writes each figure of the analysis of `run` as an SVG file beside its table.
///
/// # Errors
/// When there is none, or a file cannot be written.
pub fn write_figures(run: &Path, bottleneck: Option<u64>) -> Result<(), ReportError> {
    let Some(found) = diagnosis(run, bottleneck)? else {
        return Err(ReportError::Missing(format!(
            "{}: this run was not analysed; t3s analyse does",
            run.display()
        )));
    };
    let folder = run.join(FOLDER);
    for (name, figure) in [
        ("gradients", &found.ratio),
        ("cosine", &found.cosine),
        ("intervention", &found.intervention),
        ("suppressed", &found.suppressed),
        ("sketch-map", &found.map),
    ] {
        if let Figure::Drawn { wide, .. } = figure {
            atomic::write_bytes(&folder.join(format!("{name}.svg")), wide.as_bytes())?;
        }
    }
    let svg = matrix_svg(&found.transfer)?;
    Ok(atomic::write_bytes(
        &folder.join("transfer.svg"),
        svg.as_bytes(),
    )?)
}

/// The matrix as bars, one group for each part that was learnt.
fn matrix_svg(transfer: &Transfer) -> Result<String, ReportError> {
    let colours = [palette::KEPT, palette::DROPPED, palette::ALL, palette::MARK];
    let series = transfer.parts.iter().zip(colours).enumerate();
    let series = series.map(|(column, (name, colour))| {
        let bars = transfer.rows.iter().enumerate().map(|(row, cells)| {
            let value = cells.cells[column].change;
            let left = row as f64 + 1.0 + 0.2 * column as f64 - 0.4;
            (left, left + 0.18, value.min(0.0), value.max(0.0))
        });
        Series::new(name, colour, vec![Mark::Bars(bars.collect())])
    });
    Chart {
        x_label: "part that was learnt, in the order of the legend".into(),
        y_label: "change of the mean loss, nats".into(),
        y_include: vec![0.0],
        series: series.collect(),
        ..Chart::default()
    }
    .svg(Size::WIDE)
}
