//! TensorBoard event files: a TFRecord stream of `tensorflow.Event` messages.
//!
//! A record is the payload's length (u64), its masked CRC, the payload, its masked CRC; all little
//! endian (tensorflow/core/lib/io/record_writer.h). The messages are the few fields of
//! tensorflow/core/util/event.proto and framework/summary.proto that scalars need.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct TfEvent {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(TfSummary),
}

#[derive(Clone, PartialEq, Message)]
struct TfSummary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<TfValue>,
}

#[derive(Clone, PartialEq, Message)]
struct TfValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Appends scalars to one event file. The file appears with the first scalar, so that a run which
/// has nothing to do leaves nothing behind.
#[derive(Debug)]
pub struct ScalarWriter {
    folder: PathBuf,
    file: Option<File>,
}

impl ScalarWriter {
    /// A writer into `folder`, which TensorBoard shows as one run.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            file: None,
        }
    }

    /// Writes `scalars` (tag, value) of one `step`.
    ///
    /// # Errors
    /// When the file cannot be created or written.
    pub fn write(&mut self, step: u64, scalars: &[(&str, f64)]) -> io::Result<()> {
        let value = |(tag, value): &(&str, f64)| TfValue {
            tag: (*tag).to_owned(),
            simple_value: Some(*value as f32),
        };
        let event = TfEvent {
            wall_time: now(),
            step: i64::try_from(step).unwrap_or(i64::MAX),
            what: Some(What::Summary(TfSummary {
                value: scalars.iter().map(value).collect(),
            })),
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open(&self.folder)?),
        };
        // One write per record: TensorBoard may read while we go on.
        file.write_all(&record(&event.encode_to_vec()))
    }
}

fn open(folder: &Path) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let seconds = now();
    // TensorBoard reads the files of a folder in the order of their names: time comes first.
    let name = format!("events.out.tfevents.{seconds:017.6}.{}.t3s", process::id());
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join(name))?;
    let header = TfEvent {
        wall_time: seconds,
        step: 0,
        what: Some(What::FileVersion("brain.Event:2".to_owned())),
    };
    file.write_all(&record(&header.encode_to_vec()))?;
    Ok(file)
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(payload.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(payload);
    record.extend_from_slice(&masked_crc(payload).to_le_bytes());
    record
}

/// A CRC of data that holds CRCs has weak spots, so the format rotates and shifts it.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn records_have_the_published_framing() {
        // The header record that every TensorFlow writer starts with, for wall_time 0 left out:
        // length 15 + payload "1a 0d brain.Event:2".
        let payload = TfEvent {
            wall_time: 0.0,
            step: 0,
            what: Some(What::FileVersion("brain.Event:2".into())),
        }
        .encode_to_vec();
        assert_eq!(payload, b"\x1a\x0dbrain.Event:2");
        let bytes = record(&payload);
        assert_eq!(bytes[..8], 15_u64.to_le_bytes());
        assert_eq!(bytes.len(), 8 + 4 + 15 + 4);
        // RFC 3720: the CRC-32C of 32 zero bytes is 0x8a9136aa.
        let crc: u32 = 0x8a91_36aa;
        let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_crc(&[0; 32]), masked);
    }

    #[test]
    fn nothing_is_written_before_the_first_scalar() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut writer = ScalarWriter::new(&path);
        assert!(!path.exists());
        writer.write(1, &[("loss", 2.0)]).unwrap();
        writer.write(2, &[("loss", 1.0)]).unwrap();
        assert_eq!(files(&path).len(), 1);
    }

    #[test]
    fn tensorboard_reads_what_was_written() {
        let python = crate::test_python::interpreter();
        let has = Command::new(&python)
            .args(["-c", "import tensorboard"])
            .output();
        if !has.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: {python:?} has no tensorboard; see tools/python-env.sh");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ScalarWriter::new(folder.path());
        for step in 1..=3 {
            let scalars = [("loss", 1.0 / step as f64), ("learning_rate", 1e-5)];
            writer.write(step, &scalars).unwrap();
        }
        let script = "
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]); events.Reload()
print(sorted(events.Tags()['scalars']))
print([(e.step, round(e.value, 4)) for e in events.Scalars('loss')])
";
        let output = Command::new(&python)
            .args(["-c", script])
            .arg(folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert_eq!(
            text.trim(),
            "['learning_rate', 'loss']\n[(1, 1.0), (2, 0.5), (3, 0.3333)]",
            "{errors}"
        );
    }
}
