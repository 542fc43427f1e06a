//! Where a figure was taken, and what the process used.

use std::{env, fs, path::Path, process::Command};

use serde::Serialize;

/// Device, cores, commit and date: what a published figure carries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// What computes.
    pub device: String,
    /// Cores of the machine that this process may use.
    pub cores: usize,
    /// Threads that compute.
    pub threads: usize,
    /// Of the file `commit` beside the program, which tools/gpu-pack.sh writes; else the state of the
    /// checkout that the program lies in, if it lies in one.
    pub commit: Option<String>,
    /// UTC.
    pub date: Option<String>,
    /// The system's load averages before the work.
    pub load_before: Option<String>,
}

impl Machine {
    /// The machine as it is now; `device` where it is not the CPU that computes.
    pub fn now(device: Option<String>) -> Self {
        let cpu =
            || read("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".to_owned());
        Self {
            device: device.unwrap_or_else(cpu),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            threads: rayon::current_num_threads(),
            commit: commit(),
            date: said("date", &["-u", "+%Y-%m-%dT%H:%MZ"], None),
            load_before: fs::read_to_string("/proc/loadavg")
                .ok()
                .map(|l| l.trim().to_owned()),
        }
    }
}

/// CPU time of all threads and page faults of this process so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
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

    /// What both used.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            user_seconds: self.user_seconds + other.user_seconds,
            system_seconds: self.system_seconds + other.system_seconds,
            minor_faults: self.minor_faults + other.minor_faults,
        }
    }

    /// What was used since `before`.
    #[must_use]
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

fn commit() -> Option<String> {
    let program = env::current_exe().ok()?;
    if let Ok(packed) = fs::read_to_string(program.with_file_name("commit")) {
        return Some(packed.trim().to_owned());
    }
    let arguments = ["describe", "--always", "--dirty", "--abbrev=12"];
    said("git", &arguments, program.parent())
}

fn said(program: &str, arguments: &[&str], folder: Option<&Path>) -> Option<String> {
    let mut command = Command::new(program);
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let output = command.args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
