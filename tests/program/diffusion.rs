//! Students that mask their input, through the program.

#[expect(dead_code, reason = "used in part")]
mod support;

use std::fs;

use serde_json::{Value, json};
use support::{World, stages_done};

/// The config of a block-diffusion student of some twenty thousand weights, whose mask token is the
/// vocabulary's last id.
fn config(vocab: u64) -> Value {
    json!({
        "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "hidden_size": 32,
        "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu",
        "num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
        "norm_topk_prob": true, "moe_router_enable_expert_bias": true, "use_qk_norm": true,
        "partial_rotary_factor": 0.5, "max_position_embeddings": 256, "initializer_range": 0.1,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "rope_theta": 10000.0,
        "torch_dtype": "float32", "vocab_size": vocab, "mask_token_id": vocab - 1,
    })
}

/// A world with a diffusion student in `masked/` and a plan for it, beside the usual.
fn world() -> World {
    let world = World::new();
    let student: Value = world.json("student/config.json");
    let vocab = student["vocab_size"].as_u64().unwrap() + 1;
    world.write("masked.json", config(vocab).to_string());
    world
        .t3s(&[
            "init",
            "--config",
            "masked.json",
            "--tokenizer",
            "tokenizer",
            "--out",
            "masked",
        ])
        .good();
    let plan = world.read("plan.toml").replace(
        "path = \"student\"",
        "path = \"masked\"\n\n[student.objective]\nblock = 8\n\n[student.decode]\nblock = 8\nsteps = 2\n\n\
         [score]\ndraws = 3",
    );
    world.write("masked.toml", plan.replace("runs/a", "runs/masked"));
    world
}

fn run(world: &World, overrides: &[&str]) -> Vec<Value> {
    let mut args = vec!["--json", "run", "masked.toml"];
    for pair in overrides {
        args.extend(["--set", pair]);
    }
    world.t3s(&args).good().json()
}

#[test]
fn a_masked_student_runs_like_any_other() {
    let world = world();
    let half = [
        "bottleneck.step=2",
        "selection.strategy=random",
        "selection.share=0.5",
    ];
    let events = run(&world, &half);
    let done = stages_done(&events);
    assert_eq!(done.len(), 10, "{done:?}");
    let summary = world.json("runs/masked/summary.json");
    let selection = &summary["selection"];
    assert_eq!(selection["tokens"], summary["corpus"]["response_tokens"]);
    let losses = [
        &summary["train"]["first_loss"],
        &summary["train"]["last_loss"],
    ];
    assert!(losses[0].as_f64() > losses[1].as_f64(), "{losses:?}");
    // Plain fine-tuning leaves the mask to chance; a selection forces half of what is left.
    let share = |stage: &str| {
        let lines = fs::read_to_string(find(&world, stage).join("steps.jsonl")).unwrap();
        let steps: Vec<Value> = lines
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let sum = |key: &str| steps.iter().map(|s| s[key].as_u64().unwrap()).sum::<u64>() as f64;
        sum("kept_tokens") / sum("tokens")
    };
    assert!(share("train") > share("probe") * 1.2);

    // Other draws are other scores, and only what reads them is done again.
    let events = run(&world, &[&half[..], &["score.draws=2"]].concat());
    let again = stages_done(&events);
    assert_eq!(again[..3], ["score-base", "score-step-000002", "select"]);
}

fn find(world: &World, stage: &str) -> std::path::PathBuf {
    let mut found = fs::read_dir(world.path("runs/masked/stages"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(&format!("{stage}-"))
        });
    found.next().expect(stage)
}

#[test]
fn a_selection_of_nothing_or_everything_is_warned_of() {
    let world = world();
    let select = |threshold: &str| {
        let chosen = [
            "bottleneck.step=2",
            "selection.strategy=yet-to-learn",
            threshold,
        ];
        run(&world, &chosen);
        world.json("runs/masked/summary.json")
    };
    for (threshold, share) in [
        ("selection.tau=1000.0", "0 %"),
        ("selection.tau=-1000.0", "100 %"),
    ] {
        let summary = select(threshold);
        let warnings = summary["warnings"].as_array().unwrap().clone();
        let warned = warnings.iter().any(|w| w.as_str().unwrap().contains(share));
        assert!(warned, "{warnings:?}");
    }
    // An autoregressive student cannot train on nothing.
    let nothing = world.run(&[
        "bottleneck.step=2",
        "selection.strategy=yet-to-learn",
        "selection.tau=1000.0",
    ]);
    assert!(nothing.failed(1).contains("keeps none"));
}

