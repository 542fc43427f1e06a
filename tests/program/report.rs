//! The page of a run, looked at in a real browser: headless Chromium (Debian's `chromium`), named in
//! `T3S_CHROMIUM` or found on the path. Without one these tests say that they are skipped.

#[expect(dead_code, reason = "used in part")]
mod support;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use support::World;

/// The browser, if there is one.
fn chromium() -> Option<PathBuf> {
    if let Some(path) = env::var_os("T3S_CHROMIUM") {
        return Some(PathBuf::from(path));
    }
    let path = env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: no chromium; apt-get install chromium, or name one in T3S_CHROMIUM");
    }
    found
}

/// The page's elements after its scripts ran, and what it said on its console.
fn browse(chromium: &Path, page: &Path, dark: bool) -> (String, Vec<String>) {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(chromium);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        "--virtual-time-budget=2000",
        "--window-size=1200,900",
        "--dump-dom",
    ]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!(
        "--blink-settings=preferredColorScheme={}",
        u8::from(!dark)
    ));
    command.arg(format!("file://{}", page.display()));
    let output = command.output().expect("chromium starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    let console = errors.lines().filter(|line| line.contains("CONSOLE"));
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(dom.contains("<body"), "chromium shows nothing:\n{errors}");
    (dom, console.map(str::to_owned).collect())
}

/// What `script` leaves in `result` after it ran in the page: a copy of it, which has no policy
/// against scripts that are not its own.
fn ask(chromium: &Path, page: &Path, script: &str) -> Value {
    let html = fs::read_to_string(page).unwrap();
    let policy = html.find("<meta http-equiv").expect("a policy");
    let end = policy + html[policy..].find('>').unwrap() + 1;
    let ask = format!(
        "<script>window.addEventListener('load', () => {{ const key = (key) => \
         document.getElementById('tokens').dispatchEvent(new KeyboardEvent('keydown', {{ key, \
         bubbles: true, cancelable: true }})); let result = null; try {{ {script} }} catch (error) \
         {{ result = String(error); }} const out = document.createElement('pre'); out.id = \
         'answer'; out.textContent = JSON.stringify(result); document.body.append(out); \
         }});</script></body>"
    );
    let html = html[..policy].to_owned() + &html[end..];
    let at = html.rfind("</body>").unwrap();
    let copy = page.with_file_name("asked.html");
    fs::write(&copy, html[..at].to_owned() + &ask + &html[at + 7..]).unwrap();
    let (dom, console) = browse(chromium, &copy, false);
    assert_eq!(console, [""; 0]);
    let start = dom.find("id=\"answer\">").expect("an answer") + "id=\"answer\">".len();
    let end = start + dom[start..].find("</pre>").unwrap();
    let text = dom[start..end]
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    serde_json::from_str(&text).expect("JSON")
}

/// Nothing in the page can be asked of a network.
fn assert_alone(html: &str) {
    for word in [
        "src=",
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "import(",
    ] {
        assert!(!html.contains(word), "the page has {word}");
    }
    for (at, _) in html.match_indices("href=\"") {
        let to = &html[at + 6..];
        assert!(
            to.starts_with('#') || to.starts_with("data:,"),
            "{}",
            &to[..40]
        );
    }
    assert!(html.contains("default-src 'none'"));
}

const NASTY: [&str; 4] = [
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=alert(1)> &amp; <!-- ",
    "שלום עולם, 4 ועוד 4",
    "👩‍🔬 한 \u{202e}abc\u{0007}\u{2028}end",
];

