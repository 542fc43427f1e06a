//! The program's gradients beside those that the transformers package gave for the same model.

#[expect(dead_code, reason = "used in part")]
mod support;

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use support::{World, copy, shared};

/// The tensors of a safetensors file, as f64; I64 and F32 are all that is used here.
fn tensors(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let bytes = fs::read(path).expect("a file of tensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let values = |entry: &Value| {
        let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize + 8 + length;
        let data = &bytes[at(0)..at(1)];
        if entry["dtype"] == "I64" {
            let number = |c: &[u8]| i64::from_le_bytes(c.try_into().unwrap()) as f64;
            return data.chunks(8).map(number).collect();
        }
        assert_eq!(entry["dtype"], "F32");
        let number = |c: &[u8]| f64::from(f32::from_le_bytes(c.try_into().unwrap()));
        data.chunks(4).map(number).collect()
    };
    let named = header.iter().filter(|(name, _)| *name != "__metadata__");
    named.map(|(name, e)| (name.clone(), values(e))).collect()
}

#[test]
fn loss_and_gradients_are_those_of_the_reference() {
    let Some(golden) = shared("golden/qwen3-tiny") else {
        return;
    };
    let world = World::new();
    copy(&world.path("student"), &world.path("golden"));
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(name), world.path("golden").join(name)).unwrap();
    }
    let golden = tensors(&golden.join("golden.safetensors"));
    let mut rows = String::new();
    for i in 0..2 {
        let ids: Vec<u64> = golden["ids"][40 * i..][..40].iter().map(|v| *v as u64).collect();
        let row = json!({
            "input_ids": ids, "prompt_length": golden["prompt_lengths"][i] as u64,
            "weights": golden["weights"][40 * i..][..40],
        });
        rows += &format!("{row}\n");
    }
    world.write("rows.jsonl", rows);
    for pack in [&[][..], &["--pack"]] {
        let args = ["grads", "golden", "--data", "rows.jsonl", "--out", "g.safetensors"];
        world.t3s(&[&args[..], pack].concat()).good();
        let found = tensors(&world.path("g.safetensors"));
        let loss = (found["loss"][0], golden["loss"][0]);
        assert!((loss.0 - loss.1).abs() < 1e-5 * loss.1, "{loss:?}");
        let mut compared = 0;
        for (name, wanted) in &golden {
            let Some(name) = name.strip_prefix("grad.") else {
                continue;
            };
            let found = &found[name];
            assert_eq!(found.len(), wanted.len(), "{name}");
            let squares = |f: &dyn Fn(usize) -> f64| -> f64 {
                (0..wanted.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt()
            };
            let error = squares(&|i| found[i] - wanted[i]) / squares(&|i| wanted[i]);
            assert!(error < 1e-4, "{name}: {error}");
            compared += 1;
        }
        assert_eq!(compared, 35);
    }
}
