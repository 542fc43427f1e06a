//! The table at the end.

use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use t3s_pipeline::{Summary, evaluate::Accuracy, run::sft::SftSummary, summary::Evaluation};

use super::duration;

const HEADER: [&str; 6] = [
    "model",
    "accuracy",
    "95 % interval",
    "truncated",
    "no answer",
    "tokens/answer",
];

/// One row of the table of accuracies.
pub fn accuracy_row(model: String, accuracy: &Accuracy) -> Vec<String> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    vec![
        model,
        percent(accuracy.share),
        format!(
            "{:.1} to {:.1}",
            100.0 * accuracy.interval.low,
            100.0 * accuracy.interval.high
        ),
        percent(accuracy.truncated_share()),
        percent(accuracy.unparsed_share()),
        format!("{:.0}", accuracy.mean_tokens),
    ]
}

/// A table of such rows.
pub fn accuracy_table(rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(HEADER);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn evaluation_table(evaluation: &[Evaluation]) -> Option<Table> {
    let rows = evaluation
        .iter()
        .map(|evaluation| accuracy_row(evaluation.label(), &evaluation.accuracy));
    let rows: Vec<_> = rows.collect();
    (!rows.is_empty()).then(|| accuracy_table(rows))
}

/// What a run came to.
pub fn print_summary(summary: &Summary) {
    println!();
    println!(
        "{}: {} traces, {} response tokens, {:.2} M parameters",
        summary.name,
        summary.corpus.examples,
        summary.corpus.response_tokens,
        summary.parameters as f64 / 1e6
    );
    if let Some(selector) = &summary.selector {
        println!("selected by the run in {}", selector.display());
    }
    if let Some(first) = summary.train_accuracy.first() {
        let curve: Vec<String> = summary
            .train_accuracy
            .iter()
            .map(|point| format!("{}: {:.0}", point.step, 100.0 * point.accuracy.share))
            .collect();
        println!(
            "accuracy on the training prompts by probe step, % of {} answers: {}",
            first.accuracy.answers,
            curve.join("  ")
        );
    }
    let bottleneck = &summary.bottleneck;
    let drop = match bottleneck.drop {
        Some(drop) if bottleneck.dropped => format!(", {drop:.3} below the base"),
        Some(_) => ", no drop below the base".to_owned(),
        None => String::new(),
    };
    println!(
        "imitation bottleneck: step {} by {}{drop}",
        bottleneck.step,
        bottleneck.by.name()
    );
    let selection = &summary.selection;
    let rising = selection.rising_share.map(|share| {
        format!(
            "; {:.1} % had become likelier by the bottleneck",
            100.0 * share
        )
    });
    let (kept, of, what) = match selection.online {
        true => (
            summary.train.kept_tokens,
            summary.train.response_tokens,
            "tokens in the steps of training",
        ),
        false => (selection.kept, selection.tokens, "tokens"),
    };
    println!(
        "{} keeps {kept} of {of} {what} ({:.1} %{})",
        selection.strategy,
        100.0 * summary.kept_share(),
        rising.unwrap_or_default()
    );
    if let Some(table) = evaluation_table(&summary.evaluation) {
        let answers = summary.evaluation.first().map(|e| &e.accuracy);
        if let Some(accuracy) = answers {
            let asked = Accuracy::asked(accuracy.problems, accuracy.samples);
            println!("evaluation: {asked}");
        }
        println!("{table}");
    }
    for warning in &summary.warnings {
        println!("warning: {warning}");
    }
    println!("student:   {}", summary.student.display());
    println!("selection: {}", summary.selection_file.display());
    println!("summary:   {}", summary.out.join("summary.json").display());
    println!("took {} of computing", duration(summary.seconds));
}

/// What plain fine-tuning came to.
pub fn print_sft(summary: &SftSummary) {
    println!();
    println!(
        "{}: {} traces, {} response tokens; loss {:.4} at the first step, {:.4} at the end, {}",
        summary.name,
        summary.corpus.examples,
        summary.corpus.response_tokens,
        summary.train.first_loss,
        summary.train.last_loss,
        duration(summary.train.seconds)
    );
    if let Some(table) = evaluation_table(&summary.evaluation) {
        println!("{table}");
    }
    println!("student: {}", summary.student.display());
}
