//! Token stores and selections: what is written is what is read, by this program and by others.

use std::{fs, path::Path, process::Command};

use proptest::prelude::*;
use t3s_core::{Fingerprint, TokenTable, TokenWeights, corpus::CorpusHashes, table::Sketch};
use t3s_data::{
    DataError,
    store::{StoreMeta, expect, read_selection, read_table, write_selection, write_table},
};

fn meta(data: &str) -> StoreMeta {
    let of = |text: &str| Fingerprint::of_bytes(text.as_bytes());
    StoreMeta {
        hashes: CorpusHashes {
            data: of(data),
            tokenizer: of("tokenizer"),
            chat_template: of("template"),
            tokens: of("tokens"),
        },
        weights: of("weights"),
        adapter: "qwen3".into(),
        adapter_options: "{}".into(),
        estimator: "exact".into(),
        tool_version: "0.1.0".into(),
    }
}

/// A table of examples with these numbers of rows.
fn table(lengths: &[usize], sketch: usize) -> TokenTable {
    let n: usize = lengths.iter().sum();
    let ids = (0..lengths.len() as u64).map(|e| 3 * e + 1).collect();
    let mut offsets = vec![0];
    for length in lengths {
        offsets.push(offsets.last().unwrap() + *length as u32);
    }
    let number = |scale: f32| {
        (0..n)
            .map(|i| -scale * (i as f32 + 0.1).sqrt())
            .collect::<Vec<_>>()
    };
    let positions = lengths.iter().flat_map(|n| 4..4 + *n as u32).collect();
    let mut table = TokenTable::new(
        ids,
        offsets,
        (0..n as u32).collect(),
        positions,
        vec![true; n],
    )
    .unwrap();
    table.insert("logp", number(1.0)).unwrap();
    table
        .insert("rank", (0..n).map(|i| (i * 7 % 50) as f32).collect())
        .unwrap();
    if sketch > 0 {
        let values = (0..n * sketch).map(|i| i as f32 / 8.0).collect();
        table
            .insert_sketch(
                "sketch",
                Sketch {
                    width: sketch,
                    values,
                },
            )
            .unwrap();
    }
    table
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_written_is_what_is_read(
        lengths in prop::collection::vec(1usize..30, 1..8),
        sketch in 0usize..5,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.parquet");
        let table = table(&lengths, sketch);
        write_table(&path, &table, &meta("a")).unwrap();
        let (found, found_meta) = read_table(&path).unwrap();
        prop_assert_eq!(&found, &table);
        prop_assert_eq!(found_meta, meta("a"));

        let n = table.view().n_tokens();
        let weights = (0..n).map(|i| i as f32 / n as f32).collect();
        let weights = TokenWeights::new(&table.view(), weights).unwrap();
        write_selection(&path, &table, &weights, &meta("b")).unwrap();
        let (tokens, found, found_meta) = read_selection(&path).unwrap();
        prop_assert_eq!(found, weights);
        prop_assert_eq!(tokens.view().positions(), table.view().positions());
        prop_assert_eq!(found_meta, meta("b"));
    }
}

fn refused(path: &Path) -> String {
    read_table(path).unwrap_err().to_string()
}

#[test]
fn damaged_and_foreign_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.parquet");
    assert!(matches!(read_table(&path), Err(DataError::Io { .. })));
    write_table(&path, &table(&[5, 3], 0), &meta("a")).unwrap();
    assert!(
        read_selection(&path)
            .unwrap_err()
            .to_string()
            .contains("not a selection")
    );
    let bytes = fs::read(&path).unwrap();
    for cut in [0, 1, 8, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..cut]).unwrap();
        assert!(
            refused(&path).contains("not a whole Parquet file"),
            "{}",
            refused(&path)
        );
    }
    fs::write(&path, "not parquet at all").unwrap();
    assert!(refused(&path).contains("not a whole Parquet file"));
}

#[test]
fn a_failed_write_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none/s.parquet");
    assert!(write_table(&path, &table(&[2], 0), &meta("a")).is_err());
    assert!(!path.exists());
}

#[test]
fn a_store_of_other_data_is_refused_by_what_differs() {
    let path = Path::new("s.parquet");
    assert!(expect(path, &meta("a"), &meta("a")).is_ok());
    let mut other = meta("a");
    other.weights = Fingerprint::of_bytes(b"other weights");
    assert!(
        expect(path, &other, &meta("a")).is_ok(),
        "each checkpoint has its own weights"
    );
    let message = expect(path, &meta("b"), &meta("a"))
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("s.parquet: its data file is not the one expected"),
        "{message}"
    );
    let mut other = meta("a");
    other.hashes.chat_template = Fingerprint::of_bytes(b"x");
    let message = expect(path, &other, &meta("a")).unwrap_err().to_string();
    assert!(message.contains("its chat template"), "{message}");
}

#[test]
fn pandas_reads_a_store_in_one_line() {
    let python = std::env::var_os("T3S_PYTHON").map_or_else(
        || {
            let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
            if own.exists() { own } else { "python3".into() }
        },
        std::path::PathBuf::from,
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.parquet");
    write_table(&path, &table(&[5, 3], 2), &meta("a")).unwrap();
    let script = "import sys, pandas; t = pandas.read_parquet(sys.argv[1]); \
                  print(list(t.columns), len(t), t.example.tolist(), t['rank'].tolist(), \
                  [list(map(float, s)) for s in t.sketch][:2])";
    let output = Command::new(&python)
        .args(["-c", script])
        .arg(&path)
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(
                error.contains("ModuleNotFoundError") || error.contains("ImportError"),
                "{error}"
            );
            eprintln!("SKIPPED: Python has no pandas with pyarrow");
            return;
        }
        Err(error) => {
            eprintln!("SKIPPED: no Python ({error})");
            return;
        }
    };
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "['example', 'position', 'token_id', 'logp', 'rank', 'sketch'] 8 \
         [1, 1, 1, 1, 1, 4, 4, 4] [0, 7, 14, 21, 28, 35, 42, 49] [[0.0, 0.125], [0.25, 0.375]]"
    );
}
