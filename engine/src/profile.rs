//! Where the device's time goes: seconds by kernel, between two events around each launch.
//!
//! Nothing is recorded until [`start`]; then every kernel and matrix product of this process on the GPU
//! is. An event is two commands more for the device, so a profiled step is slower than others; what the
//! driver does by itself (copies, zeros, waiting for the host) is in no kernel.

use candle_core::{Device, Result};
use serde::Serialize;

/// All launches of one kernel, or all products of one shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelTime {
    /// The kernel's name; of a product, what for and `rows x depth x columns`.
    pub name: String,
    /// How often it was launched.
    pub launches: u64,
    /// Of all launches together.
    pub seconds: f64,
}

/// Begins to record. Nothing happens on a CPU.
pub fn start(device: &Device) {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        recording::start();
    }
    #[cfg(not(feature = "cuda"))]
    let _ = device;
}

/// Ends it: what was recorded, by falling time. Waits for the device.
///
/// # Errors
/// When the device fails.
pub fn stop(device: &Device) -> Result<Vec<KernelTime>> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return recording::stop();
    }
    let _ = device;
    Ok(Vec::new())
}

#[cfg(feature = "cuda")]
pub(crate) use recording::around;

#[cfg(feature = "cuda")]
mod recording {
    use std::{
        collections::BTreeMap,
        sync::{
            Mutex, PoisonError,
            atomic::{AtomicBool, Ordering},
        },
    };

    use candle_core::{
        CudaDevice, Result,
        cuda_backend::{
            WrapErr,
            cudarc::driver::{CudaEvent, sys::CUevent_flags},
        },
    };

    use super::KernelTime;

    struct Span {
        name: String,
        begins: CudaEvent,
        ends: CudaEvent,
    }

    static ON: AtomicBool = AtomicBool::new(false);
    static SPANS: Mutex<Vec<Span>> = Mutex::new(Vec::new());

    pub(super) fn start() {
        spans().clear();
        ON.store(true, Ordering::Relaxed);
    }

    fn spans() -> std::sync::MutexGuard<'static, Vec<Span>> {
        SPANS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `launch`, between two events while something is recorded.
    pub(crate) fn around<T>(
        device: &CudaDevice,
        name: impl FnOnce() -> String,
        launch: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if !ON.load(Ordering::Relaxed) {
            return launch();
        }
        let stream = device.cuda_stream();
        let event = || {
            let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
            stream.record_event(flags).w()
        };
        let begins = event()?;
        let done = launch()?;
        let ends = event()?;
        let name = name();
        spans().push(Span { name, begins, ends });
        Ok(done)
    }

    pub(super) fn stop() -> Result<Vec<KernelTime>> {
        ON.store(false, Ordering::Relaxed);
        let mut by_name: BTreeMap<String, (u64, f64)> = BTreeMap::new();
        for span in spans().drain(..) {
            let seconds = f64::from(span.begins.elapsed_ms(&span.ends).w()?) / 1e3;
            let of = by_name.entry(span.name).or_default();
            of.0 += 1;
            of.1 += seconds;
        }
        let mut all: Vec<KernelTime> = by_name
            .into_iter()
            .map(|(name, (launches, seconds))| KernelTime {
                name,
                launches,
                seconds,
            })
            .collect();
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(all)
    }
}
