//! What a run shows: bars on a terminal, plain lines elsewhere, JSON for programs.

mod bars;
mod json;
mod lines;
mod summary;

use std::{
    io::IsTerminal,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use t3s_pipeline::{Event, Observer};

pub use json::print as print_json;
pub use summary::{accuracy_row, accuracy_table, print_sft, print_summary};

/// How events are shown.
#[derive(Clone)]
pub struct Display {
    inner: Arc<dyn Observer>,
    json: bool,
}

impl Display {
    /// JSON where it was asked for, bars on a terminal, plain lines elsewhere.
    pub fn new(json: bool) -> Self {
        let inner: Arc<dyn Observer> = match (json, std::io::stderr().is_terminal()) {
            (true, _) => Arc::new(json::Json),
            (false, true) => Arc::new(bars::Bars::default()),
            (false, false) => Arc::new(lines::Lines::default()),
        };
        Self { inner, json }
    }

    /// Whether programs read it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints `value` as JSON where that was asked for; else runs `text`.
    pub fn result(&self, value: &impl serde::Serialize, text: impl FnOnce()) {
        if self.json {
            json::print(value);
        } else {
            text();
        }
    }
}

impl Observer for Display {
    fn event(&self, event: &Event) {
        self.inner.event(event);
    }
}

/// `12 345 678 tokens/s` in three digits.
fn rate(per_second: f64) -> String {
    match per_second {
        // Work that is not counted in tokens, or none yet.
        0.0 => String::new(),
        r if r >= 1e6 => format!("{:.1}M tok/s", r / 1e6),
        r if r >= 1e4 => format!("{:.0}k tok/s", r / 1e3),
        r if r >= 1e3 => format!("{:.1}k tok/s", r / 1e3),
        r => format!("{r:.0} tok/s"),
    }
}

/// `1h 02m`, `3m 20s` or `4.2s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        n if n >= 3600 => format!("{}h {:02}m", n / 3600, n % 3600 / 60),
        n if n >= 60 => format!("{}m {:02}s", n / 60, n % 60),
        _ => format!("{seconds:.1}s"),
    }
}

/// `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    match n as f64 / f64::from(1 << 20) {
        mib if mib >= 1024.0 => format!("{:.2} GiB", mib / 1024.0),
        mib => format!("{mib:.0} MiB"),
    }
}

/// Events that both text displays show as one line; `None` for those they show in their own way.
pub fn line_of(event: &Event) -> Option<String> {
    Some(match event {
        Event::RunStarted { name, out, .. } => {
            format!("run {name:?} in {}", out.display())
        }
        Event::StageFinished { stage, seconds, .. } => {
            format!("{stage}: done in {}", duration(*seconds))
        }
        Event::StageCached { stage, .. } => format!("{stage}: already done"),
        Event::StageWaiting { stage, .. } => {
            format!("{stage}: another run is at it, waiting for its result")
        }
        Event::Accuracy {
            stage,
            model,
            accuracy,
            ..
        } => format!(
            "{stage}: {model} has {} of {} answers right ({:.1} %)",
            accuracy.right,
            accuracy.answers,
            100.0 * accuracy.share
        ),
        Event::Bottleneck(found) => match (found.value, found.base) {
            (Some(value), Some(base)) => format!(
                "bottleneck: step {} by {} ({base:.3} before, {value:.3} there)",
                found.step,
                found.by.name()
            ),
            _ => format!("bottleneck: step {}, named in the plan", found.step),
        },
        Event::Selection(selection) if selection.online => {
            format!("selection: {} chooses in every step", selection.strategy)
        }
        Event::Selection(selection) => format!(
            "selection: {} keeps {} of {} response tokens ({:.1} %)",
            selection.strategy,
            selection.kept,
            selection.tokens,
            100.0 * selection.kept_share
        ),
        Event::Warning { stage, message } => format!("warning: {stage}: {message}"),
        _ => return None,
    })
}

/// A display whose thread panicked is still good for messages.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(rate(123.4), "123 tok/s");
        assert_eq!(rate(1234.0), "1.2k tok/s");
        assert_eq!(rate(12_345.0), "12k tok/s");
        assert_eq!(rate(2_500_000.0), "2.5M tok/s");
        assert_eq!(duration(4.23), "4.2s");
        assert_eq!(duration(200.0), "3m 20s");
        assert_eq!(duration(3720.0), "1h 02m");
        assert_eq!(bytes(3 << 29), "1.50 GiB");
        assert_eq!(bytes(60 << 20), "60 MiB");
    }
}