#[test]
fn the_page_of_a_run_shows_everything_and_asks_nothing() {
    let world = World::new();
    // Texts of people who mean no good, as questions and as answers.
    let mut rows = world.read("traces.jsonl");
    for text in NASTY {
        let row = json!({ "question": text, "response": format!("{text} #### 4"), "answer": "4" });
        rows.push_str(&format!("{row}\n"));
    }
    world.write("traces.jsonl", rows);
    let said = world.t3s(&["run", "plan.toml"]).good();
    assert!(said.out.contains("report.html"), "{}", said.out);
    let page = world.path("runs/a/report.html");
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.len() < 3_000_000, "{}", html.len());
    assert_alone(&html.replace("onerror=", "").replace("img src=x", ""));
    assert_eq!(html.matches("<script").count(), 2, "a text became a script");
    for figure in [
        "Accuracy along",
        "Loss along",
        "Distribution of",
        "Kept share along",
    ] {
        assert!(html.contains(figure), "{figure}");
    }
    assert_eq!(
        html.matches("<svg").count(),
        2 * 7,
        "seven figures in two widths"
    );
    assert!(!html.contains("NaN") && !html.contains("class=\"missing\">No"));

    let Some(chromium) = chromium() else { return };
    for dark in [false, true] {
        let (dom, console) = browse(&chromium, &page, dark);
        assert_eq!(console, [""; 0]);
        assert!(dom.contains("id=\"token-0\""), "the lens is empty");
        let pressed = format!("aria-pressed=\"{dark}\"");
        assert!(
            dom.contains(&pressed),
            "the system's colours are not followed"
        );
        assert!(dom.contains("<title>tiny - T3S</title>"), "a text ran");
    }
    let found = ask(
        &chromium,
        &page,
        "const box = document.getElementById('tokens'), at = () => \
         box.getAttribute('aria-activedescendant'), trace = () => \
         document.getElementById('trace').value; const steps = []; box.focus(); \
         steps.push(at()); key('ArrowRight'); steps.push(at()); key('ArrowLeft'); \
         key('ArrowLeft'); steps.push(at()); key('End'); const end = at(); key('Home'); \
         steps.push(at()); key('ArrowDown'); const down = at(); key('ArrowUp'); \
         const n = box.querySelectorAll('[role=option]').length; const before = trace(); \
         key('n'); const next = trace(); key('p'); key('p'); const first = trace(); \
         const colour = document.getElementById('colour').value; key('c'); \
         const other = document.getElementById('colour').value; \
         const theme = document.getElementById('theme'); theme.click(); \
         result = { steps, end, n, before, next, first, down, cycled: colour !== other, \
         dark: document.documentElement.dataset.theme, \
         detail: document.getElementById('detail').textContent, \
         resources: performance.getEntriesByType('resource').length };",
    );
    assert_eq!(
        found["steps"],
        json!(["token-0", "token-1", "token-0", "token-0"]),
        "{found}"
    );
    let n = found["n"].as_u64().unwrap();
    assert_eq!(found["end"], format!("token-{}", n - 1));
    assert_eq!(
        [&found["before"], &found["next"], &found["first"]],
        ["0", "1", "0"]
    );
    assert_eq!(
        (&found["cycled"], &found["dark"]),
        (&json!(true), &json!("dark"))
    );
    assert_eq!(found["resources"], 0);

    // Every text is there as it was written, in the order it was written.
    let texts = ask(
        &chromium,
        &page,
        "const menu = document.getElementById('trace'); const texts = []; \
         for (const option of menu.options) { menu.value = option.value; \
         menu.dispatchEvent(new Event('change')); texts.push([document.getElementById('tokens')\
         .textContent, document.getElementById('tokens').dir, \
         document.getElementById('prompt').textContent]); } result = texts;",
    );
    let texts = texts.as_array().unwrap();
    assert_eq!(texts.len(), 16 + NASTY.len());
    for text in NASTY {
        let seen = texts.iter().find(|seen| {
            let tokens = seen[0].as_str().unwrap().replace('·', "");
            tokens.contains(text) && seen[2].as_str().unwrap().contains(text)
        });
        let seen = seen.unwrap_or_else(|| panic!("{text:?} is not in {texts:#?}"));
        let hebrew = text.starts_with('ש');
        assert_eq!(seen[1], if hebrew { "rtl" } else { "ltr" });
    }
}

