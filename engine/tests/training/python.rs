//! What is written is what transformers and peft read, and a step is torch's.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use t3s_core::{
    AttentionPattern, Example,
    plan::{AdamWPlan, LoraPlan, Recompute, Schedule, TrainPlan},
};
use t3s_engine::{
    Accumulation, Batch, Decoder, Grads, Part, Save,
    checkpoint::{load_adapter, save_params, write_tensors},
    loss_and_gradients,
};

use crate::{
    adapters::Adapted,
    model::{Shape, examples, relative_error, values},
    setup::{decoder, trainer, weights, write_config},
};

/// Absolute.
const LOGITS: f32 = 2e-4;
/// Relative, of each tensor.
const PARAMETERS: f64 = 1e-6;

/// An interpreter that has `packages`; says so on stderr where there is none.
fn python(packages: &str) -> Option<PathBuf> {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    let python = match std::env::var_os("T3S_PYTHON") {
        Some(path) => PathBuf::from(path),
        None if local.exists() => local,
        None => PathBuf::from("python3"),
    };
    // Finds the packages without the seconds that importing them takes.
    let find = format!(
        "import importlib.util as u, sys\n\
         sys.exit(not all(u.find_spec(p) for p in {packages:?}.split()))"
    );
    match Command::new(&python).args(["-c", &find]).output() {
        Ok(done) if done.status.success() => Some(python),
        _ => {
            eprintln!(
                "SKIPPED: {} has not all of {packages}; run tools/python-env.sh or set T3S_PYTHON",
                python.display()
            );
            None
        }
    }
}

fn run(python: &Path, script: &str, arguments: &[&OsStr]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let done = Command::new(python)
        .arg(folder.join(script))
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn sequences() -> Vec<Vec<u32>> {
    examples(&Shape::TINY, &[1, 2, 23, 64, 130], 12)
        .into_iter()
        .map(|e| e.ids)
        .collect()
}

/// Our logits of all sequences, packed into one pass, against those in `file`.
fn assert_logits(decoder: &Decoder, file: &Path) {
    let sequences = sequences();
    let mut offsets = vec![0u32];
    let mut positions = Vec::new();
    for ids in &sequences {
        positions.extend(0..ids.len() as u32);
        offsets.push(positions.len() as u32);
    }
    let batch = Batch {
        positions: Arc::new(positions),
        offsets: Arc::new(offsets),
        attention: AttentionPattern::Causal,
    };
    let (hidden, _) = decoder
        .forward(&sequences.concat(), &batch, Recompute::None, Save::Nothing)
        .unwrap();
    let ours = values(&decoder.logits(&hidden).unwrap());
    let theirs = tensors(file);
    let theirs: Vec<f32> = (0..sequences.len())
        .flat_map(|i| values(&theirs[&i.to_string()]))
        .collect();
    assert_eq!(ours.len(), theirs.len());
    let differences = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0, f32::max);
    let largest = theirs.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    eprintln!("logits: off by at most {worst:e}, up to {largest}");
    assert!(largest > 0.5, "nothing to compare: {largest}");
    assert!(worst < LOGITS, "{worst}");
}

/// The logits of [`sequences`] from each of `models`.
fn run_transformers(python: &Path, folder: &Path, models: Vec<Value>) {
    let jobs = folder.join("jobs.json");
    let text = json!({ "sequences": sequences(), "models": models }).to_string();
    fs::write(&jobs, text).unwrap();
    run(python, "transformers_logits.py", &[jobs.as_os_str()]);
}

#[test]
fn transformers_reads_what_is_saved() {
    let Some(python) = python("torch transformers safetensors") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (mut models, mut decoders) = (Vec::new(), Vec::new());
    for (tied, shard_bytes, name) in [(true, usize::MAX, "single"), (false, 20_000, "sharded")] {
        let like = path(&format!("{name}-like"));
        fs::create_dir(&like).unwrap();
        write_config(&like, tied);
        let shape = Shape {
            tied,
            ..Shape::TINY
        };
        let params = shape.params(6);
        save_params(&path(name), &params, &like, shard_bytes).unwrap();
        let out = path(&format!("{name}.safetensors"));
        models.push(json!({ "model": path(name), "out": out }));
        decoders.push((Decoder::new(shape.spec(), params, None).unwrap(), out));
    }
    run_transformers(&python, folder.path(), models);
    for (decoder, out) in decoders {
        assert_logits(&decoder, &out);
    }
}

