//! `t3s init`: a random student.

use t3s_pipeline::student::init_student;

use crate::{args::InitArgs, failure::Failure};

/// Makes a student.
pub fn run(args: &InitArgs) -> Result<(), Failure> {
    let registry = super::registry(&args.plugins)?;
    let spec = init_student(
        &args.config,
        &args.tokenizer,
        args.seed,
        &args.out,
        &registry,
    )?;
    println!(
        "{} random parameters, vocabulary {}: {}",
        spec.n_parameters(),
        spec.vocab,
        args.out.display()
    );
    Ok(())
}
