use std::{collections::HashMap, fs, path::Path};

use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};

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
