//! Safetensors files that are cut short or damaged: an error that names the file, never a panic.

use std::fs;

use proptest::prelude::*;
use t3s_engine::{EngineError, Params};

use crate::checkpoints::{load, saved};

const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// The bytes of a good file, and where its header ends.
fn good_file() -> (Vec<u8>, usize) {
    let folder = saved(true, usize::MAX);
    let bytes = fs::read(folder.path().join("model/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    (bytes, 8 + header as usize)
}

fn load_bytes(bytes: &[u8]) -> Result<Params, EngineError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    load(folder.path(), true)
}

#[test]
fn a_truncated_file_is_an_error_at_every_length() {
    let (bytes, data) = good_file();
    let header = (0..data + 8).step_by(97);
    let body = (data..bytes.len()).step_by(1009);
    let edges = [0, 1, 7, 8, 9, data - 1, data, data + 1, bytes.len() - 1];
    for cut in header.chain(body).chain(edges) {
        let error = load_bytes(&bytes[..cut]).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{cut}: {error}");
        assert!(cut < data || error.contains("truncated"), "{cut}: {error}");
    }
    load_bytes(&bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// A damaged header may still describe a model; what it may not do is panic.
    #[test]
    fn a_damaged_header_never_panics(at in 0usize..6000, to in any::<u8>()) {
        let (mut bytes, data) = good_file();
        let at = at % data;
        let before = bytes[at];
        bytes[at] = to;
        if let Err(error) = load_bytes(&bytes) {
            let text = error.to_string();
            prop_assert!(before != to, "{text}");
            prop_assert!(text.contains("model"), "{text}");
        }
    }
}

#[test]
fn a_header_of_absurd_numbers_is_refused() {
    let file = |header: &str| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 64]);
        load_bytes(&bytes).unwrap_err().to_string()
    };
    let most = u64::MAX;
    for header in [
        format!(r#"{{"{UP}":{{"dtype":"F32","shape":[40,24],"data_offsets":[0,{most}]}}}}"#),
        format!(r#"{{"{UP}":{{"dtype":"F32","shape":[{most},{most}],"data_offsets":[0,4]}}}}"#),
        format!(r#"{{"{UP}":{{"dtype":"F32","shape":[40,24],"data_offsets":[8,4]}}}}"#),
        format!(r#"{{"{UP}":{{"dtype":"F99","shape":[40,24],"data_offsets":[0,3840]}}}}"#),
        "[]".to_owned(),
    ] {
        let error = file(&header);
        assert!(error.contains("model.safetensors"), "{header}: {error}");
    }
    // Offsets that only overflow once the header's own length is added.
    let mut entries = Vec::new();
    let (mut at, part) = (0u64, 1u64 << 60);
    for i in 0..16 {
        let size = if i < 15 { part } else { part - 3552 - 4 };
        entries.push(format!(
            r#""{i}.rotary_emb.inv_freq":{{"dtype":"U8","shape":[{size}],"data_offsets":[{at},{}]}}"#,
            at + size
        ));
        at += size;
    }
    entries.push(format!(
        r#""model.embed_tokens.weight":{{"dtype":"F32","shape":[37,24],"data_offsets":[{at},{}]}}"#,
        at + 3552
    ));
    let error = file(&format!("{{{}}}", entries.join(",")));
    assert!(error.contains("truncated"), "{error}");
    for header in [u64::MAX, u64::MAX / 2, 100_000_001, 65] {
        let mut bytes = header.to_le_bytes().to_vec();
        bytes.extend([b' '; 64]);
        let error = load_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains("header"), "{error}");
    }
}