#[test]
fn what_a_masked_student_cannot_learn_from_is_refused_before_anything_is_computed() {
    let world = world();
    let refused_with = |code: i32, overrides: &[&str], said: &[&str]| {
        for command in ["check", "run"] {
            let mut args = vec![command, "masked.toml"];
            for pair in overrides {
                args.extend(["--set", pair]);
            }
            let message = world.t3s(&args).failed(code);
            for part in said {
                assert!(message.contains(part), "{message}\nlacks {part}");
            }
        }
    };
    let refused = |overrides: &[&str], said: &[&str]| refused_with(2, overrides, said);
    let outside = "student.objective.mask_id=156895";
    refused(&[outside], &["id 156895", "vocabulary ends at", "mask_id"]);
    // Id 5 is some letter of the traces.
    let text = world.t3s(&[
        "score",
        "student",
        "--data",
        "traces.jsonl",
        "--out",
        "s.parquet",
    ]);
    text.good();
    let (table, _) = t3s_data::store::read_table(&world.path("s.parquet")).unwrap();
    let inside = format!("student.objective.mask_id={}", table.view().token_ids()[3]);
    refused(
        &[&inside],
        &["the text holds the mask token's id", "example 0, position"],
    );
    refused(
        &["student.objective.block=0"],
        &["block", "at least 1 token"],
    );
    refused(&["student.objective.blok=8"], &["blok"]);
    let mut config = world.json("masked/config.json");
    config["mask_token_id"] = json!(100_000);
    world.write("masked/config.json", config.to_string());
    refused_with(1, &[], &["mask_token_id", "100000"]);
    config["mask_token_id"] = json!(null);
    config["expert_capacity"] = json!(2);
    world.write("masked/config.json", config.to_string());
    refused_with(1, &[], &["expert_capacity"]);
}

#[test]
fn blocks_need_not_divide_anything() {
    let world = world();
    // Of 3 response tokens in blocks of 8, of 32 in blocks of 5, answers of 8 tokens in blocks of 3.
    let row = |prompt: usize, n: usize| {
        let ids: Vec<usize> = (0..n).map(|i| 20 + i % 50).collect();
        json!({ "input_ids": ids, "prompt_length": prompt, "answer": "1" }).to_string()
    };
    world.write("short.jsonl", [row(4, 7), row(9, 41), row(1, 2)].join("\n"));
    for block in [3, 5, 8, 64] {
        for pad in [false, true] {
            let sets = [
                "data.train=short.jsonl".to_owned(),
                format!("student.objective.block={block}"),
                format!("student.objective.pad_to_block={pad}"),
                format!("student.decode.block={block}"),
                format!("out=runs/short-{block}-{pad}"),
                "bottleneck.step=2".to_owned(),
                "selection.strategy=random".to_owned(),
            ];
            let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
            run(&world, &sets);
            let summary = world.json(&format!("runs/short-{block}-{pad}/summary.json"));
            assert_eq!(summary["selection"]["tokens"], 3 + 32 + 1);
        }
    }
}

#[test]
fn an_autoregressive_run_selects_for_a_masked_student() {
    let world = world();
    world.run(&["bottleneck.step=2"]).good();
    let from = ["selection.from=runs/a", "selection.strategy=yet-to-learn"];
    let select = |tau: &str, out: &str| run(&world, &[&from[..], &[tau, out]].concat());
    let events = select("selection.tau=0.0", "out=runs/masked");
    // It has no trajectory of its own.
    let done = [
        "corpus",
        "select",
        "train",
        "evaluate-base",
        "evaluate-student",
    ];
    assert_eq!(stages_done(&events), done);
    let summary = world.json("runs/masked/summary.json");
    let selector = world.json("runs/a/summary.json");
    for same in ["probe", "bottleneck"] {
        assert_eq!(summary[same], selector[same]);
    }
    assert!(summary["selector"].as_str().unwrap().ends_with("runs/a"));
    assert_eq!(
        summary["selection"]["tokens"],
        selector["selection"]["tokens"]
    );
    let rising = |summary: &Value| summary["selection"]["rising"].as_u64().unwrap();
    assert_eq!(rising(&summary), rising(&selector));
    let kept = summary["selection"]["kept"].as_u64().unwrap();
    let tokens = summary["selection"]["tokens"].as_u64().unwrap();
    assert!(
        kept > 0 && kept <= tokens - rising(&summary),
        "{kept} of {tokens}"
    );
    // Another threshold shares the corpus and the base.
    let events = select("selection.tau=0.05", "out=runs/other");
    assert_eq!(
        stages_done(&events),
        ["select", "train", "evaluate-student"]
    );

    let refused = |sets: &[&str], parts: &[&str]| {
        for command in ["check", "run"] {
            let mut args = vec![command, "masked.toml"];
            for set in from.iter().chain(sets) {
                args.extend(["--set", set]);
            }
            let message = world.t3s(&args).failed(2);
            for part in parts {
                assert!(message.contains(part), "{message}\nlacks {part}");
            }
        }
    };
    refused(
        &["selection.from=runs/none"],
        &["runs/none", "summary.json", "t3s run"],
    );
    // One digit of a response is another: the first token that differs is shown.
    let rows: Vec<String> = world
        .read("traces.jsonl")
        .lines()
        .enumerate()
        .map(|(n, line)| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            if n == 3 {
                let response = row["response"].as_str().unwrap().to_owned();
                row["response"] = json!(format!("Q{}", &response[1..]));
            }
            row.to_string()
        })
        .collect();
    world.write("edited.jsonl", rows.join("\n"));
    let edited = "data.train=edited.jsonl";
    refused(
        &[edited],
        &[
            "selection.from",
            "example 3, position",
            "\"Q\"",
            "here",
            "there",
        ],
    );
    refused(&["data.limit=9"], &["example 9"]);
    // A step that the selector did not score.
    let message = {
        let signal = "selection.signal=logp@step:3";
        let mut args = vec!["run", "masked.toml", "--set", signal];
        for set in &from {
            args.extend(["--set", set]);
        }
        world.t3s(&args).failed(2)
    };
    assert!(
        message.contains("step 3") && message.contains("base, step-000002"),
        "{message}"
    );
}

