//! `t3s analyse`: the paper's diagnosis of a run.

use t3s_core::{plan, registry::Registry};
use t3s_pipeline::{
    analyse::{AnalysePlan, Analysis, analyse},
    offline::Session,
    recorded::RecordedRun,
};
use t3s_report::Budget;

use crate::{args::AnalyseArgs, display::Display, failure::Failure, interrupt::on_ctrl_c};

/// Analyses a run, and writes its page again.
pub fn run(args: &AnalyseArgs, display: &Display) -> Result<(), Failure> {
    let how = how(args)?;
    let run = RecordedRun::open(&args.run)?;
    let loaded = plan::load(&args.run.join("plan.toml"), &[], &Registry::linked()?)?;
    let session = Session {
        registry: &loaded.registry,
        observer: display,
        interrupt: &on_ctrl_c()?,
    };
    let analysis = analyse(&run, &loaded.plan, &how, session)?;
    let bottleneck = run.bottleneck.as_ref().map(|found| found.step);
    t3s_report::write_figures(&args.run, bottleneck)?;
    let report = t3s_report::write(&args.run, None, Budget::default())?;
    display.result(&analysis, || {
        print(&analysis);
        println!("tables and figures: {}", analysis.folder.display());
        println!("report: {}", report.display());
    });
    Ok(())
}

fn how(args: &AnalyseArgs) -> Result<AnalysePlan, Failure> {
    for (option, value) in [
        ("--examples", args.examples),
        ("--sketch-width", args.sketch_width),
        ("--map-tokens", args.map_tokens),
        ("--transfer-steps", args.transfer_steps as usize),
    ] {
        if value == 0 {
            return Err(Failure::usage(format!("{option} 0: at least 1 is needed")));
        }
    }
    if let Some(rate) = args
        .learning_rate
        .filter(|rate| !(*rate > 0.0 && rate.is_finite()))
    {
        return Err(Failure::usage(format!(
            "--learning-rate {rate}: a rate is above 0"
        )));
    }
    Ok(AnalysePlan {
        examples: args.examples,
        rule: args.rule,
        learning_rate: args.learning_rate,
        subsets: args.subsets.clone(),
        transfer_steps: args.transfer_steps,
        sketch_width: args.sketch_width,
        map_tokens: args.map_tokens,
    })
}

fn print(analysis: &Analysis) {
    println!(
        "{} tokens of {} traces, {} of them anchors",
        analysis.tokens, analysis.examples, analysis.anchors
    );
    println!("  step   |g_A|/|g_O|   cosine   others after a step on the anchors   suppressed");
    for at in &analysis.checkpoints {
        let others = at
            .interventions
            .first()
            .map_or(f64::NAN, |step| step.others);
        println!(
            "{:>6}   {:>11.3}   {:>6.3}   {:>+27.5} nats   {:>8.1} %",
            at.step,
            at.anchor_norm / at.other_norm,
            at.cosine,
            others,
            100.0 * at.suppressed[0]
        );
    }
}
