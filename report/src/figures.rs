//! The page's figures: from facts to charts, each with its numbers beside it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    chart::{Chart, Mark, Series, Size, Unit, from_signed_log, palette, signed_log},
    error::ReportError,
    facts::{Facts, Moment},
    steps::{self, Point},
};

/// A figure, or the sentence that stands in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// A chart.
    Drawn {
        /// In a column of a wide window.
        wide: String,
        /// On a telephone.
        narrow: String,
        /// What it says, for those who do not see it and for those who do.
        says: String,
        /// Its numbers.
        numbers: Numbers,
    },
    /// Why there is none.
    Missing(String),
}

/// A table of numbers, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Numbers {
    /// Names of the columns.
    pub head: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

impl Numbers {
    fn new(head: &[&str], rows: Vec<Vec<String>>) -> Self {
        Self {
            head: head.iter().map(|name| (*name).to_owned()).collect(),
            rows,
        }
    }
}

impl Figure {
    /// Draws `chart`; a chart without points becomes `missing`.
    pub(crate) fn draw(
        chart: &Chart,
        says: String,
        numbers: Numbers,
        missing: &str,
    ) -> Result<Self, ReportError> {
        match (chart.svg(Size::WIDE), chart.svg(Size::NARROW)) {
            (Ok(wide), Ok(narrow)) => Ok(Self::Drawn {
                wide,
                narrow,
                says,
                numbers,
            }),
            (Err(ReportError::EmptyChart), _) | (_, Err(ReportError::EmptyChart)) => {
                Ok(Self::Missing(missing.to_owned()))
            }
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn bottleneck_rule(facts: &Facts) -> Option<(f64, String)> {
    let step = facts.bottleneck()?;
    Some((step as f64, format!("bottleneck, step {step}")))
}

/// Accuracy on the training prompts (or what took its place) along the probe.
pub fn accuracy(facts: &Facts) -> Result<Figure, ReportError> {
    if let Some(points) = facts.accuracy.as_ref().filter(|points| !points.is_empty()) {
        let at = |step: u64| step as f64;
        let line = points.iter().map(|p| (at(p.step), p.accuracy.share));
        let interval = |p: &t3s_pipeline::summary::StepAccuracy| {
            let interval = p.accuracy.interval;
            (at(p.step), interval.low, interval.high)
        };
        let mut series = vec![Series::new(
            "right answers to training prompts, 95 % interval",
            palette::KEPT,
            vec![
                Mark::Whiskers(points.iter().map(interval).collect()),
                Mark::Dotted(line.collect()),
            ],
        )];
        let lowest = points.iter().find(|p| Some(p.step) == facts.bottleneck());
        if let Some(lowest) = lowest {
            let dot = vec![(at(lowest.step), lowest.accuracy.share)];
            let marks = vec![Mark::Whiskers(vec![interval(lowest)]), Mark::Dotted(dot)];
            series.push(Series::new("", palette::MARK, marks));
        }
        let says = match (points.first(), lowest) {
            (Some(base), Some(lowest)) => format!(
                "Of {} answers to training prompts the base has {} right, the bottleneck at step {} \
                 has {} ({} to {}).",
                base.accuracy.answers,
                percent(base.accuracy.share),
                lowest.step,
                percent(lowest.accuracy.share),
                percent(lowest.accuracy.interval.low),
                percent(lowest.accuracy.interval.high)
            ),
            _ => "Accuracy at every checkpoint of the probe.".to_owned(),
        };
        let rows = points.iter().map(|p| {
            vec![
                p.step.to_string(),
                percent(p.accuracy.share),
                percent(p.accuracy.interval.low),
                percent(p.accuracy.interval.high),
            ]
        });
        let chart = Chart {
            x_label: "optimiser step of the probe".into(),
            y_unit: Unit::Share,
            y_include: vec![0.0],
            rule: bottleneck_rule(facts),
            series,
            ..Chart::default()
        };
        let numbers = Numbers::new(&["step", "accuracy", "low", "high"], rows.collect());
        return Figure::draw(&chart, says, numbers, "No checkpoint was examined.");
    }
    if let Some(points) = facts
        .answer_logp
        .as_ref()
        .filter(|points| !points.is_empty())
    {
        let line = points.iter().map(|p| (p.step as f64, p.value)).collect();
        let chart = Chart {
            x_label: "optimiser step of the probe".into(),
            y_label: "nats per token".into(),
            rule: bottleneck_rule(facts),
            series: vec![Series::new(
                "log-probability of the answers' tokens",
                palette::KEPT,
                vec![Mark::Dotted(line)],
            )],
            ..Chart::default()
        };
        let rows = points
            .iter()
            .map(|p| vec![p.step.to_string(), format!("{:.4}", p.value)]);
        let says = "Accuracy was not usable; the log-probability of the answers' tokens takes its \
                    place."
            .to_owned();
        let numbers = Numbers::new(&["step", "log-probability"], rows.collect());
        return Figure::draw(&chart, says, numbers, "No checkpoint was scored.");
    }
    Ok(Figure::Missing(if facts.bottleneck().is_some() {
        "The plan names the step of the bottleneck, so accuracy was not measured.".to_owned()
    } else if facts.plain {
        "Plain fine-tuning has no probe.".to_owned()
    } else {
        format!(
            "No accuracy was measured along a probe.{}",
            facts.why_missing()
        )
    }))
}

/// The loss of the probe.
pub fn probe_loss(facts: &Facts) -> Result<Figure, ReportError> {
    let steps = &facts.probe_steps;
    let (points, every) = steps::curve(steps);
    let line = points.iter().map(|p| (p.step as f64, p.loss)).collect();
    let says = match (steps.first(), steps.last()) {
        (Some(first), Some(last)) => format!(
            "The loss goes from {:.3} nats at step {} to {:.3} at step {}.{}",
            first.loss,
            first.step,
            last.loss,
            last.step,
            steps::caption(every)
        ),
        _ => String::new(),
    };
    let chart = Chart {
        x_label: "optimiser step of the probe".into(),
        y_label: "nats per token".into(),
        y_include: vec![0.0],
        rule: bottleneck_rule(facts),
        series: vec![Series::new(
            "training loss",
            palette::ALL,
            vec![Mark::Line(line)],
        )],
        ..Chart::default()
    };
    let rows = points
        .iter()
        .map(|p| vec![p.step.to_string(), format!("{:.4}", p.loss)]);
    let numbers = Numbers::new(&["step", "loss"], rows.collect());
    let missing = if facts.plain {
        "Plain fine-tuning has no probe.".to_owned()
    } else {
        format!("The probe has no step yet.{}", facts.why_missing())
    };
    Figure::draw(&chart, says, numbers, &missing)
}

/// Bars of a distribution for each factor of ten.
const BARS: f64 = 6.0;

/// How `Delta c` is distributed, over kept and dropped tokens.
pub fn delta(facts: &Facts) -> Result<Figure, ReportError> {
    let tokens = facts.tokens.as_ref();
    let Some((tokens, column)) = tokens.and_then(|t| Some((t, t.column("delta-c")?))) else {
        let why = facts.why_missing();
        return Ok(Figure::Missing(format!(
            "Base and bottleneck were not both scored, so there is no Δc.{why}"
        )));
    };
    let mut bars: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
    for (row, value) in column.values.iter().enumerate() {
        // A token at 0 is no anchor: it stands left of 0.
        let bar = ((signed_log(f64::from(*value)) * BARS).ceil() - 1.0) as i64;
        let (kept, dropped) = bars.entry(bar).or_default();
        let is_kept = match &tokens.weights {
            Some(weights) => weights[row] > 0.0,
            None => true,
        };
        match is_kept {
            true => *kept += 1,
            false => *dropped += 1,
        }
    }
    let n = column.values.len().max(1) as f64;
    let share = |count: usize| count as f64 / n;
    let edges = |bar: i64| (bar as f64 / BARS, (bar + 1) as f64 / BARS);
    let below = bars.iter().map(|(bar, (kept, _))| {
        let (left, right) = edges(*bar);
        (left, right, 0.0, share(*kept))
    });
    let above = bars.iter().map(|(bar, (kept, dropped))| {
        let (left, right) = edges(*bar);
        (left, right, share(*kept), share(kept + dropped))
    });
    let rising = column.values.iter().filter(|v| **v > 0.0).count();
    let chart = Chart {
        x_label: "Δc, nats; even within ±0.001, logarithmic beyond".into(),
        x_unit: Unit::SignedLog,
        y_unit: Unit::Share,
        y_include: vec![0.0],
        rule: Some((0.0, String::new())),
        series: vec![
            Series::new("kept", palette::KEPT, vec![Mark::Bars(below.collect())]),
            Series::new(
                "dropped",
                palette::DROPPED,
                vec![Mark::Bars(above.collect())],
            ),
        ],
        ..Chart::default()
    };
    let says = format!(
        "{} of {} response tokens ({}) had become likelier by the bottleneck (Δc > 0).",
        rising,
        column.values.len(),
        percent(rising as f64 / n)
    );
    let rows = bars.iter().map(|(bar, (kept, dropped))| {
        let (left, right) = edges(*bar);
        vec![
            format!("{:.2e}", from_signed_log(left)),
            format!("{:.2e}", from_signed_log(right)),
            kept.to_string(),
            dropped.to_string(),
        ]
    });
    let numbers = Numbers::new(&["from", "to", "kept", "dropped"], rows.collect());
    Figure::draw(&chart, says, numbers, "No token was scored.")
}

/// Number of places of a response that are counted apart.
const PLACES: usize = 20;

/// The kept share along the response.
pub fn kept_by_place(facts: &Facts) -> Result<Figure, ReportError> {
    let Some((tokens, weights)) = facts
        .tokens
        .as_ref()
        .and_then(|tokens| Some((tokens, tokens.weights.as_ref()?)))
    else {
        let why = facts.why_missing();
        return Ok(Figure::Missing(format!("No tokens were selected.{why}")));
    };
    let (mut kept, mut all) = ([0_usize; PLACES], [0_usize; PLACES]);
    for (_, rows) in tokens.view().examples() {
        let n = rows.len();
        for (i, row) in rows.enumerate() {
            let place = i * PLACES / n;
            all[place] += 1;
            kept[place] += usize::from(weights[row] > 0.0);
        }
    }
    let points: Vec<(f64, f64)> = (0..PLACES)
        .filter(|place| all[*place] > 0)
        .map(|place| {
            let middle = (place as f64 + 0.5) / PLACES as f64;
            (middle, kept[place] as f64 / all[place] as f64)
        })
        .collect();
    let total = kept.iter().sum::<usize>() as f64 / all.iter().sum::<usize>().max(1) as f64;
    let rows = points
        .iter()
        .map(|(place, share)| vec![percent(*place), percent(*share)]);
    let numbers = Numbers::new(&["place in the response", "kept"], rows.collect());
    let chart = Chart {
        x_label: "place in the response, from its first token to its last".into(),
        x_unit: Unit::Share,
        y_unit: Unit::Share,
        y_include: vec![0.0, 1.0],
        series: vec![
            Series::new(
                "of all tokens",
                palette::ALL,
                vec![Mark::Dashed(vec![(0.0, total), (1.0, total)])],
            ),
            Series::new(
                "kept at this place",
                palette::KEPT,
                vec![Mark::Dotted(points)],
            ),
        ],
        ..Chart::default()
    };
    let says = format!("{} of the response tokens are kept.", percent(total));
    Figure::draw(&chart, says, numbers, "There is no response token.")
}

/// Mean, and what a tenth lies below and above: confidence has a long tail, in which quartiles see
/// nothing.
fn summary(values: &[f32]) -> Option<(f64, f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let at = |share: f64| f64::from(sorted[((sorted.len() - 1) as f64 * share).round() as usize]);
    if sorted.is_empty() {
        return None;
    }
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
    Some((mean, at(0.1), at(0.9)))
}

/// Confidence of anchors and others along the probe.
pub fn trajectories(facts: &Facts) -> Result<Figure, ReportError> {
    let Some(moments) = facts.trajectories.as_ref() else {
        return Ok(Figure::Missing(format!(
            "Confidence along the probe was not recorded (score.trajectory_examples).{}",
            facts.why_missing()
        )));
    };
    let mut rows: Vec<Vec<String>> = moments.iter().map(|m| vec![m.step.to_string()]).collect();
    let mut outside = false;
    let mut group = |name: &str, colour, of: fn(&Moment) -> &Vec<f32>| {
        let (mut mean, mut band) = (Vec::new(), Vec::new());
        for (moment, row) in moments.iter().zip(&mut rows) {
            let step = moment.step as f64;
            match summary(of(moment)) {
                Some((m, low, high)) => {
                    outside |= m < low;
                    mean.push((step, m));
                    band.push((step, low, high));
                    row.extend([m, low, high].map(|value| format!("{value:.3}")));
                }
                None => row.extend(["", "", ""].map(str::to_owned)),
            }
        }
        Series::new(name, colour, vec![Mark::Band(band), Mark::Dotted(mean)])
    };
    let others = group("yet to be learnt (Δc ≤ 0)", palette::KEPT, |m| &m.others);
    let anchors = group("anchors (Δc > 0)", palette::DROPPED, |m| &m.anchors);
    let chart = Chart {
        x_label: "optimiser step of the probe".into(),
        y_label: "c, nats".into(),
        y_include: vec![0.0],
        rule: bottleneck_rule(facts),
        series: vec![others, anchors],
        ..Chart::default()
    };
    let n = moments
        .first()
        .map_or(0, |m| m.anchors.len() + m.others.len());
    let says = format!(
        "Mean log-probability, and where eight of ten tokens lie (shaded), over {n} tokens of evenly \
         spread traces.{}",
        match outside {
            true => " A few very unlikely tokens draw the mean below.",
            false => "",
        }
    );
    let head = [
        "step",
        "others: mean",
        "10 %",
        "90 %",
        "anchors: mean",
        "10 %",
        "90 %",
    ];
    Figure::draw(
        &chart,
        says,
        Numbers::new(&head, rows),
        "No checkpoint was scored.",
    )
}

/// The training run, split into kept and dropped tokens.
pub fn training(facts: &Facts) -> Result<Figure, ReportError> {
    let (points, every) = steps::curve(&facts.train_steps);
    let pick = |of: fn(&Point) -> Option<f64>| -> Vec<(f64, f64)> {
        let points = points.iter().filter_map(|p| Some((p.step as f64, of(p)?)));
        points.collect()
    };
    let kept = pick(|p| Some(p.kept));
    let dropped = pick(|p| p.dropped);
    let says = match (kept.first(), kept.last(), dropped.first(), dropped.last()) {
        (Some(a), Some(b), Some(c), Some(d)) => format!(
            "Kept tokens go from {:.3} to {:.3} nats; dropped ones, which are read but not learnt, \
             from {:.3} to {:.3}.{}",
            a.1,
            b.1,
            c.1,
            d.1,
            steps::caption(every)
        ),
        (Some(a), Some(b), ..) => format!(
            "The loss goes from {:.3} to {:.3} nats; no dropped tokens were measured.{}",
            a.1,
            b.1,
            steps::caption(every)
        ),
        _ => String::new(),
    };
    let rows = points.iter().map(|p| {
        let show = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.4}"));
        vec![p.step.to_string(), show(Some(p.kept)), show(p.dropped)]
    });
    let numbers = Numbers::new(&["step", "kept", "dropped"], rows.collect());
    let mut series = vec![Series::new(
        "kept tokens",
        palette::KEPT,
        vec![Mark::Line(kept)],
    )];
    if !dropped.is_empty() {
        let marks = vec![Mark::Line(dropped)];
        series.push(Series::new(
            "dropped tokens, not learnt",
            palette::DROPPED,
            marks,
        ));
    }
    let chart = Chart {
        x_label: "optimiser step of the training run".into(),
        y_label: "nats per token".into(),
        y_include: vec![0.0],
        series,
        ..Chart::default()
    };
    let missing = format!("The training run has no step yet.{}", facts.why_missing());
    Figure::draw(&chart, says, numbers, &missing)
}

/// The probe, split into what was later kept and dropped.
pub fn probe_split(facts: &Facts) -> Result<Figure, ReportError> {
    let moments = facts.trajectories.as_deref().unwrap_or_default();
    let line = |of: fn(&Moment) -> &Vec<f32>| -> Vec<(f64, f64)> {
        let points = moments.iter();
        points
            .filter_map(|m| Some((m.step as f64, -summary(of(m))?.0)))
            .collect()
    };
    let (kept, dropped) = (line(|m| &m.kept), line(|m| &m.dropped));
    let rows = moments.iter().map(|m| {
        let show = |v: &Vec<f32>| summary(v).map_or_else(String::new, |s| format!("{:.4}", -s.0));
        vec![m.step.to_string(), show(&m.kept), show(&m.dropped)]
    });
    let numbers = Numbers::new(&["step", "kept", "dropped"], rows.collect());
    let chart = Chart {
        x_label: "optimiser step of the probe".into(),
        y_label: "nats per token".into(),
        y_include: vec![0.0],
        rule: bottleneck_rule(facts),
        series: vec![
            Series::new("later kept", palette::KEPT, vec![Mark::Dotted(kept)]),
            Series::new(
                "later dropped",
                palette::DROPPED,
                vec![Mark::Dotted(dropped)],
            ),
        ],
        ..Chart::default()
    };
    let says =
        "The probe learns both; this is the mean loss of each at its checkpoints.".to_owned();
    let missing = format!(
        "Confidence along the probe was not recorded, or no tokens were selected.{}",
        facts.why_missing()
    );
    Figure::draw(&chart, says, numbers, &missing)
}
