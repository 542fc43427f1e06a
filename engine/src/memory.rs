//! How much memory there is, and how much was used.

use std::fs;

use candle_core::Device;

/// Most bytes held at once so far: resident memory of the process on the CPU. `None` where the system
/// does not say, and on devices whose allocator nobody asks yet.
pub fn peak_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => kibibytes("/proc/self/status", "VmHWM").map(|kib| kib << 10),
        _ => None,
    }
}

/// Bytes that could be allocated now, without anything being taken from other processes. `None` where
/// that is not known.
pub fn available_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => kibibytes("/proc/meminfo", "MemAvailable").map(|kib| kib << 10),
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
