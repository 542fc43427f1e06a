//! How much memory there is, and how much was used.

use std::fs;

use candle_core::Device;

/// Most bytes held at once so far. `None` where the system does not say.
///
/// On the CPU it is the resident memory of the process since its start. On a GPU it is what tensors
/// have held in the driver's memory pool since [`reset_peak`]. They are all that is allocated there
/// but for the workspace of cuBLAS, the code of kernels and the driver's context, which are outside of
/// the pool and not counted.
pub fn peak_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => kibibytes("/proc/self/status", "VmHWM").map(|kib| kib << 10),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::device::Pool::of(device).ok()?.peak_bytes().ok(),
        _ => None,
    }
}

/// From here on [`peak_bytes`] of a GPU counts anew, from what is held now. The CPU's goes on: the
/// system keeps one figure for the whole process.
pub fn reset_peak(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        let reset = crate::device::Pool::of(device).and_then(|pool| pool.reset_peak());
        if let Err(error) = reset {
            tracing::warn!("the peak of the GPU's memory counts from its start: {error}");
        }
    }
    #[cfg(not(feature = "cuda"))]
    let _ = device;
}

/// Bytes that could be allocated now, without anything being taken from other processes. `None` where
/// that is not known. On a GPU they are what the driver has free and what its pool holds unused.
pub fn available_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => kibibytes("/proc/meminfo", "MemAvailable").map(|kib| kib << 10),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let context = device.cuda_stream().context().clone();
            let (free, _) = context.mem_get_info().ok()?;
            let unused = crate::device::Pool::of(device).ok()?.unused_bytes().ok()?;
            Some(free as u64 + unused)
        }
        _ => None,
    }
}

/// The number of a line `key:  1234 kB`.
fn kibibytes(path: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn linux_says_both() {
        let ones = vec![1u8; 32 << 20];
        let peak = peak_bytes(&Device::Cpu).unwrap();
        assert!(peak > ones.len() as u64, "{peak}");
        assert!(available_bytes(&Device::Cpu).unwrap() > 1 << 20);
    }
}
