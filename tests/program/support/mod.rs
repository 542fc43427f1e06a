//! The program, a tiny student, tiny plans, and a folder to put things in.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The `t3s` program.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_t3s"))
}

/// What the program said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let said = Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        assert!(!said.err.contains("panicked"), "{}", said.err);
        said
    }
}

impl Said {
    /// The same, when all went well.
    #[track_caller]
    pub fn good(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self
    }

    /// The error message, when it failed with `code`.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        let at = self.err.find("error: ").expect("an error is named");
        self.err[at..].to_owned()
    }

    /// Standard output as one JSON value per line.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        let lines = self.out.lines();
        lines
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }
}

/// A folder with a tiny student and data for it.
pub struct World {
    pub folder: TempDir,
}

impl World {
    /// Student in `student/`, `traces.jsonl`, `problems.jsonl` and `plan.toml`.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        copy(made_once(), folder.path());
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).expect(name);
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).expect(name)
    }

    /// The program, to be run in this folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(["--threads", "2"])
            .args(args)
            .current_dir(self.folder.path());
        command
    }

    /// Runs the program.
    pub fn t3s(&self, args: &[&str]) -> Said {
        self.command(args).output().expect("t3s starts").into()
    }

    /// Runs the plan with overrides.
    pub fn run(&self, overrides: &[&str]) -> Said {
        let mut args = vec!["--json", "run", "plan.toml"];
        for pair in overrides {
            args.extend(["--set", pair]);
        }
        self.t3s(&args)
    }
}

/// The names of the stages that a run did, of its events.
pub fn stages_done(events: &[Value]) -> Vec<String> {
    let finished = events.iter().filter(|e| e["event"] == "stage-finished");
    finished
        .map(|e| e["stage"].as_str().unwrap().to_owned())
        .collect()
}

/// Starts the program and waits for the `n`th optimiser step of `stage`.
pub fn started(command: &mut Command, stage: &str, n: usize) -> Child {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("t3s starts");
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    let mut steps = 0;
    while steps < n {
        line.clear();
        let read = reader.read_line(&mut line).expect("a line");
        assert!(read > 0, "the run ended early");
        let event: Value = serde_json::from_str(&line).expect("an event");
        steps += usize::from(event["event"] == "step" && event["stage"] == stage);
    }
    // Somebody has to go on reading, or the run would stop at a full pipe.
    std::thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
    child
}

/// Sends the signal `name`, e.g. `-INT`.
pub fn signal(child: &Child, name: &str) {
    let kill = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(kill.expect("there is a kill").success());
}

/// The config of a student of some ten thousand weights.
pub fn config() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu",
        "max_position_embeddings": 256, "initializer_range": 0.1, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": true, "rope_theta": 10000.0, "torch_dtype": "float32",
    })
}

const PLAN: &str = r#"
name = "tiny"
seed = 3
device = "cpu"
out = "runs/a"

[student]
path = "student"

[data]
train = "traces.jsonl"
max_tokens = 128

[grader]
extract = "hash"

[probe]
checkpoint_every = 2

[bottleneck]
by = "answer-token-logp"

[selection]
strategy = "t3s"

[train]
steps = 4
batch_examples = 6
micro_batch_tokens = 512
learning_rate = 3e-3

[eval]
data = "problems.jsonl"
samples = 1
generate = { temperature = 0.0, max_new_tokens = 8 }
"#;

fn made_once() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let t3s = |args: &[&str]| {
            let output = Command::new(program())
                .args(args)
                .current_dir(folder.path())
                .output();
            Said::from(output.expect("t3s starts")).good();
        };
        let task = ["task", "arithmetic", "--rows"];
        t3s(&[
            &task[..],
            &["16", "--style", "teacher", "--out", "traces.jsonl"],
        ]
        .concat());
        t3s(&[&task[..], &["4", "--held-out", "--out", "problems.jsonl"]].concat());
        t3s(&[
            "tokenizer",
            "traces.jsonl",
            "--vocab",
            "320",
            "--out",
            "tokenizer",
        ]);
        fs::write(folder.path().join("config.json"), config().to_string()).expect("config");
        t3s(&[
            "init",
            "--config",
            "config.json",
            "--tokenizer",
            "tokenizer",
            "--out",
            "student",
        ]);
        fs::write(folder.path().join("plan.toml"), PLAN).expect("plan");
        folder
    })
    .path()
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).expect("a copy");
        }
    }
}

/// The shared reference data, if it is there; says so when it is not.
pub fn shared(what: &str) -> Option<PathBuf> {
    let root = std::env::var_os("T3S_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let path = root.join(what);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: no {}; set T3S_SHARED", path.display());
    None
}