#[test]
fn what_a_run_did_not_come_to_is_a_sentence() {
    let world = World::new();
    world.run(&[]).good();
    // As a kill leaves it, at every stage.
    let log = world.read("runs/a/events.jsonl");
    let lines: Vec<&str> = log.lines().collect();
    let begun = |stage: &str| {
        let started = |line: &str| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["event"] == "stage-started" && event["stage"] == stage
        };
        lines.iter().position(|line| started(line)).unwrap() + 1
    };
    let chromium = chromium();
    for (stage, figures) in [("corpus", 0), ("score-base", 2), ("train", 6)] {
        world.write("runs/a/events.jsonl", lines[..begun(stage)].join("\n"));
        world.t3s(&["report", "runs/a"]).good();
        let html = world.read("runs/a/report.html");
        assert!(html.contains("The run is not complete."), "{stage}");
        assert!(html.contains("No model was examined."), "{stage}");
        assert_eq!(html.matches("<svg").count(), 2 * figures, "{stage}");
        if let Some(chromium) = &chromium {
            let (_, console) = browse(chromium, &world.path("runs/a/report.html"), false);
            assert_eq!(console, [""; 0], "{stage}");
        }
    }
    let other = world.path("elsewhere.html");
    let out = other.to_str().unwrap();
    world.write("runs/a/events.jsonl", &log);
    let said = world
        .t3s(&["--json", "report", "runs/a", "--out", out, "--traces", "2"])
        .good();
    assert_eq!(said.json()[0]["report"], out);
    assert!(world.read("elsewhere.html").contains("2 of 16 traces"));

    let error = world.t3s(&["report", "."]).failed(2);
    assert!(error.contains("not a run folder"), "{error}");
    fs::remove_file(world.path("runs/a/events.jsonl")).unwrap();
    let error = world.t3s(&["report", "runs/a"]).failed(2);
    assert!(error.contains("t3s run"), "{error}");
}

#[test]
fn the_page_of_a_long_run_of_many_long_traces_stays_small() {
    let world = World::new();
    let words = "first we take the number and add four to it, which gives twelve; then ".repeat(8);
    let rows: Vec<String> = (0..110)
        .map(|i| json!({ "question": format!("{i} and 4?"), "response": words, "answer": "4" }))
        .map(|row| row.to_string())
        .collect();
    world.write("traces.jsonl", rows.join("\n"));
    world
        .run(&["bottleneck.step=2", "data.max_tokens=400"])
        .good();
    // As if it had gone on for long.
    for stage in fs::read_dir(world.path("runs/a/stages")).unwrap() {
        let steps = stage.unwrap().path().join("steps.jsonl");
        let Ok(text) = fs::read_to_string(&steps) else {
            continue;
        };
        let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let long: Vec<String> = (1..=20_000)
            .map(|step| {
                let mut line = line.clone();
                line["step"] = step.into();
                line.to_string()
            })
            .collect();
        fs::write(&steps, long.join("\n")).unwrap();
    }
    let quick = ["--transfer-steps", "1", "--map-tokens", "3000"];
    world
        .t3s(&[&["analyse", "runs/a", "--examples", "6"], &quick[..]].concat())
        .good();
    let html = world.read("runs/a/report.html");
    // As many as there is room for.
    assert!(html.contains(" of 110 traces, evenly spread"));
    assert!(html.contains("Each point is the mean of 67 steps."));
    assert!(html.len() < 3_000_000, "{}", html.len());
    assert!(html.len() > 1_500_000, "{} is not much", html.len());
}

#[test]
fn the_page_of_an_ablation_compares_its_cells() {
    let world = World::new();
    let grid = ["--grid", "selection.strategy=t3s,all,random"];
    let args = ["ablate", "plan.toml", "--set", "bottleneck.step=2"];
    world.t3s(&[&args[..], &grid[..]].concat()).good();
    let page = world.path("runs/a-ablation/report.html");
    let html = fs::read_to_string(&page).unwrap();
    assert_alone(&html);
    for words in ["(baseline)", "points to either side", "Overlap of what"] {
        assert!(html.contains(words), "{words}");
    }
    let again = world.t3s(&["report", "runs/a-ablation"]).good();
    assert!(again.out.contains("report.html"), "{}", again.out);
    assert_eq!(fs::read_to_string(&page).unwrap(), html);
    let Some(chromium) = chromium() else { return };
    for dark in [false, true] {
        let (dom, console) = browse(&chromium, &page, dark);
        assert_eq!(console, [""; 0]);
        assert!(dom.contains(&format!("aria-pressed=\"{dark}\"")));
    }
}

