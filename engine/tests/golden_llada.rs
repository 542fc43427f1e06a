//! Parity of dense LLaDA with a plain PyTorch transcription of the published architecture
//! (`tests/golden/llada_reference.py`): logits, log-probabilities, loss, every gradient.

#[path = "gradients/model.rs"]
#[expect(dead_code, reason = "shared with the gradient tests")]
mod model;

use std::{path::PathBuf, sync::Arc};

use candle_core::{DType, Device};
use model::{relative_error, values};
use t3s_core::{AttentionPattern, HfConfig, ModelAdapter, plan::sections::Recompute};
use t3s_engine::{Batch, Grads, Save, checkpoint::load_decoder, layers::head::HeadRow};
use t3s_model_adapters::Llada;

/// Absolute. Logits are of the order of 10.
const LOGITS: f32 = 5e-4;
/// Absolute, nats.
const LOGP: f32 = 5e-5;
/// Relative.
const LOSS: f64 = 1e-5;
/// Relative, Frobenius, of each tensor.
const GRADIENT: f64 = 2e-4;

fn worst(found: &[f32], wanted: &[f32], what: &str) -> f32 {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let errors = found.iter().zip(wanted).map(|(f, w)| (f - w).abs());
    let worst = errors.fold(0.0, f32::max);
    println!("{what}: worst absolute error {worst:e}");
    worst
}

#[test]
fn everything_matches_the_transcription() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llada-tiny");
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = HfConfig(serde_json::from_str(&text).unwrap());
    let spec = Llada.decoder(&config).unwrap();
    let decoder = load_decoder(&folder, &spec, &Device::Cpu, DType::F32).unwrap();
    let golden =
        candle_core::safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let ids: Vec<i64> = golden[name].flatten_all().unwrap().to_vec1().unwrap();
        ids.into_iter().map(|id| id as u32).collect()
    };
    let (clean, noisy) = (ids("clean_ids"), ids("noisy_ids"));
    let n = golden["clean_ids"].dims()[1];

    // Both examples packed into one sequence.
    let batch = Batch {
        positions: Arc::new((0..noisy.len()).map(|row| (row % n) as u32).collect()),
        offsets: Arc::new((0..=noisy.len() as u32).step_by(n).collect()),
        attention: AttentionPattern::Bidirectional,
    };
    let (hidden, tape) = decoder
        .forward(&noisy, &batch, Recompute::None, Save::ForBackward)
        .unwrap();
    let logits = values(&decoder.logits(&hidden).unwrap());
    assert!(worst(&logits, &values(&golden["logits"]), "logits") <= LOGITS);
    let rows: Vec<HeadRow> = values(&golden["coefficients"])
        .into_iter()
        .enumerate()
        .map(|(row, coefficient)| HeadRow {
            row: row as u32,
            target: clean[row],
            coefficient,
        })
        .collect();
    let mut grads = Grads::new(&decoder.params);
    let (output, d_hidden) = decoder
        .head_forward_backward(&hidden, &rows, None, &mut grads)
        .unwrap();
    decoder
        .backward(d_hidden, tape, &batch, &mut grads)
        .unwrap();
    assert!(worst(&output.logp, &values(&golden["target_logp"]), "target logp") <= LOGP);
    let wanted = f64::from(values(&golden["loss"])[0]);
    let error = (output.loss_sum - wanted).abs() / wanted;
    println!("loss: relative error {error:e}");
    assert!(error <= LOSS);
    let mut largest = 0.0f64;
    for (id, param) in decoder.params.iter() {
        let wanted = values(&golden[&format!("grad.{}", param.name)]);
        let error = relative_error(&values(grads.get(id).unwrap()), &wanted);
        largest = largest.max(error);
        assert!(error <= GRADIENT, "{}: {error:e}", param.name);
    }
    println!("gradients: worst relative error {largest:e}");
}
