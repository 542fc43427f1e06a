//! Decoders, steps and trainers that several of the modules need.

use std::{fs, path::Path, sync::Arc};

use serde_json::json;
use t3s_core::{
    Example,
    objective::NextToken,
    plan::{LoraPlan, Normaliser, Recompute, TrainPlan},
};
use t3s_engine::{
    Accumulation, BatchLoss, Decoder, Grads, Params, Part, Trainer, layers::lora,
    loss_and_gradients,
};

use crate::model::{Shape, values};

pub const NORMALISERS: [Normaliser; 4] = [
    Normaliser::SumWeights,
    Normaliser::KeptTokens,
    Normaliser::AllResponseTokens,
    Normaliser::PerSequence,
];

pub fn lora_plan() -> LoraPlan {
    LoraPlan {
        rank: 3,
        alpha: 6.0,
        targets: vec!["q_proj".into(), "down_proj".into()],
    }
}

/// A tiny decoder with random weights, adapted (with a fresh `B = 0`) where a plan is given.
pub fn decoder(seed: u64, lora: Option<&LoraPlan>) -> Decoder {
    let spec = Shape::TINY.spec();
    let mut params = Shape::TINY.params(seed);
    if let Some(plan) = lora {
        lora::attach(&spec, &mut params, plan, seed).unwrap();
    }
    Decoder::new(spec, params, lora).unwrap()
}

/// One pass over everything.
pub fn one_pass(normaliser: Normaliser) -> Accumulation {
    Accumulation {
        dropped_loss: false,
        normaliser,
        micro_batch_tokens: 1 << 20,
        packing: true,
        recompute: Recompute::None,
        seed: 0,
    }
}

/// Loss and gradients of one step, the gradients by parameter; `None` without a slot.
pub fn gradients(
    decoder: &Decoder,
    examples: &[Example],
    how: &Accumulation,
) -> (BatchLoss, Vec<Option<Vec<f32>>>) {
    let part = Part {
        examples: examples.iter().collect(),
        draw: 0,
    };
    let mut grads = Grads::new(&decoder.params);
    let loss = loss_and_gradients(decoder, &NextToken, &[part], how, &mut grads).unwrap();
    let slots = decoder.params.iter();
    (
        loss,
        slots.map(|(id, _)| grads.get(id).map(values)).collect(),
    )
}

/// All slots in one row.
pub fn flat(slots: &[Option<Vec<f32>>]) -> Vec<f32> {
    slots.iter().flatten().flatten().copied().collect()
}

/// A copy of every weight, with its name.
pub fn weights(params: &Params) -> Vec<(String, Vec<f32>)> {
    params
        .iter()
        .map(|(_, param)| (param.name.clone(), values(&param.tensor)))
        .collect()
}

/// A trainer of a decoder of the seed 1.
pub fn trainer(plan: &TrainPlan, examples: Vec<Example>, seed: u64) -> Trainer {
    let decoder = decoder(1, plan.lora.as_ref());
    Trainer::new(
        decoder,
        Box::new(NextToken),
        Arc::new(examples),
        plan.clone(),
        seed,
    )
    .unwrap()
}

/// The `config.json` of [`Shape::TINY`] as transformers writes it, in the folder.
pub fn write_config(folder: &Path, tied: bool) {
    let spec = Shape::TINY.spec();
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "intermediate_size": Shape::TINY.hidden,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_positions,
        "initializer_range": spec.initializer_range,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "rope_parameters": { "rope_type": "default", "rope_theta": spec.rope.theta },
        "tie_word_embeddings": tied,
        "attention_bias": false,
        "use_sliding_window": false,
        "torch_dtype": "bfloat16",
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}