#[test]
fn peft_reads_what_is_saved_and_the_other_way_round() {
    let Some(python) = python("torch transformers safetensors peft") else {
        return;
    };
    let adapted = Adapted::new(LoraPlan {
        rank: 4,
        alpha: 6.0,
        ..LoraPlan::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (out, again) = (path("logits.safetensors"), path("again"));
    let (base, adapter) = (adapted.base(), adapted.adapter());
    let job = json!({ "model": base, "out": out, "adapter": adapter, "again": again });
    run_transformers(&python, folder.path(), vec![job]);
    assert_logits(adapted.trainer.decoder(), &out);
    let theirs =
        load_adapter(&base, &again, &Shape::TINY.spec(), &Device::Cpu, DType::F32).unwrap();
    assert_logits(&theirs, &out);
}

/// Five steps of ours and of torch, on our gradients.
fn assert_steps(weight_decay: f64, clip_norm: f64, lora: Option<LoraPlan>) {
    let Some(python) = python("torch safetensors") else {
        return;
    };
    let plan = TrainPlan {
        adamw: AdamWPlan {
            beta1: 0.85,
            beta2: 0.97,
            eps: 1e-7,
            weight_decay,
            ..AdamWPlan::default()
        },
        clip_norm,
        batch_examples: 0,
        schedule: Schedule::Linear,
        warmup: 0.4,
        lora,
        ..TrainPlan::new(5, 1e-2)
    };
    let data = examples(&Shape::TINY, &[12, 20, 9], 4);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut trainer = trainer(&plan, data.clone(), 1);
    let learns = |trainer: &t3s_engine::Trainer| -> Vec<(String, Tensor)> {
        let params = trainer.decoder().params.iter();
        params
            .filter(|(_, p)| p.trainable)
            .map(|(_, p)| (p.name.clone(), p.tensor.copy().unwrap()))
            .collect()
    };
    let write = |name: &str, tensors: &[(String, Tensor)]| {
        let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor));
        write_tensors(&path(name), tensors).unwrap();
    };
    write("start.safetensors", &learns(&trainer));
    let (mut reports, mut ours) = (Vec::new(), Vec::new());
    for step in 1..=5 {
        let gradients = of_the_step(trainer.decoder(), &data, &plan);
        write(&format!("gradients-{step}.safetensors"), &gradients);
        reports.push(trainer.step().unwrap());
        ours.push(learns(&trainer));
    }
    let settings = json!({
        "beta1": plan.adamw.beta1,
        "beta2": plan.adamw.beta2,
        "eps": plan.adamw.eps,
        "weight_decay": weight_decay,
        "clip_norm": if clip_norm > 0.0 { clip_norm } else { 1e30 },
        "learning_rates": reports.iter().map(|r| r.learning_rate).collect::<Vec<_>>(),
    });
    fs::write(path("settings.json"), settings.to_string()).unwrap();
    let arguments = ["settings.json", "start.safetensors", "gradients-", "torch-"].map(path);
    run(
        &python,
        "adamw_steps.py",
        &arguments.each_ref().map(|p| p.as_os_str()),
    );
    let mut worst = 0.0f64;
    for ((step, ours), report) in (1..).zip(&ours).zip(&reports) {
        let theirs = tensors(&path(&format!("torch-{step}.safetensors")));
        let norm = f64::from(values(&theirs["norm"])[0]);
        assert!(
            (report.grad_norm / norm - 1.0).abs() < 1e-5,
            "{norm} {report:?}"
        );
        assert!(
            clip_norm == 0.0 || norm > clip_norm,
            "nothing to clip: {norm}"
        );
        assert_eq!(theirs.len(), ours.len() + 1);
        for (name, tensor) in ours {
            let error = relative_error(&values(tensor), &values(&theirs[name]));
            worst = worst.max(error);
            assert!(error < PARAMETERS, "step {step}: {name}: {error}");
        }
    }
    eprintln!("parameters: off by at most {worst:e}, relative");
    assert!(weights(&trainer.decoder().params) != weights(&decoder(1, plan.lora.as_ref()).params));
}

/// The gradients that the next step of a trainer over all of `data` will use.
fn of_the_step(decoder: &Decoder, data: &[Example], plan: &TrainPlan) -> Vec<(String, Tensor)> {
    let part = Part {
        examples: data.iter().collect(),
        draw: 0,
    };
    let mut grads = Grads::new(&decoder.params);
    let how = Accumulation::of(plan, 1);
    let objective = &t3s_core::objective::NextToken;
    loss_and_gradients(decoder, objective, &[part], &how, &mut grads).unwrap();
    let slots = decoder.params.iter();
    slots
        .filter_map(|(id, param)| Some((param.name.clone(), grads.get(id)?.clone())))
        .collect()
}

#[test]
fn five_steps_are_those_of_torch() {
    assert_steps(0.0, 0.25, None);
}

#[test]
fn weight_decay_shrinks_matrices_as_torch_does() {
    assert_steps(0.1, 0.0, None);
}

#[test]
fn an_adapters_steps_are_those_of_torch() {
    assert_steps(0.1, 0.25, Some(LoraPlan::default()));
}
