//! One JSON object per line on standard output.

use std::io::Write;

use t3s_pipeline::{Event, Observer};

/// Events as JSON.
pub struct Json;

impl Observer for Json {
    fn event(&self, event: &Event) {
        print(event);
    }
}

/// Prints one line. A closed pipe is the reader's business.
pub fn print(value: &impl serde::Serialize) {
    let mut out = std::io::stdout().lock();
    if serde_json::to_writer(&mut out, value).is_ok() {
        let _ = out.write_all(b"\n");
    }
}
