use std::{collections::HashMap, fs, path::Path};

use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};

use t3s_engine::layers::lora;

use super::*;

type Model<'m> = &'m [(&'m str, Dtype, Vec<usize>, Vec<u8>)];

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn save(folder: &Path, model: Model<'_>) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    let views: HashMap<_, _> = model
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            (
                *name,
                TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
            )
        })
        .collect();
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn terms(folder: &Path, text: &str) -> Vec<Term> {
    let mut terms = parse(&words(text)).unwrap();
    for term in &mut terms {
        term.folder = folder.join(&term.folder);
    }
    terms
}

fn bytes_of(folder: &Path, name: &str) -> (Dtype, Vec<u8>) {
    let file = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    (tensor.dtype(), tensor.data().to_vec())
}

/// Multiples of 2^-10 below 1024: their sums are exact in f32.
fn exact() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(
        (-(1 << 20)..(1 << 20)).prop_map(|n: i32| n as f32 / 1024.0),
        12,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_added_and_taken_away_again_leaves_no_trace(a in exact(), b in exact()) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (name, values) in [("a", &a), ("b", &b)] {
            save(&root.join(name), &[
                ("x", Dtype::F32, vec![3, 4], f32s(values)),
                ("y", Dtype::F32, vec![12], f32s(values)),
            ]);
        }
        let merged = merge(&terms(root, "a + b - a"), &root.join("out")).unwrap();
        prop_assert_eq!((merged.tensors, merged.weights), (2, 24));
        for name in ["x", "y"] {
            prop_assert_eq!(bytes_of(&root.join("out"), name), (Dtype::F32, f32s(&b)));
        }
    }
}

#[test]
fn the_first_models_types_and_companions_stay() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let halves: Vec<u8> = [1.5f32, -2.0]
        .iter()
        .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
        .collect();
    save(&root.join("a"), &[("x", Dtype::BF16, vec![2], halves)]);
    save(
        &root.join("b"),
        &[("x", Dtype::F32, vec![2], f32s(&[4.0, 8.0]))],
    );
    save(
        &root.join("c"),
        &[("x", Dtype::F32, vec![2], f32s(&[1.0, 0.5]))],
    );
    fs::write(root.join("a/tokenizer.json"), "a's").unwrap();
    merge(&terms(root, "a + b - c"), &root.join("out")).unwrap();
    let expected: Vec<u8> = [4.5f32, 5.5]
        .iter()
        .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
        .collect();
    assert_eq!(bytes_of(&root.join("out"), "x"), (Dtype::BF16, expected));
    assert_eq!(
        fs::read_to_string(root.join("out/tokenizer.json")).unwrap(),
        "a's"
    );
}

