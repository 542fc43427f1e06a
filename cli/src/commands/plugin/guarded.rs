//! Guarded memory, where the system has it.

#[cfg(target_os = "linux")]
mod system {
    use t3s_core::registry::Registration;

    pub use t3s_core::plugin::guard::{Fenced, Note, no_core_file};

    /// Both sides: a component is held to the laws once with each.
    pub const SIDES: &[Fenced] = &[Fenced::After, Fenced::Before];

    /// `entry` on guarded memory; `note` is told each question.
    pub fn watched(entry: &Registration, fenced: Fenced, note: Note) -> Registration {
        t3s_core::plugin::guard::guarded(entry, fenced, note)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use serde::{Deserialize, Serialize};
    use t3s_core::registry::Registration;

    /// No side.
    #[derive(Clone, Copy, Serialize, Deserialize)]
    pub struct Fenced;

    /// As it is.
    pub const SIDES: &[Fenced] = &[Fenced];

    /// Is told what a component is about to be asked.
    pub type Note = &'static (dyn Fn(&str) + Send + Sync);

    pub fn watched(entry: &Registration, _: Fenced, _: Note) -> Registration {
        *entry
    }

    pub fn no_core_file() {}
}

pub use system::*;
