//! Time of one training step (forward, backward, clipping, AdamW) in f32, as one JSON line.
//!
//!     cargo bench -p t3s-benches --bench train_step -- [--steps N] [--warmup N] [--threads N]
//!         [--examples N] [--tokens N] [--micro-batch-tokens N]
//!
//! The peer is `benches/peers/torch_train.py`; `benches/train_step.sh` runs the two in turns.

use std::sync::Arc;

use serde_json::json;
use t3s_benches::{argument, machine, model::Shape, number};
use t3s_core::{
    Example,
    objective::NextToken,
    plan::{Schedule, TrainPlan},
};
use t3s_engine::{Decoder, Trainer, allocator};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    allocator::keep_pages();
    if argument("threads").is_some() {
        rayon::ThreadPoolBuilder::new()
            .num_threads(number("threads", 0))
            .build_global()?;
    }
    let (steps, warmup) = (number("steps", 10), number("warmup", 3));
    let (examples, tokens) = (number("examples", 8), number("tokens", 512));
    let shape = Shape::TRAINED;
    let decoder = Decoder::new(shape.spec(), shape.params(1)?, None)?;
    let parameters = decoder.params.n_elements(false);
    // As many examples as all steps read, so that none comes twice.
    let data: Vec<Example> = (0..(warmup + steps) * examples)
        .map(|id| Example {
            id: id as u64,
            ids: shape.text(id as u64, tokens),
            trainable: vec![true; tokens],
            weights: vec![1.0; tokens],
            prompt_len: 0,
            noisy_ids: None,
            answer: None,
        })
        .collect();
    let plan = TrainPlan {
        batch_examples: examples,
        micro_batch_tokens: number("micro-batch-tokens", examples * tokens),
        schedule: Schedule::Constant,
        ..TrainPlan::new((warmup + steps) as u64, 1e-4)
    };
    let machine = machine::describe();
    let mut trainer = Trainer::new(decoder, Box::new(NextToken), Arc::new(data), plan, 1)?;
    let mut losses = Vec::with_capacity(warmup + steps);
    let mut seconds = Vec::with_capacity(steps);
    let mut before = machine::Usage::now();
    for step in 0..warmup + steps {
        if step == warmup {
            before = machine::Usage::now();
        }
        let report = trainer.step()?;
        losses.push(report.loss);
        if step >= warmup {
            seconds.push(report.seconds);
        }
    }
    let used = machine::Usage::now().since(before);
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let tokens_per_step = examples * tokens;
    let report = json!({
        "what": "train-step",
        "who": "t3s",
        "threads": rayon::current_num_threads(),
        "tokens_per_step": tokens_per_step,
        "parameters": parameters,
        "steps": steps,
        "seconds_median": median,
        "seconds_min": seconds[0],
        "seconds_max": seconds[seconds.len() - 1],
        "tokens_per_second": tokens_per_step as f64 / median,
        "peak_rss_mib": machine::peak_rss_mib(),
        "first_loss": losses[0],
        "last_loss": losses[losses.len() - 1],
        "cpu_seconds_per_step": (used.user_seconds + used.system_seconds) / steps as f64,
        "system_seconds_per_step": used.system_seconds / steps as f64,
        "minor_faults_per_step": used.minor_faults / steps as f64,
        "machine": machine,
    });
    println!("{report}");
    Ok(())
}
