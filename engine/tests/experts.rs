//! A mixture of experts: its gradients against differences of the loss, adapted and not, and its
//! checkpoints, with a tensor per expert, with stacked ones, and with one missing.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use t3s_core::{
    DecoderSpec, Example, HfConfig, ModelAdapter,
    plan::{LoraPlan, Schedule, TrainPlan},
};
use t3s_engine::{
    Decoder, Trainer,
    checkpoint::{load_adapter, load_decoder, load_params, save_decoder, save_tensors},
    layers::lora,
};
use t3s_model_adapters::Llada2;

const EXPERTS: usize = 8;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llada2-tiny")
}

fn spec() -> DecoderSpec {
    let text = fs::read(golden().join("config.json")).unwrap();
    let config = HfConfig(serde_json::from_slice(&text).unwrap());
    assert_eq!(config.0["num_experts"], EXPERTS);
    Llada2.decoder(&config).unwrap()
}

/// The golden model's tensors in a folder, changed by `change`.
fn folder(change: impl Fn(&mut BTreeMap<String, Tensor>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let weights = golden().join("model.safetensors");
    let mut tensors: BTreeMap<String, Tensor> =
        candle_core::safetensors::load(weights, &Device::Cpu)
            .unwrap()
            .into_iter()
            .collect();
    change(&mut tensors);
    let path = folder.path().join("model.safetensors");
    save_tensors(&path, tensors.iter().map(|(name, t)| (name.clone(), t))).unwrap();
    fs::copy(
        golden().join("config.json"),
        folder.path().join("config.json"),
    )
    .unwrap();
    folder
}

/// Puts `experts.PROJECTION` in place of `experts.E.PROJECTION.weight`.
fn stack(tensors: &mut BTreeMap<String, Tensor>) {
    let experts: Vec<String> = tensors
        .keys()
        .filter_map(|name| name.split_once(".experts.0.").map(|_| name.clone()))
        .collect();
    assert!(!experts.is_empty());
    for first in experts {
        let member = |e: usize| first.replace(".experts.0.", &format!(".experts.{e}."));
        let parts: Vec<Tensor> = (0..EXPERTS)
            .map(|e| tensors.remove(&member(e)).unwrap())
            .collect();
        let name = first.replace(".experts.0.", ".experts.");
        let name = name.strip_suffix(".weight").unwrap();
        tensors.insert(name.to_owned(), Tensor::stack(&parts, 0).unwrap());
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn stacked_experts_are_read_and_written_as_they_were() {
    let spec = spec();
    let stacked = folder(stack);
    let single = load_decoder(&golden(), &spec, &Device::Cpu, DType::F32).unwrap();
    let decoder = load_decoder(stacked.path(), &spec, &Device::Cpu, DType::F32).unwrap();
    for ((_, a), (_, b)) in single.params.iter().zip(decoder.params.iter()) {
        assert_eq!((&a.name, values(&a.tensor)), (&b.name, values(&b.tensor)));
    }
    // Written beside a stacked base: stacked, to the bit.
    let out = tempfile::tempdir().unwrap();
    let names = |path: &Path| -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        candle_core::safetensors::load(path.join("model.safetensors"), &Device::Cpu)
            .unwrap()
            .into_iter()
            .map(|(name, t)| (name, (t.dims().to_vec(), values(&t))))
            .collect()
    };
    let written = out.path().join("stacked");
    save_decoder(&written, &decoder, stacked.path()).unwrap();
    assert_eq!(names(&written), names(stacked.path()));
    assert!(names(&written).contains_key("model.layers.1.mlp.experts.down_proj"));
    // Beside one with a tensor per expert: a tensor per expert.
    let written = out.path().join("single");
    save_decoder(&written, &decoder, &golden()).unwrap();
    assert_eq!(names(&written), names(&golden()));
}

#[test]
fn a_missing_expert_is_named() {
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let folder = folder(change);
        let error = load_decoder(folder.path(), &spec(), &Device::Cpu, DType::F32).unwrap_err();
        error.to_string()
    };
    let lost = "model.layers.1.mlp.experts.3.up_proj.weight";
    let message = refused(&|tensors| {
        tensors.remove(lost).unwrap();
    });
    assert!(
        message.contains(lost) && message.contains("incomplete"),
        "{message}"
    );
    let message = refused(&|tensors| {
        stack(tensors);
        let name = "model.layers.1.mlp.experts.up_proj";
        let short = tensors[name].narrow(0, 0, EXPERTS - 1).unwrap();
        tensors.insert(name.to_owned(), short);
    });
    assert!(
        message.contains("experts.up_proj") && message.contains("8 experts"),
        "{message}"
    );
    let message = refused(&|tensors| {
        let kept = tensors[lost].clone();
        stack(tensors);
        tensors.insert(lost.to_owned(), kept);
    });
    assert!(
        message.contains(lost) && message.contains("too"),
        "{message}"
    );
}

/// The golden model about to learn a pattern, adapted where `lora` says so.
fn trainer(lora: Option<LoraPlan>) -> Trainer {
    let spec = spec();
    let mut params = load_params(&golden(), &spec, &Device::Cpu, DType::F32).unwrap();
    if let Some(plan) = &lora {
        lora::attach(&spec, &mut params, plan, 3).unwrap();
    }
    let decoder = Decoder::new(spec, params, lora.as_ref()).unwrap();
    let options = "mask_id = 94\nblock = 4\nratio = [0.5, 0.8]"
        .parse()
        .unwrap();
    let objective = Llada2.objective(&options).unwrap();
    let examples = (0..6).map(|e| Example {
        id: e,
        ids: (0..23).map(|i| (7 * e as u32 + 3 * i) % 90).collect(),
        trainable: (0..23).map(|i| i > 4).collect(),
        weights: vec![0.0; 23],
        prompt_len: 5,
        noisy_ids: None,
        answer: None,
    });
    let plan = TrainPlan {
        batch_examples: 6,
        schedule: Schedule::Constant,
        lora,
        ..TrainPlan::new(12, 1e-2)
    };
    Trainer::new(decoder, objective, Arc::new(examples.collect()), plan, 1).unwrap()
}

#[test]
fn gradients_of_experts_are_the_slopes_of_the_loss() {
    let report = trainer(None).check_gradients().unwrap();
    let groups: Vec<&str> = report.groups.iter().map(|group| group.group).collect();
    for group in [
        "router",
        "feed-forward",
        "attention",
        "norms",
        "embedding",
        "head",
    ] {
        assert!(groups.contains(&group), "{groups:?}");
    }
}

#[test]
fn experts_and_attention_can_be_adapted() {
    let targets = [
        "query_key_value",
        "dense",
        "gate_proj",
        "up_proj",
        "down_proj",
    ];
    let mut trainer = trainer(Some(LoraPlan {
        rank: 2,
        alpha: 4.0,
        targets: targets.map(str::to_owned).into(),
    }));
    let report = trainer.check_gradients().unwrap();
    let groups: Vec<&str> = report.groups.iter().map(|group| group.group).collect();
    assert_eq!(groups, ["lora"]);
    let before = load_params(&golden(), &spec(), &Device::Cpu, DType::F32).unwrap();
    let losses: Vec<f64> = (0..12).map(|_| trainer.step().unwrap().loss).collect();
    assert!(
        losses[10] + losses[11] < 0.9 * (losses[0] + losses[1]),
        "{losses:?}"
    );
    for (_, frozen) in before.iter() {
        let decoder = trainer.decoder();
        let id = decoder.params.id(&frozen.name).unwrap();
        assert_eq!(values(decoder.params.tensor(id)), values(&frozen.tensor));
    }
    let out = tempfile::tempdir().unwrap();
    let adapter = out.path().join("adapter");
    trainer.save_model(&adapter, &golden()).unwrap();
    let loaded = load_adapter(&golden(), &adapter, &spec(), &Device::Cpu, DType::F32).unwrap();
    let name = lora::adapter_name("model.layers.1.mlp.experts.3.up_proj.weight", "lora_B");
    let of = |decoder: &Decoder| values(decoder.params.tensor(decoder.params.id(&name).unwrap()));
    assert!(of(&loaded).iter().any(|v| *v != 0.0));
    assert_eq!(of(&loaded), of(trainer.decoder()));
}