#[test]
fn plain_fine_tuning_has_a_page_too() {
    let world = World::new();
    world.t3s(&["train", "plan.toml"]).good();
    let html = world.read("runs/a/report.html");
    assert!(html.contains("Plain fine-tuning has no probe."));
    assert!(!html.contains("The run is not complete."));
    assert_eq!(html.matches("<svg").count(), 2, "the training run");
}

#[test]
fn the_lens_in_a_terminal_reads_runs_stores_and_selections() {
    let world = World::new();
    world.run(&["bottleneck.step=2"]).good();
    let lens = |args: &[&str]| world.t3s(&[&["lens"], args].concat());
    let run = lens(&["runs/a", "--example", "3"]).good().out;
    assert!(
        run.starts_with("example 3: ") && run.contains("Δc"),
        "{run}"
    );
    // No terminal, no colours; and the texts are those of the data.
    assert!(!run.contains('\u{1b}') && run.contains("> "), "{run}");
    let always = lens(&["runs/a", "--color", "always"]).good().out;
    assert!(always.contains("\u{1b}["));
    let entropy = lens(&["runs/a", "--by", "entropy@base", "--width", "40"]).good();
    assert!(
        entropy.out.contains("entropy at the base"),
        "{}",
        entropy.out
    );
    let selection = lens(&["runs/a/selection.parquet"]).good();
    assert!(
        selection.out.contains("weight in the loss"),
        "{}",
        selection.out
    );
    let json = world
        .t3s(&["--json", "lens", "runs/a", "--example", "3"])
        .good()
        .json();
    let n = json[0]["tokens"].as_array().unwrap().len();
    assert_eq!(json[0]["columns"]["delta-c"].as_array().unwrap().len(), n);
    let numbers = lens(&["runs/a", "--example", "3", "--numbers"]).good().out;
    assert_eq!(
        numbers
            .lines()
            .filter(|l| l.trim().starts_with(char::is_numeric))
            .count(),
        n
    );

    // A store outside of any run.
    world
        .t3s(&[
            "score",
            "student",
            "--data",
            "traces.jsonl",
            "--out",
            "s.parquet",
        ])
        .good();
    let bare = lens(&["s.parquet", "--by", "logp"]).good();
    assert!(bare.err.contains("--tokenizer"), "{}", bare.err);
    let text = lens(&["s.parquet", "--by", "logp", "--tokenizer", "student"]).good();
    assert_ne!(bare.out, text.out);

    let error = lens(&["runs/a", "--example", "99"]).failed(2);
    assert!(error.contains("no such row"), "{error}");
    let error = lens(&["runs/a", "--by", "loss"]).failed(2);
    assert!(error.contains("delta-c"), "{error}");
    let error = lens(&["plan.toml"]).failed(1);
    assert!(error.contains("plan.toml"), "{error}");
}