#[test]
fn options_of_one_family_mean_nothing_to_another() {
    let world = world();
    let message = world
        .t3s(&["check", "masked.toml", "--set", "student.path=student"])
        .failed(2);
    assert!(message.contains("student.decode"), "{message}");
    let message = world
        .t3s(&["check", "masked.toml", "--set", "student.adapter=qwen3"])
        .failed(1);
    assert!(
        message.contains("qwen3") && message.contains("config.json"),
        "{message}"
    );
}

#[test]
fn full_attention_guidance_and_end_tokens_are_options() {
    let world = world();
    run(
        &world,
        &[
            "student.objective.attention=full",
            "student.decode.attention=full",
            "student.decode.guidance=0.5",
            "student.decode.end_tokens=never",
            "bottleneck.step=2",
            "selection.strategy=random",
            "out=runs/full",
        ],
    );
    let summary = world.json("runs/full/summary.json");
    let student = summary["evaluation"].as_array().unwrap().last().unwrap();
    assert_eq!(
        student["accuracy"]["truncated"],
        student["accuracy"]["answers"]
    );
    let message = world
        .t3s(&[
            "check",
            "masked.toml",
            "--set",
            "student.decode.guidance=0.5",
        ])
        .failed(2);
    assert!(
        message.contains("guidance") && message.contains("full attention"),
        "{message}"
    );
}

/// `examples/llada-quickstart/run.sh`, with less of everything.
#[test]
fn the_example_runs_from_the_selector_to_the_table() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/llada-quickstart");
    let world = World::new();
    let file = |name: &str| format!("{example}/{name}");
    let (selector, plan, cells) = (file("selector.toml"), file("plan.toml"), file("cells.toml"));
    let small = [
        "data.limit=16",
        "eval.limit=4",
        "eval.generate.max_new_tokens=8",
        "train.steps=2",
        "train.batch_examples=8",
    ];
    let out = |name: &str| world.path(name).display().to_string();
    let selector_out = format!("out={}", out("selector"));
    let mut args = vec![
        "run",
        &selector,
        "--set",
        &selector_out,
        "--set",
        "bottleneck.step=2",
    ];
    args.extend(["--set", "probe.checkpoint_every=2"]);
    args.extend(small.iter().flat_map(|pair| ["--set", *pair]));
    world.t3s(&args).good();
    let from = format!("selection.from={}", out("selector"));
    let table = out("tau");
    let mut args = vec!["ablate", &plan, "--cells", &cells, "--baseline", "plain"];
    args.extend(["--out", &table, "--set", &from]);
    args.extend(small.iter().flat_map(|pair| ["--set", *pair]));
    world.t3s(&args).good();
    let rows: Vec<String> = world
        .read("tau/table.csv")
        .lines()
        .map(str::to_owned)
        .collect();
    let heads: Vec<&str> = rows[0].split(',').collect();
    let column = |name: &str| heads.iter().position(|head| *head == name).unwrap();
    let kept = |row: &str| {
        row.split(',')
            .nth(column("kept_share"))
            .unwrap()
            .parse::<f64>()
    };
    let cells = rows[1..].iter().filter(|row| !row.starts_with("base,"));
    let kept: Vec<f64> = cells.map(|row| kept(row).unwrap()).collect();
    assert_eq!((kept.len(), kept[0]), (7, 0.0), "{rows:?}");
    assert!(
        kept.is_sorted() && kept[6] > 0.0,
        "a lower tau selects more: {kept:?}"
    );
}
