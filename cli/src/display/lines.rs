//! Plain lines, for logs: at most one every few seconds while a stage goes on.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use t3s_pipeline::{Event, Observer};

use super::{duration, line_of, lock, rate};

const INTERVAL: Duration = Duration::from_secs(5);

/// Events as lines on standard error.
#[derive(Default)]
pub struct Lines {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<Instant>,
    seconds: f64,
}

impl State {
    /// Whether the next line of progress is due.
    fn due(&mut self, is_last: bool) -> bool {
        let due = is_last || self.last.is_none_or(|last| last.elapsed() >= INTERVAL);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

impl Observer for Lines {
    fn event(&self, event: &Event) {
        if let Some(line) = line_of(event) {
            eprintln!("{line}");
            return;
        }
        let mut state = lock(&self.state);
        match event {
            Event::StageStarted { stage, .. } => {
                *state = State::default();
                eprintln!("{stage}: started");
            }
            Event::Step(step) => {
                state.seconds += step.seconds;
                if state.due(step.step == step.steps || step.step == 1) {
                    let left = (step.steps - step.step) as f64 * step.seconds;
                    eprintln!(
                        "{}: step {}/{}, loss {:.4}, lr {:.2e}, {}, {} left",
                        step.stage,
                        step.step,
                        step.steps,
                        step.loss,
                        step.learning_rate,
                        rate(step.tokens_per_second),
                        duration(left)
                    );
                }
            }
            Event::Progress {
                stage,
                done,
                total,
                unit,
                tokens_per_second,
            } if state.due(done == total) => {
                let rate = rate(*tokens_per_second);
                let comma = if rate.is_empty() { "" } else { ", " };
                eprintln!("{stage}: {done}/{total} {unit}{comma}{rate}");
            }
            _ => {}
        }
    }
}
