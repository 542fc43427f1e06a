//! `t3s bench`: what the work costs here, on random weights.

use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use t3s_core::registry::Registry;
use t3s_pipeline::{
    bench::{Part, Report, Spread, bench},
    estimate::count,
};

use crate::{
    args::BenchArgs,
    display::{Display, bytes},
    failure::Failure,
};

/// Measures, and prints one object.
pub fn run(args: &BenchArgs, display: &Display) -> Result<(), Failure> {
    let plan = args.plan().map_err(Failure::usage)?;
    let report = bench(&plan, &Registry::linked()?)?;
    display.result(&report, || print(&report));
    Ok(())
}

fn print(report: &Report) {
    let machine = &report.machine;
    let method = match (report.method, report.rank) {
        (Some(method), Some(rank)) => format!(", {method} of rank {rank}"),
        (Some(method), None) => format!(", {method}"),
        _ => String::new(),
    };
    println!(
        "{} {}{method}: {} weights, {} of them learn, {}",
        report.what,
        report.config,
        count(report.parameters as f64),
        count(report.trainable as f64),
        report.dtype,
    );
    println!(
        "{} x {} tokens, {:.0} % kept, {} repetitions after {}",
        report.batch,
        report.seq,
        100.0 * report.kept,
        report.steps,
        report.warmup
    );
    println!(
        "{}, {} threads of {} cores; load {}",
        machine.device,
        machine.threads,
        machine.cores,
        machine.load_before.as_deref().unwrap_or("unknown")
    );
    println!("{}", table(report));
    for part in report.parts.iter().filter(|part| !part.kernels.is_empty()) {
        println!("{}", kernels(part));
    }
    let gemm = &report.gemm;
    println!(
        "best product: {:.1} GFLOP/s, {} x {1} x {1}",
        gemm.flops_per_second / 1e9,
        gemm.size
    );
    let said = |n: Option<u64>| n.map_or("unknown".to_owned(), bytes);
    println!(
        "peak memory ({}): {}, predicted {}",
        report.memory.kind,
        said(report.memory.peak_bytes),
        said(report.memory.predicted_bytes)
    );
    if let Some([first, last]) = report.loss {
        println!("loss: {first:.4} at first, {last:.4} at last");
    }
}

/// Where the time of a part goes.
fn kernels(part: &Part) -> Table {
    let all: f64 = part.kernels.iter().map(|kernel| kernel.seconds).sum();
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header([part.name.as_str(), "launches", "ms", "share"]);
    for kernel in &part.kernels {
        table.add_row([
            kernel.name.clone(),
            kernel.launches.to_string(),
            format!("{:.3}", 1e3 * kernel.seconds),
            format!("{:.1} %", 100.0 * kernel.seconds / all),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["", "rows", "seconds", "tokens/s", "GFLOP/s", "of the best"]);
    for part in &report.parts {
        let seconds = Spread::of(part.seconds.iter().copied());
        let rate = part.tokens_per_second;
        table.add_row([
            part.name.clone(),
            part.rows.to_string(),
            format!(
                "{:.4} ({:.4} to {:.4})",
                seconds.median, seconds.min, seconds.max
            ),
            format!("{:.0} ({:.0} to {:.0})", rate.median, rate.min, rate.max),
            format!("{:.1}", part.flops_per_second / 1e9),
            format!("{:.0} %", 100.0 * part.share_of_gemm),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
