//! `t3s ablate` through the program: what cells share, what a failed one does, and how it goes on.

#[expect(dead_code, reason = "used in part")]
mod support;

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::Value;
use support::{Said, World, stages_done};

const NAMED: &str = "bottleneck.step=2";
/// With and without sketches, recorded and online, with and without draws.
const STRATEGIES: &str = "t3s,inverse-t3s,all,random,static-confidence,gradient-sketch,dft,entropy";
const FOLDER: &str = "runs/a-ablation";

fn ablate(world: &World, args: &[&str]) -> Said {
    let all = [&["--json", "ablate", "plan.toml", "--set", NAMED], args].concat();
    world.t3s(&all)
}

/// The last line: the table.
fn table(said: &Said) -> Value {
    said.json().pop().expect("a table")
}

fn row<'t>(table: &'t Value, model: &str) -> &'t Value {
    let rows = table["rows"].as_array().unwrap();
    let found = rows.iter().find(|row| row["model"] == model);
    found.unwrap_or_else(|| panic!("no row {model}: {table:#}"))
}

/// How often the stages whose names begin with `name` were done.
fn count(events: &[Value], name: &str) -> usize {
    let done = stages_done(events);
    done.iter().filter(|stage| stage.starts_with(name)).count()
}

#[test]
fn eight_strategies_and_two_seeds_repeat_nothing_before_the_selection() {
    let world = World::new();
    let grid = format!("selection.strategy={STRATEGIES}");
    let said = ablate(&world, &["--grid", &grid, "--seeds", "2"]).good();
    let events = said.json();
    for (stage, times) in [
        ("corpus", 1),
        ("probe", 1),
        ("score-base", 1),
        ("sketch-base", 1),
        ("score-step-000002", 1),
        ("sketch-step", 0),
        ("evaluate-base", 1),
        ("evaluate-step-000002", 1),
        ("evaluate-step-000004", 1),
        ("select", 16),
        ("train", 16),
        ("evaluate-student", 16),
    ] {
        assert_eq!(count(&events, stage), times, "{stage}");
    }
    let table = table(&said);
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3 + 8, "shared models stand there once");
    assert_eq!(row(&table, "base")["seeds"].as_array().unwrap().len(), 1);
    assert_eq!(row(&table, "t3s")["seeds"], serde_json::json!([3, 4]));
    assert_eq!(row(&table, "all")["kept_share"], 1.0);
    // DFT chooses in every step; its weights are probabilities, never 0.
    assert!(row(&table, "dft")["kept_share"].as_f64() > Some(0.99));
    let overlap = &table["overlap"];
    let cells: Vec<&str> = overlap["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c.as_str().unwrap())
        .collect();
    assert!(!cells.contains(&"dft"));
    let at = |name: &str| cells.iter().position(|cell| *cell == name).unwrap();
    let jaccard = |a: &str, b: &str| overlap["jaccard"][at(a)][at(b)].as_f64().unwrap();
    assert_eq!(jaccard("t3s", "t3s"), 1.0);
    assert_eq!(jaccard("t3s", "inverse-t3s"), 0.0);
    let kept = row(&table, "t3s")["kept_share"].as_f64().unwrap();
    assert!((jaccard("t3s", "all") - kept).abs() < 1e-12);
    for name in ["table.json", "table.csv", "table.md", "overlap.csv"] {
        assert!(world.path(FOLDER).join(name).is_file(), "{name}");
    }
    let csv = world.read(&format!("{FOLDER}/table.csv"));
    assert_eq!(csv.lines().count(), 1 + 11, "{csv}");

    let page = world.read(&format!("{FOLDER}/report.html"));
    assert_eq!(page.matches("<tr").count(), 1 + 11 + 1 + 7, "both tables");
    let error = world.t3s(&["analyse", FOLDER]).failed(2);
    assert!(error.contains("folder of an ablation"), "{error}");
    // The page of any of them shows the others, here one that has every answer right.
    let stages = world.path(&format!("{FOLDER}/runs/dft-s4/stages"));
    let examined = fs::read_dir(&stages).unwrap().find_map(|stage| {
        let path = stage.unwrap().path();
        let name = path.file_name()?.to_string_lossy().into_owned();
        name.starts_with("evaluate-student")
            .then(|| path.join("answers.jsonl"))
    });
    let examined = examined.expect("answers");
    let answers = fs::read_to_string(&examined).unwrap();
    let right = answers.lines().map(|line| {
        let mut answer: Value = serde_json::from_str(line).unwrap();
        answer["verdict"] = "right".into();
        answer.to_string() + "\n"
    });
    fs::write(&examined, right.collect::<String>()).unwrap();
    world
        .t3s(&["report", &format!("{FOLDER}/runs/t3s-s3")])
        .good();
    fs::write(&examined, answers).unwrap();
    let page = world.read(&format!("{FOLDER}/runs/t3s-s3/report.html"));
    let beside = page.split_once("Runs beside this one").expect("a table").1;
    let beside = beside.split_once("</table>").expect("its end").0;
    assert_eq!(beside.matches("<tr").count(), 1 + 16, "{beside}");
    assert!(beside.contains("t3s-s3</bdi> (this run)"), "{beside}");
    assert_eq!(beside.matches("<td>+100.0</td>").count(), 1, "{beside}");

    // What is done is not done again, and further cells share it.
    let again = ablate(&world, &["--grid", &grid, "--seeds", "2"]).good();
    assert_eq!(stages_done(&again.json()), [""; 0]);
    assert_eq!(self::table(&again), table);
    let more = ablate(&world, &["--cell", "half:selection.share=0.5"]).good();
    assert_eq!(
        stages_done(&more.json()),
        ["select", "train", "evaluate-student"]
    );
}

