//! Ctrl-C: once to finish the step, save and stop; twice to stop dead.

use t3s_pipeline::Interrupt;

use crate::failure::Failure;

/// A flag that Ctrl-C (or a termination signal) raises.
///
/// # Errors
/// When the signal handler cannot be set.
pub fn on_ctrl_c() -> Result<Interrupt, Failure> {
    let interrupt = Interrupt::default();
    let flag = interrupt.clone();
    ctrlc::set_handler(move || {
        if flag.is_raised() {
            std::process::exit(130);
        }
        flag.raise();
        eprintln!("\nstopping after this step; once more stops at once and loses it");
    })
    .map_err(Failure::failed)?;
    Ok(interrupt)
}
