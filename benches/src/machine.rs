//! Where a figure was taken, and what the process used.

use std::{fs, process::Command};

use serde_json::{Value, json};

/// Device, cores, commit, command and date: what a published figure carries.
pub fn describe() -> Value {
    let cpu = read("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
    json!({
        "device": cpu,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "threads": rayon::current_num_threads(),
        "commit": run("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
        "date": run("date", &["-u", "+%Y-%m-%dT%H:%MZ"]),
        "load_before": fs::read_to_string("/proc/loadavg").ok().map(|l| l.trim().to_owned()),
    })
}

/// Largest resident memory of this process so far, MiB; 0 where the system does not say.
pub fn peak_rss_mib() -> f64 {
    let kib = read("/proc/self/status", "VmHWM")
        .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// CPU time of all threads and page faults of this process so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// In user mode, seconds.
    pub user_seconds: f64,
    /// In the kernel, seconds.
    pub system_seconds: f64,
    /// Page faults that needed no disk.
    pub minor_faults: f64,
}

impl Usage {
    /// Reads the counters; zeros where the system has none.
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The second field is the program's name in parentheses and may contain spaces.
        let fields: Vec<f64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
        // proc(5): minflt is field 10, utime 14, stime 15; 100 ticks a second on Linux.
        Self {
            user_seconds: field(14) / 100.0,
            system_seconds: field(15) / 100.0,
            minor_faults: field(10),
        }
    }

    /// What was used since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            user_seconds: self.user_seconds - before.user_seconds,
            system_seconds: self.system_seconds - before.system_seconds,
            minor_faults: self.minor_faults - before.minor_faults,
        }
    }
}

fn read(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
