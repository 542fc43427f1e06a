//! What sketches cost: the head's pass over rows with them over the same pass without, as one JSON
//! line. The goal is a ratio under 1.3.
//!
//!     cargo bench -p t3s-benches --bench sketch -- [--rows N] [--vocab N] [--width N] [--sketch N]
//!         [--rounds N] [--threads N]

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use t3s_benches::{argument, decoder_spec, number, text};
use t3s_core::CounterRng;
use t3s_engine::{
    Decoder, allocator,
    head::{HeadRow, SketchSpec},
    init_params,
};
use t3s_pipeline::bench::machine::Machine;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    allocator::keep_pages();
    if argument("threads").is_some() {
        rayon::ThreadPoolBuilder::new()
            .num_threads(number("threads", 0))
            .build_global()?;
    }
    let (rows, rounds, sketch) = (
        number("rows", 2048),
        number("rounds", 7),
        number("sketch", 64),
    );
    let (vocab, width) = (number("vocab", 32_768), number("width", 1024));
    // Only its head is used: one block, as small as can be.
    let spec = decoder_spec(
        "qwen3",
        json!({
            "model_type": "qwen3",
            "vocab_size": vocab,
            "hidden_size": width,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "tie_word_embeddings": true,
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 4096,
        }),
    )?;
    let params = init_params(&spec, 1, &Device::Cpu, DType::F32)?;
    let decoder = Decoder::new(spec, params, None)?;
    let rng = CounterRng::new(2, "bench-hidden");
    let values: Vec<f32> = (0..(rows * width) as u64)
        .map(|i| (2.0 * rng.uniform(0, i) - 1.0) as f32)
        .collect();
    let hidden = Tensor::from_vec(values, (rows, width), &Device::Cpu)?;
    let targets = text(3, vocab, rows);
    let asked: Vec<HeadRow> = targets
        .iter()
        .enumerate()
        .map(|(row, target)| HeadRow {
            row: row as u32,
            target: *target,
            coefficient: 0.0,
        })
        .collect();
    let sketches = SketchSpec {
        width: sketch,
        seed: 4,
    };
    let time = |sketch: Option<SketchSpec>| -> Result<f64, Box<dyn std::error::Error>> {
        let started = Instant::now();
        std::hint::black_box(decoder.head_forward(&hidden, &asked, sketch)?);
        Ok(started.elapsed().as_secs_f64())
    };
    let machine = Machine::now(None);
    for sketch in [None, Some(sketches)] {
        time(sketch)?;
    }
    // In turns, so that a slow spell of the machine meets both.
    let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (a, b) = (time(None)?, time(Some(sketches))?);
        without.push(a);
        with.push(b);
        ratios.push(b / a);
    }
    let sorted = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        json!({
            "median": values[values.len() / 2],
            "min": values[0],
            "max": values[values.len() - 1],
        })
    };
    let report = json!({
        "what": "head-pass",
        "threads": rayon::current_num_threads(),
        "rows": rows,
        "vocab": vocab,
        "width": width,
        "sketch_width": sketch,
        "rounds": rounds,
        "seconds_without": sorted(&mut without),
        "seconds_with": sorted(&mut with),
        "ratio": sorted(&mut ratios),
        "machine": machine,
    });
    println!("{report}");
    Ok(())
}
