//! What sketches cost: the head's pass over rows with them over the same pass without, as one JSON
//! line. The goal is a ratio under 1.3.
//!
//!     cargo bench -p t3s-benches --bench sketch -- [--rows N] [--vocab N] [--width N] [--sketch N]
//!         [--rounds N] [--threads N]

use std::time::Instant;

use candle_core::{Device, Tensor};
use serde_json::json;
use t3s_benches::{argument, machine, model::Shape, number};
use t3s_core::CounterRng;
use t3s_engine::{
    Decoder, allocator,
    head::{HeadRow, SketchSpec},
};

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
    let shape = Shape {
        vocab: number("vocab", 32_768),
        width: number("width", 1024),
        n_layers: 0,
        ..Shape::TRAINED
    };
    let decoder = Decoder::new(shape.spec(), shape.params(1)?, None)?;
    let rng = CounterRng::new(2, "bench-hidden");
    let values: Vec<f32> = (0..(rows * shape.width) as u64)
        .map(|i| (2.0 * rng.uniform(0, i) - 1.0) as f32)
        .collect();
    let hidden = Tensor::from_vec(values, (rows, shape.width), &Device::Cpu)?;
    let targets = shape.text(3, rows);
    let asked: Vec<HeadRow> = targets
        .iter()
        .enumerate()
        .map(|(row, target)| HeadRow {
            row: row as u32,
            target: *target,
            coefficient: 0.0,
        })
        .collect();
    let spec = SketchSpec {
        width: sketch,
        seed: 4,
    };
    let time = |sketch: Option<SketchSpec>| -> Result<f64, Box<dyn std::error::Error>> {
        let started = Instant::now();
        std::hint::black_box(decoder.head_forward(&hidden, &asked, sketch)?);
        Ok(started.elapsed().as_secs_f64())
    };
    let machine = machine::describe();
    for sketch in [None, Some(spec)] {
        time(sketch)?;
    }
    // In turns, so that a slow spell of the machine meets both.
    let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (a, b) = (time(None)?, time(Some(spec))?);
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
        "vocab": shape.vocab,
        "width": shape.width,
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