#[test]
fn what_does_not_go_together_is_named_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    save(
        &root.join("a"),
        &[("x", Dtype::F32, vec![2], f32s(&[3e38, 1.0]))],
    );
    save(
        &root.join("shape"),
        &[("x", Dtype::F32, vec![2, 1], f32s(&[1.0, 1.0]))],
    );
    save(
        &root.join("name"),
        &[("z", Dtype::F32, vec![2], f32s(&[1.0, 1.0]))],
    );
    save(
        &root.join("short"),
        &[("x", Dtype::F32, vec![2], f32s(&[1.0, 1.0]))],
    );
    let short = root.join("short/model.safetensors");
    let bytes = fs::read(&short).unwrap();
    fs::write(&short, &bytes[..bytes.len() - 1]).unwrap();
    for (text, said) in [
        ("a + shape", "tensor x: has shape [2] in"),
        ("a + name", "tensor x: is in"),
        ("a + a", "tensor x: its element 0 comes to"),
        ("a + short", "copy or download it again"),
        ("a + nowhere", "nowhere"),
    ] {
        let error = merge(&terms(root, text), &root.join("out"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
    let error = merge(&terms(root, "a - a"), &root.join("a")).unwrap_err();
    assert!(matches!(error, MergeError::Exists(_)), "{error}");
    assert_eq!(
        fs::read_dir(root).unwrap().count(),
        4,
        "nothing beside the four models"
    );
}

#[test]
fn an_expression_has_signs_between_folders() {
    for text in ["a", "a +", "a b", "+ a", "a + - b"] {
        assert!(parse(&words(text)).is_err(), "{text}");
    }
    let signs: Vec<bool> = parse(&words("a + b - c"))
        .unwrap()
        .iter()
        .map(|t| t.plus)
        .collect();
    assert_eq!(signs, [true, true, false]);
}

/// A model in two shards with an index.
fn save_sharded(folder: &Path, shards: [Model<'_>; 2]) {
    let mut map = serde_json::Map::new();
    for (index, shard) in shards.into_iter().enumerate() {
        save(folder, shard);
        let file = format!("model-{}-of-2.safetensors", index + 1);
        fs::rename(folder.join("model.safetensors"), folder.join(&file)).unwrap();
        for (name, ..) in shard {
            map.insert((*name).to_owned(), file.clone().into());
        }
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
}

#[test]
fn shards_stay_shards_and_may_be_cut_otherwise_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let x = |v: f32| ("x", Dtype::F32, vec![2], f32s(&[v, 2.0 * v]));
    let y = |v: f32| ("y", Dtype::F32, vec![1], f32s(&[v]));
    let z = |v: f32| ("z", Dtype::F32, vec![1], f32s(&[v]));
    save_sharded(&root.join("a"), [&[x(1.0), z(3.0)], &[y(2.0)]]);
    save_sharded(&root.join("b"), [&[y(20.0)], &[x(10.0), z(30.0)]]);
    save(&root.join("c"), &[x(100.0), y(200.0), z(300.0)]);
    merge(&terms(root, "a + b - c"), &root.join("out")).unwrap();
    let files = t3s_engine::checkpoint::weight_files(&root.join("out")).unwrap();
    assert_eq!(files.len(), 2);
    let read = |file: &Path| -> Vec<(String, Vec<u8>)> {
        let bytes = fs::read(file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<_> = tensors
            .iter()
            .map(|(n, t)| (n.to_owned(), t.data().to_vec()))
            .collect();
        all.sort();
        all
    };
    assert_eq!(
        read(&files[0]),
        [
            ("x".to_owned(), f32s(&[-89.0, -178.0])),
            ("z".to_owned(), f32s(&[-267.0]))
        ]
    );
    assert_eq!(read(&files[1]), [("y".to_owned(), f32s(&[-178.0]))]);
}

#[test]
fn a_tied_head_may_be_written_down_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let embed = |v: f32| ("embed.weight", Dtype::F32, vec![2, 1], f32s(&[v, -v]));
    let head = |v: f32| ("lm_head.weight", Dtype::F32, vec![2, 1], f32s(&[v, -v]));
    save(&root.join("twice"), &[embed(1.0), head(1.0)]);
    save(&root.join("once"), &[embed(10.0)]);
    save(&root.join("other"), &[embed(100.0), head(100.0)]);
    save(&root.join("own-head"), &[embed(100.0), head(7.0)]);
    merge(&terms(root, "twice + once - other"), &root.join("out")).unwrap();
    for name in ["embed.weight", "lm_head.weight"] {
        assert_eq!(
            bytes_of(&root.join("out"), name).1,
            f32s(&[-89.0, 89.0]),
            "{name}"
        );
    }
    merge(&terms(root, "once + twice"), &root.join("short")).unwrap();
    assert_eq!(
        bytes_of(&root.join("short"), "embed.weight").1,
        f32s(&[11.0, -11.0])
    );
    for text in ["once + own-head", "own-head + once"] {
        let error = merge(&terms(root, text), &root.join("x"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("lm_head.weight: is in") && error.contains("tied"),
            "{error}"
        );
    }
}

#[test]
fn adapters_stand_for_the_first_model_with_themselves_added() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let norm = ("norm.weight", Dtype::F32, vec![2], f32s(&[5.0, 6.0]));
    let weight = ("q_proj.weight", Dtype::F32, vec![3, 2], f32s(&[1.0; 6]));
    save(&root.join("base"), &[weight, norm]);
    let adapter = |name: &str, a: [f32; 2], b: [f32; 3], module: &str| {
        let at = root.join(name);
        let names = ["lora_A", "lora_B"].map(|part| lora::adapter_name(module, part));
        save(
            &at,
            &[
                (&names[0], Dtype::F32, vec![1, 2], f32s(&a)),
                (&names[1], Dtype::F32, vec![3, 1], f32s(&b)),
            ],
        );
        fs::remove_file(at.join("config.json")).unwrap();
        fs::rename(
            at.join("model.safetensors"),
            at.join("adapter_model.safetensors"),
        )
        .unwrap();
        let config = serde_json::json!({
            "peft_type": "LORA", "r": 1, "lora_alpha": 2.0, "target_modules": ["q_proj"],
        });
        fs::write(at.join("adapter_config.json"), config.to_string()).unwrap();
    };
    adapter("final", [1.0, 0.0], [1.0, 2.0, 3.0], "q_proj.weight");
    adapter("valley", [0.0, 1.0], [1.0, 1.0, 0.0], "q_proj.weight");
    merge(&terms(root, "base + final - valley"), &root.join("out")).unwrap();
    // 1 + (1 + 2 b a) - (1 + 2 b a), rows of b, columns of a.
    let expected = [3.0, -1.0, 5.0, -1.0, 7.0, 1.0];
    assert_eq!(
        bytes_of(&root.join("out"), "q_proj.weight").1,
        f32s(&expected)
    );
    assert_eq!(
        bytes_of(&root.join("out"), "norm.weight").1,
        f32s(&[5.0, 6.0])
    );
    adapter("stranger", [0.0, 1.0], [1.0, 1.0, 0.0], "v_proj.weight");
    for (text, said) in [
        ("base + stranger", "adapts another model"),
        ("final + base", "adapters are added to the first model"),
    ] {
        let error = merge(&terms(root, text), &root.join("x"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}
