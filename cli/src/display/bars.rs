//! Progress bars, for a terminal: one per stage, and a line above it for what is done.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use t3s_pipeline::{Event, Observer};

use super::{bytes, line_of, lock, rate};

/// Events as bars on standard error.
#[derive(Default)]
pub struct Bars {
    bar: Mutex<Option<ProgressBar>>,
}

impl Bars {
    /// Prints `line` above the bar.
    fn line(&self, line: &str) {
        match &*lock(&self.bar) {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn clear(&self) {
        if let Some(bar) = lock(&self.bar).take() {
            bar.finish_and_clear();
        }
    }

    fn progress(&self, stage: &str, done: u64, total: u64, message: String) {
        let mut slot = lock(&self.bar);
        let bar = slot.get_or_insert_with(|| {
            let template = "{prefix:>12.bold} {bar:28.cyan/dim} {pos}/{len} {msg} {eta} left";
            let style = ProgressStyle::with_template(template)
                .expect("the template is well formed")
                .progress_chars("━╸─");
            let bar = ProgressBar::new(total).with_style(style);
            bar.set_prefix(stage.to_owned());
            bar
        });
        // Several models are examined in one stage.
        if bar.length() != Some(total) || done < bar.position() {
            bar.reset();
            bar.set_length(total);
        }
        bar.set_position(done);
        bar.set_message(message);
    }
}

impl Observer for Bars {
    fn event(&self, event: &Event) {
        match event {
            Event::StageStarted { .. } | Event::StageFinished { .. } | Event::Stopped { .. } => {
                self.clear();
            }
            Event::Step(step) => {
                let memory = step.peak_memory.map(bytes).unwrap_or_default();
                let message = format!(
                    "loss {:.4}  {}  {memory}",
                    step.loss,
                    rate(step.tokens_per_second)
                );
                self.progress(&step.stage, step.step, step.steps, message);
            }
            Event::Progress {
                stage,
                done,
                total,
                unit,
                tokens_per_second,
            } => {
                let message = format!("{unit}  {}", rate(*tokens_per_second));
                self.progress(stage, *done, *total, message);
            }
            _ => {}
        }
        if let Some(line) = line_of(event) {
            self.line(&line);
        }
    }
}
