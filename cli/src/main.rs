//! `t3s`: which tokens of a teacher's trace should a student learn from.

mod args;
mod commands;
mod display;
mod failure;
mod interrupt;

use std::process::ExitCode;

use clap::Parser;

use args::Args;
use failure::Failure;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    t3s_engine::allocator::keep_pages();
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("T3S_LOG"))
        .with_writer(std::io::stderr)
        .init();
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            failure.exit_code()
        }
    }
}

fn start(args: Args) -> Result<(), Failure> {
    if args.threads > 0 {
        rayon::ThreadPoolBuilder::new()
            .num_threads(args.threads)
            .build_global()
            .map_err(Failure::failed)?;
    }
    commands::run(args)
}