#[test]
fn a_failed_cell_stops_no_other_and_stands_in_the_table() {
    let world = World::new();
    let cells = [
        "--cell",
        "nothing:selection.threshold=-1000.0",
        "--cell",
        "all:selection.strategy=all",
        "--baseline",
        "all",
    ];
    let said = ablate(&world, &cells);
    assert_eq!(said.code, Some(1), "{}", said.err);
    let found = table(&said);
    let failure = &row(&found, "nothing")["failures"][0]["message"];
    let message = failure.as_str().unwrap();
    assert!(message.contains("keeps none"), "{message}");
    assert!(row(&found, "all")["accuracy"].is_number());
    assert!(row(&found, "base")["difference"].is_number());
    assert!(
        world
            .read(&format!("{FOLDER}/table.md"))
            .contains("keeps none")
    );
    // Collected, it says the same.
    let collected = ablate(&world, &[&cells[..], &["--collect"]].concat()).good();
    assert_eq!(table(&collected), found);
    let message = ablate(&world, &["--grid", "train.steps=2", "--baseline", "x"]).failed(2);
    assert!(
        message.contains("base, bottleneck, sft, steps=2"),
        "{message}"
    );
    let message = ablate(&world, &["--grid", "train.stepps=2"]).failed(2);
    assert!(message.contains("train.steps"), "{message}");
}

#[test]
fn several_jobs_share_stages_and_come_to_the_same() {
    let world = World::new();
    let cells = [
        "--grid",
        "selection.strategy=t3s,random,all",
        "--seeds",
        "2",
    ];
    let said = ablate(&world, &[&cells[..], &["--jobs", "3"]].concat()).good();
    let events = said.json();
    for (stage, times) in [("corpus", 1), ("probe", 1), ("score-base", 1), ("train", 6)] {
        assert_eq!(count(&events, stage), times, "{stage}");
    }
    let alone = World::new();
    let one = ablate(&alone, &cells).good();
    let without_times = |mut table: Value| {
        for row in table["rows"].as_array_mut().unwrap() {
            row["train_seconds"] = Value::Null;
        }
        table
    };
    assert_eq!(without_times(table(&said)), without_times(table(&one)));
}

#[test]
fn each_seed_may_have_a_probe_of_its_own() {
    let world = World::new();
    let cells = [
        "--grid",
        "selection.strategy=t3s,all",
        "--seeds",
        "2",
        "--reseed-probe",
    ];
    let said = ablate(&world, &cells).good();
    let events = said.json();
    assert_eq!((count(&events, "corpus"), count(&events, "probe")), (1, 2));
    let table = table(&said);
    assert_eq!(row(&table, "base")["seeds"].as_array().unwrap().len(), 1);
    let sft = row(&table, "probe (plain SFT), step 4");
    assert_eq!(sft["seeds"].as_array().unwrap().len(), 2);
}

