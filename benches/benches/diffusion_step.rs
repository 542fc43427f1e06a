//! The memory of a block-diffusion training step over the length of its one example: linear at a
//! fixed block size, since no row holds more than its keys, whatever it sees.
//!
//! `cargo bench -p t3s-benches --bench diffusion_step` runs itself once for each length, for the peak
//! of a process is never less than before.

use std::{env, error::Error, process::Command, sync::Arc};

use candle_core::{DType, Device};
use serde_json::{Value, json};
use t3s_benches::{argument, decoder_spec, number, text};
use t3s_core::{
    Example,
    objective::{BlockDiffusion, Corruption, LossWeight, RatioRange},
    plan::{Schedule, TrainPlan},
};
use t3s_engine::{Decoder, Trainer, allocator, init_params, memory};
use t3s_pipeline::bench::machine::Machine;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Lengths of the example, tokens.
const LENGTHS: [usize; 5] = [1024, 2048, 4096, 8192, 16_384];
/// Tokens per block.
const BLOCK: u32 = 32;
/// The geometry: a mixture of experts.
const CONFIG: &str = include_str!("../../examples/llada-quickstart/config.json");
const MIB: f64 = (1u64 << 20) as f64;

fn main() -> Result<(), Box<dyn Error>> {
    if argument("tokens").is_some() {
        println!("{}", step(number("tokens", 256))?);
        return Ok(());
    }
    let mut before: Option<Value> = None;
    for tokens in LENGTHS {
        let output = Command::new(env::current_exe()?)
            .args(["--tokens", &tokens.to_string()])
            .output()?;
        let said = String::from_utf8(output.stdout)?;
        let mut report: Value = serde_json::from_str(said.trim())?;
        if let Some(before) = &before {
            let mib = |report: &Value| report["activations_mib"].as_f64().unwrap_or(f64::NAN);
            let n = |report: &Value| report["tokens"].as_f64().unwrap_or(f64::NAN);
            let more = (mib(&report) - mib(before)) / (n(&report) - n(before));
            report["kib_per_further_token"] = json!(1024.0 * more);
        }
        println!("{report}");
        before = Some(report);
    }
    Ok(())
}

/// Two steps on one example of `tokens` tokens; the peak above what stood before the first.
fn step(tokens: usize) -> Result<Value, Box<dyn Error>> {
    allocator::keep_pages();
    let spec = decoder_spec("llada2", serde_json::from_str(CONFIG)?)?;
    let mask_id = spec.vocab as u32 - 1;
    let ids = text(1, spec.vocab - 1, tokens);
    let params = init_params(&spec, 1, &Device::Cpu, DType::F32)?;
    let decoder = Decoder::new(spec, params, None)?;
    let example = Example {
        id: 0,
        trainable: vec![true; tokens],
        weights: vec![0.0; tokens],
        prompt_len: 0,
        noisy_ids: None,
        answer: None,
        ids,
    };
    let objective = BlockDiffusion {
        corruption: Corruption {
            mask_id,
            ratio: RatioRange {
                low: 0.3,
                high: 0.8,
            },
            loss_weight: LossWeight::One,
        },
        block: BLOCK,
        complementary: false,
        pad_to_block: false,
    };
    let plan = TrainPlan {
        batch_examples: 1,
        schedule: Schedule::Constant,
        ..TrainPlan::new(2, 1e-4)
    };
    let mut trainer = Trainer::new(
        decoder,
        Box::new(objective),
        Arc::new(vec![example]),
        plan,
        1,
    )?;
    let standing = peak_mib();
    let seconds = trainer.step()?.seconds.min(trainer.step()?.seconds);
    let peak = peak_mib();
    Ok(json!({
        "what": "diffusion-step",
        "tokens": tokens,
        "rows": 2 * tokens,
        "block": BLOCK,
        "seconds": seconds,
        "peak_rss_mib": peak,
        "activations_mib": peak - standing,
        "machine": Machine::now(None),
    }))
}

/// Peak resident memory of this process so far.
fn peak_mib() -> f64 {
    memory::peak_bytes(&Device::Cpu).map_or(f64::NAN, |bytes| bytes as f64 / MIB)
}
