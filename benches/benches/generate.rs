//! Tokens per second of generation, as one JSON line.
//!
//!     cargo bench -p t3s-benches --bench generate -- [--model student|trained] [--prompts N]
//!         [--samples N] [--prompt-tokens N] [--new-tokens N] [--batch N] [--greedy]

use std::{ops::ControlFlow, time::Instant};

use serde_json::json;
use t3s_benches::{argument, machine, model::Shape, number};
use t3s_core::{DecodeRule, plan::sections::GeneratePlan};
use t3s_engine::{Decoder, allocator, generate};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    allocator::keep_pages();
    let model = argument("model").unwrap_or_else(|| "student".to_owned());
    let shape = match model.as_str() {
        "student" => Shape::STUDENT,
        "trained" => Shape::TRAINED,
        other => return Err(format!("--model {other}: write student or trained").into()),
    };
    let decoder = Decoder::new(shape.spec(), shape.params(1)?, None)?;
    let (n_prompts, samples) = (number("prompts", 200), number("samples", 4));
    let prompt_tokens = number("prompt-tokens", 80);
    let greedy = std::env::args().any(|argument| argument == "--greedy");
    let plan = GeneratePlan {
        max_new_tokens: number("new-tokens", 120),
        temperature: if greedy { 0.0 } else { 1.0 },
        batch: number("batch", 64),
        ..GeneratePlan::default()
    };
    // Lengths from half to one and a half times the mean.
    let length = |p: usize| prompt_tokens / 2 + p * 37 % prompt_tokens.max(1);
    let prompts: Vec<Vec<u32>> = (0..n_prompts)
        .map(|p| shape.text(p as u64, length(p).max(1)))
        .collect();
    let machine = machine::describe();
    let run = |prompts: &[Vec<u32>]| {
        let go_on = &mut |_| ControlFlow::Continue(());
        generate(
            &decoder,
            &DecodeRule::LeftToRight,
            prompts,
            samples,
            &plan,
            1,
            go_on,
        )
    };
    run(&prompts[..n_prompts.min(8)])?;
    let (before, start) = (machine::Usage::now(), Instant::now());
    let answers = run(&prompts)?;
    let seconds = start.elapsed().as_secs_f64();
    let used = machine::Usage::now().since(before);
    let written: usize = answers.iter().map(|answer| answer.ids.len()).sum();
    let read: usize = prompts.iter().map(Vec::len).sum();
    let report = json!({
        "what": "generate",
        "model": model,
        "parameters": decoder.params.n_elements(false),
        "prompts": n_prompts,
        "samples": samples,
        "prompt_tokens": read,
        "new_tokens": written,
        "batch": plan.batch,
        "temperature": plan.temperature,
        "seconds": seconds,
        "new_tokens_per_second": written as f64 / seconds,
        "cpu_seconds": used.user_seconds + used.system_seconds,
        "peak_rss_mib": machine::peak_rss_mib(),
        "machine": machine,
    });
    println!("{report}");
    Ok(())
}
