//! A run that was interrupted and resumed is, bit for bit, the run that was not.

use std::{fs, path::Path, sync::Arc};

use t3s_core::{
    Example,
    objective::NextToken,
    plan::{Schedule, TrainPlan},
};
use t3s_engine::Trainer;

use crate::{
    model::{Shape, examples},
    setup::{decoder, lora_plan, trainer, weights},
};

const LENGTHS: [usize; 5] = [14, 20, 9, 6, 17];

/// Three of five examples per step, so that the second step crosses the end of the first epoch.
fn plan(lora: bool) -> TrainPlan {
    TrainPlan {
        batch_examples: 3,
        micro_batch_tokens: 30,
        schedule: Schedule::Linear,
        warmup: 0.3,
        lora: lora.then(lora_plan),
        ..TrainPlan::new(8, 5e-3)
    }
}

fn data() -> Vec<Example> {
    examples(&Shape::TINY, &LENGTHS, 3)
}

/// Everything of a step's report but the time.
fn steps(trainer: &mut Trainer, n: usize) -> Vec<(u64, [u64; 4], [usize; 3])> {
    (0..n)
        .map(|_| {
            let r = trainer.step().unwrap();
            let numbers = [r.loss, r.learning_rate, r.grad_norm, r.epoch];
            (
                r.step,
                numbers.map(f64::to_bits),
                [r.tokens, r.kept_tokens, r.response_tokens],
            )
        })
        .collect()
}

/// Every file of a folder, by name.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// The state of a trainer, as files.
fn state(trainer: &Trainer) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    trainer.save_state(&folder.path().join("state")).unwrap();
    files(&folder.path().join("state"))
}

fn assert_resumes(plan: &TrainPlan, at: usize) {
    let mut whole = trainer(plan, data(), 5);
    let reports = steps(&mut whole, 8);
    assert!(whole.is_done());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut first = trainer(plan, data(), 5);
    let mut resumed_reports = steps(&mut first, at);
    first.save_state(&path).unwrap();
    drop(first);
    let mut second = trainer(plan, data(), 5);
    second.load_state(&path).unwrap();
    assert_eq!(second.steps_done(), at as u64);
    resumed_reports.extend(steps(&mut second, 8 - at));

    assert_eq!(reports, resumed_reports);
    assert!(state(&whole) == state(&second), "states differ");
    assert!(weights(&whole.decoder().params) == weights(&second.decoder().params));
    assert!(
        weights(&whole.decoder().params) != weights(&trainer(plan, data(), 5).decoder().params)
    );
}

#[test]
fn full_training_resumes_bit_for_bit() {
    for at in [1, 4, 5] {
        assert_resumes(&plan(false), at);
    }
}

#[test]
fn an_adapter_resumes_bit_for_bit() {
    assert_resumes(&plan(true), 4);
}

#[test]
fn without_packing_too() {
    let plan = TrainPlan {
        packing: false,
        ..plan(false)
    };
    assert_resumes(&plan, 3);
}

#[test]
fn a_state_at_the_end_of_an_epoch_resumes() {
    let plan = TrainPlan {
        batch_examples: 5,
        ..plan(false)
    };
    assert_resumes(&plan, 4);
}

#[test]
fn a_state_before_the_first_step_resumes() {
    assert_resumes(&plan(false), 0);
}

/// `trainer` refuses `folder`, says `words`, and is what it was.
fn assert_refused(mut trainer: Trainer, folder: &Path, words: &[&str]) {
    let before = state(&trainer);
    let error = trainer.load_state(folder).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    assert!(state(&trainer) == before, "{error}: the trainer changed");
    trainer.step().unwrap();
}

#[test]
fn a_state_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    for lora in [false, true] {
        let plan = plan(lora);
        let mut saved = trainer(&plan, data(), 5);
        steps(&mut saved, 2);
        saved.save_state(&path).unwrap();

        let refused = |plan: &TrainPlan, examples: Vec<Example>, seed| {
            let words = ["another run", path.to_str().unwrap()];
            assert_refused(trainer(plan, examples, seed), &path, &words);
        };
        let hotter = TrainPlan {
            learning_rate: 1e-2,
            ..plan.clone()
        };
        refused(&hotter, data(), 5);
        refused(&plan, data(), 6);
        refused(&plan, data()[..4].to_vec(), 5);
        let mut other = data();
        other[2].ids[3] ^= 1;
        refused(&plan, other, 5);
        let mut other = data();
        other[2].weights[3] += 0.5;
        refused(&plan, other, 5);
        let mut other = data();
        other[2].trainable[3] ^= true;
        refused(&plan, other, 5);
        let lora = match plan.lora {
            Some(_) => None,
            None => Some(lora_plan()),
        };
        let other = TrainPlan {
            lora,
            ..plan.clone()
        };
        refused(&other, data(), 5);

        // How often states are saved is no part of a run.
        let mut same = trainer(
            &TrainPlan {
                save_every: 3,
                ..plan.clone()
            },
            data(),
            5,
        );
        same.load_state(&path).unwrap();
        assert_eq!(same.steps_done(), 2);
    }
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let plan = plan(true);
    let of_base = |seed| {
        let decoder = decoder(seed, plan.lora.as_ref());
        let examples = Arc::new(data());
        Trainer::new(decoder, Box::new(NextToken), examples, plan.clone(), 5).unwrap()
    };
    of_base(1).save_state(&path).unwrap();
    assert_refused(of_base(2), &path, &["another run"]);
    of_base(1).load_state(&path).unwrap();
}

#[test]
fn a_damaged_state_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut saved = trainer(&plan(true), data(), 5);
    steps(&mut saved, 2);
    saved.save_state(&path).unwrap();
    let fresh = || trainer(&plan(true), data(), 5);

    for (name, bytes) in files(&path) {
        let file = path.join(&name);
        for cut in [
            0,
            1,
            7,
            8,
            9,
            bytes.len() / 3,
            bytes.len() / 2,
            bytes.len() - 1,
        ] {
            fs::write(&file, &bytes[..cut]).unwrap();
            assert_refused(fresh(), &path, &[&name]);
        }
        fs::remove_file(&file).unwrap();
        assert_refused(fresh(), &path, &[&name]);
        fs::write(&file, &bytes).unwrap();
    }

    let json = path.join("state.json");
    let text = fs::read_to_string(&json).unwrap();
    for (from, to, word) in [
        ("\"format\": 1", "\"format\": 2", "layout 2"),
        ("\"index\": 1", "\"index\": 99", "99"),
        ("\"steps\": 2", "\"steps\": \"two\"", "state.json"),
        ("\"steps\": 2", "\"more\": 2", "state.json"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{text}");
        fs::write(&json, changed).unwrap();
        assert_refused(fresh(), &path, &[word]);
    }
    fs::write(&json, text).unwrap();
    fresh().load_state(&path).unwrap();
}

#[test]
fn a_state_that_cannot_be_written_leaves_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut trainer = trainer(&plan(false), data(), 5);
    steps(&mut trainer, 1);
    trainer.save_state(&path).unwrap();
    let old = files(&path);
    steps(&mut trainer, 1);

    let nowhere = folder.path().join("absent").join("state");
    let error = trainer.save_state(&nowhere).unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
    assert!(!nowhere.parent().unwrap().exists());
    assert!(files(&path) == old);

    // Replaced whole, and nothing is left beside it.
    trainer.save_state(&path).unwrap();
    assert!(files(&path) != old);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
