use super::*;
use crate::statistics::{RESAMPLES, over_prompts, wilson};

fn graded(stage: &str, right: &[u32], samples: u32) -> Graded {
    let n: u32 = right.iter().sum();
    let answers = right.len() as u64 * u64::from(samples);
    Graded {
        stage: stage.to_owned(),
        accuracy: Accuracy {
            problems: right.len() as u64,
            samples,
            answers,
            right: n.into(),
            wrong: answers - u64::from(n),
            unparsed: 0,
            truncated: 0,
            share: f64::from(n) / answers as f64,
            interval: over_prompts(right, samples),
            mean_tokens: 7.0,
        },
        problems: (0..right.len() as u64)
            .map(|id| (id, "1".to_owned()))
            .collect(),
        shares: right
            .iter()
            .map(|r| f64::from(*r) / f64::from(samples))
            .collect(),
    }
}

fn results(of: &[(u64, &str, &[u32])]) -> Results {
    Results {
        by_seed: of
            .iter()
            .map(|(seed, stage, right)| (*seed, graded(stage, right, 4)))
            .collect(),
    }
}

/// Right answers that differ wildly from problem to problem, `gain` more of them on every one.
fn alike(n: usize, gain: u32) -> Vec<u32> {
    (0..n).map(|p| (p as u32 * 7) % 4 + gain).collect()
}

#[test]
fn what_problems_have_in_common_cancels_in_the_difference() {
    let (low, high) = (alike(40, 0), alike(40, 1));
    let cell = results(&[(1, "a", &high), (2, "b", &high)]);
    let sft = results(&[(1, "s", &low), (2, "s", &low)]);
    let row = cell.fill(Row::default(), Some(&sft), false);
    assert_eq!(row.difference, Some(0.25));
    let interval = row.difference_interval.unwrap();
    assert_eq!((interval.low, interval.high), (0.25, 0.25));
    let own = row.interval.unwrap();
    assert!(own.high - own.low > 0.1, "{own:?}");
    // The model that is the same under both seeds is one model.
    let shared = sft.fill(Row::default(), Some(&sft), true);
    assert_eq!((shared.seeds, shared.difference), (vec![1], None));
}

#[test]
fn seeds_that_disagree_widen_the_interval() {
    let (none, all) = ([0; 50], [4; 50]);
    let half: Vec<u32> = (0..50).map(|p| if p % 2 == 0 { 0 } else { 4 }).collect();
    let agreeing = results(&[(1, "a", &half), (2, "b", &half)]);
    let split = results(&[(1, "a", &none), (2, "b", &all)]);
    let width = |results: &Results| {
        let interval = results.fill(Row::default(), None, false).interval.unwrap();
        interval.high - interval.low
    };
    assert!(width(&agreeing) < 0.3);
    assert_eq!(width(&split), 1.0);
}

#[test]
fn pairs_are_of_one_seed_and_of_the_same_problems() {
    let a = results(&[(1, "a", &[4, 0]), (2, "b", &[0, 0])]);
    let b = results(&[(2, "c", &[0, 4]), (3, "d", &[4, 4])]);
    let row = a.fill(Row::default(), Some(&b), false);
    assert_eq!(row.difference, Some(-0.5), "only the seed 2 has both");
    assert_eq!(row.accuracy, Some(0.25), "of both seeds");
    let other = results(&[(1, "e", &[4, 4, 4])]);
    assert_eq!(a.fill(Row::default(), Some(&other), false).difference, None);
}

#[test]
fn masks_overlap_as_jaccard_says() {
    let mask = |kept: &[bool]| Mask {
        tokens: (
            vec![0],
            vec![0, kept.len() as u32],
            (0..kept.len() as u32).collect(),
        ),
        kept: kept.to_vec(),
    };
    let a = mask(&[true, true, false, false]);
    let b = mask(&[true, false, true, false]);
    assert_eq!(a.jaccard(&b), Some(1.0 / 3.0));
    assert_eq!(a.jaccard(&a), Some(1.0));
    assert_eq!(a.jaccard(&mask(&[true])), None, "of other tokens");
    let one = |seed, mask| BTreeMap::from([(seed, mask)]);
    let found = overlap(&[
        ("a".to_owned(), one(1, a)),
        ("b".to_owned(), one(1, b)),
        ("later".to_owned(), one(2, mask(&[true, true, true, true]))),
        ("online".to_owned(), BTreeMap::new()),
    ]);
    assert_eq!(found.cells, ["a", "b", "later"]);
    assert_eq!(found.jaccard[0][1], Some(1.0 / 3.0));
    assert_eq!(found.jaccard[0][2], None, "no seed in common");
}

#[test]
fn one_seed_is_the_interval_that_a_run_reports() {
    let right = alike(30, 0);
    let row = results(&[(1, "a", &right)]).fill(Row::default(), None, false);
    assert_eq!(row.interval, Some(over_prompts(&right, 4)));
    let unanimous = results(&[(1, "a", &[4; 9])]).fill(Row::default(), None, false);
    assert_eq!(unanimous.interval, Some(wilson(9, 9)));
    assert_eq!(RESAMPLES, 2000, "docs/equations.md says so");
}