#[test]
fn sums_of_models_are_examined_beside_the_student() {
    let world = World::new();
    let rrt = "merge.rrt=base + final - bottleneck";
    let soup = "merge.soup=student + final - base";
    let cells = [
        "--set",
        rrt,
        "--set",
        soup,
        "--grid",
        "selection.strategy=t3s,all",
    ];
    let said = ablate(&world, &[&cells[..], &["--baseline", "rrt"]].concat()).good();
    let events = said.json();
    for (stage, times) in [
        ("merge-rrt", 1),
        ("evaluate-rrt", 1),
        ("merge-soup", 2),
        ("evaluate-soup", 2),
    ] {
        assert_eq!(count(&events, stage), times, "{stage}");
    }
    let table = table(&said);
    for model in ["rrt", "soup", "soup of all"] {
        assert!(row(&table, model)["accuracy"].is_number(), "{model}");
    }
    assert!(row(&table, "t3s")["difference"].is_number());
    // The same as on the command line.
    let stages = world.path(&format!("{FOLDER}/runs/t3s-s3/stages"));
    let stage = |name: &str| {
        let mut found = fs::read_dir(&stages).unwrap().map(|e| e.unwrap().path());
        found
            .find(|path| {
                path.file_name()
                    .unwrap()
                    .to_string_lossy()
                    .starts_with(name)
            })
            .unwrap_or_else(|| panic!("no stage {name}"))
    };
    let checkpoint = |step: u64| stage("probe-").join(format!("checkpoints/step-{step:06}"));
    let (last, valley) = (checkpoint(4), checkpoint(2));
    let words = [
        "student",
        "+",
        last.to_str().unwrap(),
        "-",
        valley.to_str().unwrap(),
    ];
    world
        .t3s(&[&["merge"], &words[..], &["--out", "rrt"]].concat())
        .good();
    let weights = |folder: &std::path::Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&world.path("rrt")) == weights(&stage("merge-rrt-").join("model")));

    let lora = "train.lora={rank=2, targets=[\"q_proj\", \"down_proj\"]}";
    let args = [
        "--set",
        rrt,
        "--set",
        lora,
        "--cell",
        "t3s",
        "--out",
        "runs/lora",
    ];
    let low_rank = self::table(&ablate(&world, &args).good());
    assert!(row(&low_rank, "rrt")["accuracy"].is_number());
    let message = ablate(&world, &["--set", "merge.rrt=base + last"]).failed(2);
    assert!(
        message.contains("merge.rrt") && message.contains("step:N"),
        "{message}"
    );
    let message = ablate(&world, &["--set", "merge.x=base + step:3"]).failed(2);
    assert!(
        message.contains("merge.x") && message.contains("checkpoints every 2"),
        "{message}"
    );
}

#[test]
fn tasks_of_an_array_job_come_to_the_same_table() {
    let world = World::new();
    let cells = ["--grid", "selection.strategy=t3s,all", "--seeds", "2"];
    let slurm = [&cells[..], &["--launcher", "slurm", "--jobs", "2"]].concat();
    ablate(&world, &slurm).good();
    let script = world.read(&format!("{FOLDER}/array.sbatch"));
    let folder = fs::canonicalize(world.folder.path()).unwrap();
    let plain = script
        .replace(support::program().to_str().unwrap(), "/opt/t3s")
        .replace(folder.to_str().unwrap(), "/data")
        .replace(world.folder.path().to_str().unwrap(), "/data");
    insta::assert_snapshot!(plain);
    let unfinished = ablate(&world, &[&cells[..], &["--collect"]].concat()).good();
    let unfinished = table(&unfinished);
    let first = &row(&unfinished, "t3s")["failures"][0];
    assert_eq!(first["message"], "not done yet");
    // All tasks at once, as a cluster would.
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let mut bash = Command::new("bash");
            bash.arg(world.path(FOLDER).join("array.sbatch"))
                .env("SLURM_ARRAY_TASK_ID", task.to_string())
                .env("SLURM_CPUS_PER_TASK", "1")
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            bash.spawn().expect("there is a bash")
        })
        .collect();
    for mut task in tasks {
        assert!(task.wait().unwrap().success());
    }
    let probes = fs::read_dir(world.path(FOLDER).join("runs"))
        .unwrap()
        .filter(|run| {
            let events = run.as_ref().unwrap().path().join("events.jsonl");
            let text = fs::read_to_string(events).unwrap_or_default();
            text.lines()
                .any(|line| line.contains("\"stage-finished\"") && line.contains("\"probe\""))
        });
    assert_eq!(probes.count(), 1, "the others wait for it");
    let collected = table(&ablate(&world, &[&cells[..], &["--collect"]].concat()).good());
    let ran = ablate(&world, &cells).good();
    assert_eq!(stages_done(&ran.json()), [""; 0]);
    assert_eq!(table(&ran), collected);
}

#[test]
fn an_interrupted_ablation_goes_on() {
    let world = World::new();
    let cells = [
        "--grid",
        "selection.strategy=t3s,all",
        "--set",
        "train.steps=40",
    ];
    let all = [
        &["--json", "ablate", "plan.toml", "--set", NAMED],
        &cells[..],
    ]
    .concat();
    let child = support::started(&mut world.command(&all), "train", 5);
    support::signal(&child, "-INT");
    let said: Said = child.wait_with_output().unwrap().into();
    assert_eq!(said.code, Some(130), "{}", said.err);
    let events = ablate(&world, &cells).good().json();
    assert_eq!((count(&events, "probe"), count(&events, "train")), (0, 2));
}
