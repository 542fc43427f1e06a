use std::collections::HashMap;

use super::*;

fn sample() -> Sample {
    let example = |id: u64| Example {
        id,
        ids: (0..6).collect(),
        noisy_ids: None,
        trainable: vec![false, false, true, true, true, true],
        weights: vec![1.0; 6],
        prompt_len: 2,
        answer: None,
    };
    let places = (0..2).flat_map(|e| (2..6).map(move |p| (e, p))).collect();
    let column = |values: [f32; 8]| values.to_vec();
    Sample {
        examples: vec![example(3), example(9)],
        places,
        columns: HashMap::from([
            (
                "delta-c".to_owned(),
                column([1.0, -1.0, 0.0, 2.0, -3.0, 4.0, 0.5, -0.5]),
            ),
            (
                "logp@base".to_owned(),
                column([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0]),
            ),
        ]),
    }
}

#[test]
fn suppressed_shares_of_a_made_up_trajectory() {
    let base = [-1.0, -1.0, -1.0, -1.0];
    let now = [-0.5, -2.0, -1.0, -3.0];
    // Equal is not suppressed.
    let anchors = [true, true, false, false];
    assert_eq!(suppressed(&base, &now, &anchors), [0.5, 0.5, 0.5]);
    assert_eq!(suppressed(&base, &base, &anchors), [0.0; 3]);
    assert_eq!(
        suppressed(&base, &now, &[true, false, true, false]),
        [0.5, 0.0, 1.0]
    );
}

#[test]
fn a_token_at_zero_is_no_anchor_and_weights_follow_the_subset() {
    let sample = sample();
    let anchors = sample.anchors();
    assert_eq!(
        anchors,
        [true, false, false, true, false, true, true, false]
    );
    let only = sample.only(&anchors);
    assert_eq!(only[0].weights, [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    assert_eq!(only[1].weights, [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
    let mut first = vec![false; 8];
    first[1] = true;
    assert_eq!(
        sample.only(&first).len(),
        1,
        "an example without a token is left out"
    );
}

#[test]
fn four_parts_hold_every_token_once() {
    let sample = sample();
    for rule in ["anchors", "delta-c", "logp@base"] {
        let parts = rule.parse::<Subsets>().unwrap().cut(&sample).unwrap();
        assert_eq!(parts.len(), 4, "{rule}");
        for row in 0..8 {
            let times = parts.iter().filter(|(_, part)| part[row]).count();
            assert_eq!(times, 1, "{rule}, token {row}");
        }
        assert!(
            parts
                .iter()
                .all(|(_, part)| part.iter().filter(|p| **p).count() == 2)
        );
    }
    let anchors = Subsets::Anchors.cut(&sample).unwrap();
    assert!(anchors[0].0.contains("less") && anchors[0].1[5] && anchors[0].1[6]);
    let error = Subsets::Quartiles("loss".into()).cut(&sample).unwrap_err();
    assert!(error.to_string().contains("logp@base"), "{error}");
}
