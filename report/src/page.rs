//! The page: facts, figures and tables poured into a template.

use base64::{Engine, prelude::BASE64_STANDARD};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context, value::Serde};
use serde::Serialize;
use sha2::{Digest, Sha256};
use t3s_pipeline::recorded::Ending;

use crate::{
    analysis,
    error::ReportError,
    facts::Facts,
    figures::{self, Figure},
    lens::{Budget, Lens},
    tables,
};

const HTML: &str = include_str!("page/page.html");
const HEAD: &str = include_str!("page/head.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/page.js");

/// One figure of the first screen.
#[derive(Serialize)]
struct Card {
    label: String,
    value: String,
    note: String,
}

/// The whole page.
///
/// # Errors
/// When a chart cannot be drawn or tokens cannot be decoded.
pub fn render(facts: &Facts, budget: Budget) -> Result<String, ReportError> {
    let lens = match &facts.tokens {
        Some(tokens) => Some(Lens::new(tokens, budget)?),
        None => None,
    };
    let groups = match &facts.tokens {
        Some(tokens) => tables::groups(tokens)?,
        None => None,
    };
    let diagnosis = analysis::diagnosis(&facts.run.folder, facts.bottleneck())?;
    let (status, ending) = match &facts.run.ending {
        Ending::Done => ("done", String::new()),
        Ending::Stopped(message) => ("stopped", message.clone()),
        Ending::Open => (
            "open",
            "It is still going on, or was killed; the same command goes on where it stopped."
                .to_owned(),
        ),
    };
    let corpus = facts.corpus.as_ref();
    let facts_line = corpus.map(|c| {
        format!(
            "{} traces, {} response tokens, {} problems with a gold answer",
            c.examples, c.response_tokens, c.problems
        )
    });
    let (variants, more_variants) = tables::variants(facts);
    let data = lens.as_ref().map(|lens| script_json(&lens.data));
    fill(
        HTML,
        context! {
            name => facts.run.name.as_str(),
            version => facts.run.version.as_str(),
            started => t3s_pipeline::utc(facts.run.started as u64),
            status,
            ending,
            plain => facts.plain,
            facts_line,
            cards => Serde(cards(facts)),
            results => Serde(tables::results(facts)),
            variants => Serde(variants),
            more_variants,
            why => facts.why_missing(),
            figures => Serde(Figures {
                accuracy: figures::accuracy(facts)?,
                probe_loss: figures::probe_loss(facts)?,
                delta: figures::delta(facts)?,
                place: figures::kept_by_place(facts)?,
                trajectories: figures::trajectories(facts)?,
                training: figures::training(facts)?,
                probe_split: figures::probe_split(facts)?,
            }),
            groups => Serde(groups),
            lens => lens.as_ref().map(|lens| context! {
                traces => lens.traces, of => lens.of, cut => lens.cut,
            }),
            diagnosis => Serde(diagnosis),
            data,
            costs => Serde(tables::costs(facts)),
            warnings => Serde(&facts.run.warnings),
            plan => facts.plan.as_str(),
        },
    )
}

/// Pours `values` into the template `html`, which gets the style sheet and the script too.
///
/// # Errors
/// When the template is wrong.
pub fn fill(html: &str, values: Value) -> Result<String, ReportError> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.add_template("head", HEAD)?;
    env.add_template("page", html)?;
    let frame = context! {
        style => STYLE,
        script => SCRIPT,
        digest => BASE64_STANDARD.encode(Sha256::digest(SCRIPT.as_bytes())),
    };
    Ok(env
        .get_template("page")?
        .render(context! { ..values, ..frame })?)
}

#[derive(Serialize)]
struct Figures {
    accuracy: Figure,
    probe_loss: Figure,
    delta: Figure,
    place: Figure,
    trajectories: Figure,
    training: Figure,
    probe_split: Figure,
}

/// JSON that cannot end the script element it stands in, nor begin a comment in it.
fn script_json(value: &serde_json::Value) -> String {
    let text = value.to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // In JSON they stand in strings only, where the escape means the same.
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

fn cards(facts: &Facts) -> Vec<Card> {
    let mut cards = Vec::new();
    let mut card = |label: &str, value: String, note: String| {
        cards.push(Card {
            label: label.to_owned(),
            value,
            note,
        });
    };
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let find = |start: &str| {
        let mut found = facts.evaluations.iter();
        found
            .find(|e| e.model.starts_with(start))
            .map(|e| &e.accuracy)
    };
    if let Some(student) = find("student") {
        let interval = student.interval;
        let mut note = format!(
            "95 % interval {:.1} to {:.1}",
            100.0 * interval.low,
            100.0 * interval.high
        );
        if let Some(sft) = find("end of the probe") {
            note += &format!("; plain fine-tuning {}", percent(sft.share));
        }
        card("Student", percent(student.share), note);
    }
    if let Some(base) = find("base") {
        let note = format!("{} problems", base.problems);
        card("Base", percent(base.share), note);
    }
    if let Some(found) = &facts.run.bottleneck {
        let note = match (found.drop, found.dropped) {
            (Some(drop), true) if found.by.name() == "train-accuracy" => {
                format!("{} below the base, by {}", percent(drop), found.by.name())
            }
            (Some(drop), true) => format!("{drop:.3} below the base, by {}", found.by.name()),
            (Some(_), false) => format!("no drop below the base, by {}", found.by.name()),
            (None, _) => "named in the plan".to_owned(),
        };
        card("Bottleneck", format!("step {}", found.step), note);
    }
    if let Some(selection) = &facts.selection {
        let note = format!(
            "{} of {} tokens, by {}",
            selection.kept, selection.tokens, selection.strategy
        );
        card("Kept", percent(selection.kept_share), note);
    }
    cards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_in_a_script_says_the_same_and_cannot_end_it() {
        let value = serde_json::json!({
            "a": "</script><!--<b>&amp;\u{2028}", "שלום": "👩‍🔬 \u{FFFD} \u{0} \"\\"
        });
        let text = script_json(&value);
        assert!(!text.contains('<') && !text.contains('&') && !text.contains('\u{2028}'));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }

    #[test]
    fn every_colour_of_the_charts_has_one_in_the_dark() {
        use crate::chart::palette;
        for c in [
            palette::INK,
            palette::MUTED,
            palette::GRID,
            palette::KEPT,
            palette::DROPPED,
            palette::ALL,
            palette::MARK,
        ] {
            let hex = format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2);
            for attribute in ["fill", "stroke"] {
                let rule = format!("[{attribute}=\"{hex}\"]");
                assert!(STYLE.contains(&rule), "{rule} is missing in style.css");
            }
        }
    }
}
