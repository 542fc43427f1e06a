//! The dumped reference `golden/qwen3-tiny` (transformers' Qwen3 in float32) through the program:
//! `t3s score` and `t3s grads` on a folder that holds its weights; and the reference of LLaDA 2.0,
//! with the corruption that its dump was made with.

#[expect(dead_code, reason = "used in part")]
mod support;

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use support::{World, shared};

/// Tensors of a file as numbers, with their shapes.
fn read(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => data
                    .chunks_exact(4)
                    .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                    .collect(),
                Dtype::I64 => data
                    .chunks_exact(8)
                    .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
                    .collect(),
                other => panic!("{name}: {other:?}"),
            };
            (name, values)
        })
        .collect()
}

/// `|a - b| / |b|`.
fn relative(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(wanted).map(|(f, w)| f - w));
    difference / norm(&mut wanted.iter().copied())
}

/// The reference as a model folder and rows that are tokenised already.
fn reference(world: &World, folder: &Path) -> BTreeMap<String, Vec<f64>> {
    let golden = read(&folder.join("golden.safetensors"));
    fs::create_dir_all(world.path("golden")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(folder.join(name), world.path("golden").join(name)).unwrap();
    }
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(
            world.path("student").join(name),
            world.path("golden").join(name),
        )
        .unwrap();
    }
    let rows: Vec<String> = golden["ids"]
        .chunks(40)
        .zip(golden["weights"].chunks(40))
        .map(|(ids, weights)| {
            let ids: Vec<u64> = ids.iter().map(|id| *id as u64).collect();
            json!({ "input_ids": ids, "prompt_length": 0, "weights": weights }).to_string()
        })
        .collect();
    world.write("rows.jsonl", rows.join("\n"));
    golden
}

#[test]
fn gradients_are_those_of_the_reference() {
    let Some(folder) = shared("golden/qwen3-tiny") else {
        return;
    };
    let world = World::new();
    let golden = reference(&world, &folder);
    for pack in [&[][..], &["--pack"][..]] {
        let args = [
            "grads",
            "golden",
            "--data",
            "rows.jsonl",
            "--out",
            "g.safetensors",
        ];
        world.t3s(&[&args[..], pack].concat()).good();
        let found = read(&world.path("g.safetensors"));
        assert!(relative(&found["loss"], &golden["loss"]) <= 1e-5);
        let wanted = golden
            .iter()
            .filter_map(|(name, values)| name.strip_prefix("grad.").map(|name| (name, values)));
        let mut n = 0;
        for (name, wanted) in wanted {
            let error = relative(&found[name], wanted);
            assert!(error <= 1e-4, "{name}: {error:e}");
            n += 1;
        }
        assert_eq!(n + 1, found.len());
    }
}

#[test]
fn scores_are_those_of_the_reference() {
    let Some(folder) = shared("golden/qwen3-tiny") else {
        return;
    };
    let world = World::new();
    let golden = reference(&world, &folder);
    for batch_tokens in ["40", "8192"] {
        let args = [
            "score",
            "golden",
            "--data",
            "rows.jsonl",
            "--out",
            "s.parquet",
        ];
        world
            .t3s(&[&args[..], &["--batch-tokens", batch_tokens]].concat())
            .good();
        let (table, meta) = t3s_data::store::read_table(&world.path("s.parquet")).unwrap();
        assert_eq!(meta.adapter, "qwen3");
        let view = table.view();
        for (column, name, bound) in [
            ("logp", "target_logp", 2e-5),
            ("entropy", "entropy", 1e-4),
            ("rank", "rank", 0.0),
        ] {
            let found = view.column(column).unwrap();
            assert_eq!(found.len(), golden[name].len());
            let errors = found
                .iter()
                .zip(&golden[name])
                .map(|(f, w)| (f64::from(*f) - w).abs());
            let worst = errors.fold(0.0, f64::max);
            assert!(worst <= bound, "{column}: {worst:e}");
        }
    }
}

/// Our own transcription of LLaDA 2.0 as a model folder, and its corrupted rows.
fn masked_reference(world: &World) -> BTreeMap<String, Vec<f64>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llada2-tiny");
    let golden = read(&folder.join("golden.safetensors"));
    fs::create_dir_all(world.path("masked")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(folder.join(name), world.path("masked").join(name)).unwrap();
    }
    // The rows are tokenised, but a folder has a tokenizer; one that fits 96 ids.
    let ids: Vec<u64> = (0..94).collect();
    let vocab: BTreeMap<String, u64> = ids.iter().map(|id| (format!("<{id}>"), *id)).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<0>" },
    });
    world.write("masked/tokenizer.json", tokenizer.to_string());
    world.write("masked/tokenizer_config.json", "{}");
    let rows: Vec<String> = golden["clean_ids"]
        .chunks(44)
        .zip(golden["noisy_ids"].chunks(44))
        .map(|(clean, noisy)| {
            let ids = |ids: &[f64]| ids.iter().map(|id| *id as u64).collect::<Vec<u64>>();
            let row = json!({
                "input_ids": ids(clean), "noisy_ids": ids(noisy), "prompt_length": 0,
            });
            row.to_string()
        })
        .collect();
    world.write("noisy.jsonl", rows.join("\n"));
    golden
}

#[test]
fn a_corruption_that_the_data_fixes_is_that_of_the_reference() {
    let world = World::new();
    let golden = masked_reference(&world);
    let block = ["--student", "objective.block=8", "--data", "noisy.jsonl"];
    for pack in [&[][..], &["--pack"][..]] {
        let args = ["grads", "masked", "--out", "g.safetensors"];
        world.t3s(&[&args[..], &block[..], pack].concat()).good();
        let found = read(&world.path("g.safetensors"));
        assert!(relative(&found["loss"], &golden["loss"]) <= 1e-5);
        let wanted: BTreeMap<&str, &Vec<f64>> = golden
            .iter()
            .filter_map(|(name, values)| Some((name.strip_prefix("grad.")?, values)))
            .collect();
        assert!(wanted.len() > 30, "{}", wanted.len());
        for (name, wanted) in &wanted {
            let error = relative(&found[*name], wanted);
            assert!(error <= 2e-4, "{name}: {error:e}");
        }
        assert_eq!(wanted.len() + 1, found.len());
    }
    for batch_tokens in ["44", "8192"] {
        let args = [
            "score",
            "masked",
            "--out",
            "s.parquet",
            "--batch-tokens",
            batch_tokens,
        ];
        world.t3s(&[&args[..], &block[..]].concat()).good();
        let (table, meta) = t3s_data::store::read_table(&world.path("s.parquet")).unwrap();
        assert_eq!(meta.estimator, "corruptions, 128 draws, seed 0");
        let masked: Vec<f64> = golden["target_logp"]
            .iter()
            .zip(golden["noisy_ids"].iter().zip(&golden["clean_ids"]))
            .filter(|(_, (noisy, clean))| noisy != clean)
            .map(|(logp, _)| *logp)
            .collect();
        let found = table.view().column("logp").unwrap().to_vec();
        assert_eq!(found.len(), masked.len());
        let errors = found
            .iter()
            .zip(&masked)
            .map(|(f, w)| (f64::from(*f) - w).abs());
        let worst = errors.fold(0.0, f64::max);
        assert!(worst <= 5e-5, "{worst:e}");
    }
    // An autoregressive student corrupts nothing.
    let args = [
        "grads",
        "student",
        "--data",
        "noisy.jsonl",
        "--out",
        "g.safetensors",
    ];
    assert!(world.t3s(&args).failed(2).contains("noisy_ids"));
}