#[test]
fn an_analysis_has_tables_figures_and_a_place_on_the_page() {
    let world = World::new();
    world.run(&["bottleneck.step=2"]).good();
    let analyse = |args: &[&str]| {
        let quick = [
            "--json",
            "analyse",
            "runs/a",
            "--examples",
            "4",
            "--transfer-steps",
            "2",
        ];
        world.t3s(&[&quick[..], args].concat())
    };
    let found = analyse(&["--map-tokens", "40"]).good().json();
    let found = found.last().unwrap();
    let checkpoints = found["checkpoints"].as_array().unwrap();
    let steps: Vec<u64> = checkpoints
        .iter()
        .map(|c| c["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [0, 2, 4]);
    for at in checkpoints {
        let number = |name: &str| at[name].as_f64().expect(name);
        assert!(
            number("anchor_norm") > 0.0 && number("other_norm") > 0.0,
            "{at}"
        );
        assert!((-1.0..=1.0).contains(&number("cosine")), "{at}");
        // A step on a loss lowers it.
        assert!(
            at["interventions"][0]["anchors"].as_f64() < Some(0.0),
            "{at}"
        );
        assert!(
            at["interventions"][1]["others"].as_f64() < Some(0.0),
            "{at}"
        );
    }
    // Nothing is less likely than at the base at the base; at the bottleneck, those that fell.
    assert_eq!(checkpoints[0]["suppressed"], json!([0.0, 0.0, 0.0]));
    assert_eq!(checkpoints[1]["suppressed"][1], 0.0, "anchors rose");
    let transfer = found["transfer"].as_array().unwrap();
    assert_eq!(transfer.len(), 4);
    for (part, row) in transfer.iter().enumerate() {
        assert!(
            row[part].as_f64() < Some(0.0),
            "learning {part} helps it: {row}"
        );
    }
    for name in [
        "gradients",
        "intervention",
        "transfer",
        "suppressed",
        "sketch-map",
    ] {
        for ending in ["json", "parquet", "svg"] {
            let path = format!("runs/a/analysis/{name}.{ending}");
            assert!(world.path(&path).is_file(), "{path}");
        }
    }
    assert_eq!(
        world.json("runs/a/analysis/sketch-map.json")["rows"]
            .as_array()
            .unwrap()
            .len(),
        80
    );
    let html = world.read("runs/a/report.html");
    assert!(html.contains("Loss transfer") && html.contains("Cosine of both gradients"));
    if let Some(chromium) = chromium() {
        let (_, console) = browse(&chromium, &world.path("runs/a/report.html"), true);
        assert_eq!(console, [""; 0]);
    }

    // The gradient of the anchors' loss is that of a run whose weights keep the anchors alone. With a
    // small plain step the other loss moves as its gradient foretells.
    let small = analyse(&["--rule", "sgd", "--learning-rate", "1e-3"])
        .good()
        .json();
    let at = &small.last().unwrap()["checkpoints"][1];
    let norm = at["anchor_norm"].as_f64().unwrap();
    let same = found["checkpoints"][1]["anchor_norm"].as_f64().unwrap();
    assert!((norm - same).abs() <= 1e-6 * same, "{norm} {same}");
    let step = &at["interventions"][0];
    let [own, moved, foretold] =
        ["anchors", "others", "foretold"].map(|k| step[k].as_f64().unwrap());
    assert!((own + 1e-3 * norm * norm).abs() < 0.1 * own.abs(), "{step}");
    assert!(
        (moved - foretold).abs() < 0.1 * foretold.abs().max(1e-5),
        "{step}"
    );
    let cosine = at["cosine"].as_f64().unwrap();
    let product = -1e-3 * norm * at["other_norm"].as_f64().unwrap() * cosine;
    assert!(
        (foretold - product).abs() < 1e-3 * product.abs().max(1e-7),
        "{foretold} {product}"
    );
}

#[test]
fn what_cannot_be_analysed_says_which_key_to_change() {
    let world = World::new();
    world
        .run(&["bottleneck.step=4", "probe.checkpoint_every=4"])
        .good();
    let error = world.t3s(&["analyse", "runs/a"]).failed(2);
    assert!(error.contains("probe.checkpoint_every"), "{error}");
    world.run(&["bottleneck.step=2"]).good();
    let error = world
        .t3s(&["analyse", "runs/a", "--subsets", "loss"])
        .failed(2);
    assert!(error.contains("logp@base"), "{error}");
    let error = world
        .t3s(&["analyse", "runs/a", "--examples", "0"])
        .failed(2);
    assert!(error.contains("--examples"), "{error}");
    let probe = fs::read_dir(world.path("runs/a/stages"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("checkpoints/step-000002").is_dir())
        .unwrap();
    fs::remove_dir_all(probe.join("checkpoints/step-000002")).unwrap();
    let error = world.t3s(&["analyse", "runs/a"]).failed(2);
    assert!(
        error.contains("step-000002") && error.contains("probe.checkpoint_every"),
        "{error}"
    );
    let error = world.t3s(&["analyse", "student"]).failed(2);
    assert!(error.contains("not a run folder"), "{error}");
}
