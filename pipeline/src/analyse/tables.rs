//! Results as tables.

use t3s_data::frame::{Frame, Values};

use super::{Analysis, AtCheckpoint, pca::Plane};

fn steps(checkpoints: &[AtCheckpoint]) -> Values {
    Values::Whole(checkpoints.iter().map(|at| at.step).collect())
}

fn numbers(checkpoints: &[AtCheckpoint], of: impl Fn(&AtCheckpoint) -> f64) -> Values {
    Values::Numbers(checkpoints.iter().map(of).collect())
}

/// Norms and cosine at every checkpoint.
pub(super) fn gradients(analysis: &Analysis) -> Frame {
    let all = &analysis.checkpoints;
    Frame::default()
        .with("step", steps(all))
        .with("anchor_loss", numbers(all, |at| at.anchor_loss))
        .with("other_loss", numbers(all, |at| at.other_loss))
        .with("anchor_norm", numbers(all, |at| at.anchor_norm))
        .with("other_norm", numbers(all, |at| at.other_norm))
        .with("ratio", numbers(all, |at| at.anchor_norm / at.other_norm))
        .with("cosine", numbers(all, |at| at.cosine))
}

/// Two rows for every checkpoint: a step on the anchors, a step on the others.
pub(super) fn intervention(analysis: &Analysis) -> Frame {
    let rows = || {
        let all = analysis.checkpoints.iter();
        all.flat_map(|at| at.interventions.iter().map(move |row| (at.step, row)))
    };
    Frame::default()
        .with(
            "step",
            Values::Whole(rows().map(|(step, _)| step).collect()),
        )
        .with(
            "on",
            Values::Words(rows().map(|(_, row)| row.on.clone()).collect()),
        )
        .with(
            "anchors",
            Values::Numbers(rows().map(|(_, row)| row.anchors).collect()),
        )
        .with(
            "others",
            Values::Numbers(rows().map(|(_, row)| row.others).collect()),
        )
        .with(
            "foretold",
            Values::Numbers(rows().map(|(_, row)| row.foretold).collect()),
        )
}

/// One row for every pair of parts.
pub(super) fn transfer(analysis: &Analysis) -> Frame {
    let (mut learnt, mut measured, mut change) = (Vec::new(), Vec::new(), Vec::new());
    for (from, row) in analysis.subsets.iter().zip(&analysis.transfer) {
        for (to, value) in analysis.subsets.iter().zip(row) {
            learnt.push(from.clone());
            measured.push(to.clone());
            change.push(*value);
        }
    }
    Frame::default()
        .with("learnt", Values::Words(learnt))
        .with("measured", Values::Words(measured))
        .with("change", Values::Numbers(change))
}

/// Shares of suppressed tokens at every checkpoint.
pub(super) fn suppressed(analysis: &Analysis) -> Frame {
    let all = &analysis.checkpoints;
    Frame::default()
        .with("step", steps(all))
        .with("all", numbers(all, |at| at.suppressed[0]))
        .with("anchors", numbers(all, |at| at.suppressed[1]))
        .with("others", numbers(all, |at| at.suppressed[2]))
}

/// A token on the map.
pub(super) struct MapRow {
    pub(super) model: &'static str,
    pub(super) example: u64,
    pub(super) position: u64,
    pub(super) anchor: bool,
    pub(super) delta: f64,
    pub(super) norm: f64,
}

/// The map.
pub(super) fn sketch_map(rows: &[MapRow], plane: &Plane) -> Frame {
    let group = |row: &MapRow| if row.anchor { "anchor" } else { "other" };
    let words = |of: &dyn Fn(&MapRow) -> String| Values::Words(rows.iter().map(of).collect());
    let whole = |of: &dyn Fn(&MapRow) -> u64| Values::Whole(rows.iter().map(of).collect());
    let numbers = |of: &dyn Fn(&MapRow) -> f64| Values::Numbers(rows.iter().map(of).collect());
    let axis = |i: usize| Values::Numbers(plane.places.iter().map(|place| place[i]).collect());
    Frame::default()
        .with("model", words(&|row| row.model.to_owned()))
        .with("example", whole(&|row| row.example))
        .with("position", whole(&|row| row.position))
        .with("group", words(&|row| group(row).to_owned()))
        .with("delta_c", numbers(&|row| row.delta))
        .with("norm", numbers(&|row| row.norm))
        .with("x", axis(0))
        .with("y", axis(1))
}
