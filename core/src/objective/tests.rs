//! The laws of corruption.

use proptest::prelude::*;

use super::*;

const MASK: u32 = 99;

fn corruption(low: f64, high: f64, loss_weight: LossWeight) -> Corruption {
    Corruption {
        mask_id: MASK,
        ratio: RatioRange { low, high },
        loss_weight,
    }
}

fn blocks(block: u32, complementary: bool) -> BlockDiffusion {
    BlockDiffusion {
        corruption: corruption(0.3, 0.8, LossWeight::One),
        block,
        complementary,
        pad_to_block: false,
    }
}

/// Examples as columns.
#[derive(Debug, Clone)]
struct Columns {
    example_ids: Vec<u64>,
    offsets: Vec<u32>,
    ids: Vec<u32>,
    trainable: Vec<bool>,
    weights: Vec<f32>,
    noisy_ids: Vec<u32>,
}

impl Columns {
    /// Examples of a prompt of `p` and a response of `r` tokens, forced with the given chances.
    fn new(lengths: &[(u32, u32)], force: &[f32]) -> Self {
        let mut out = Self {
            example_ids: Vec::new(),
            offsets: vec![0],
            ids: Vec::new(),
            trainable: Vec::new(),
            weights: Vec::new(),
            noisy_ids: Vec::new(),
        };
        for (e, (p, r)) in lengths.iter().enumerate() {
            out.example_ids.push(7 + e as u64);
            for i in 0..p + r {
                out.ids.push((i * 7 + e as u32) % 90);
                out.trainable.push(i >= *p);
                out.weights.push(force[i as usize % force.len()]);
            }
            out.offsets.push(out.ids.len() as u32);
        }
        out
    }

    fn batch(&self) -> ExampleBatch<'_> {
        ExampleBatch {
            example_ids: &self.example_ids,
            offsets: &self.offsets,
            ids: &self.ids,
            trainable: &self.trainable,
            weights: &self.weights,
            noisy_ids: &self.noisy_ids,
        }
    }

    fn prepare(&self, objective: &dyn Objective, seed: u64, draw: u64) -> ModelBatch {
        let mut out = ModelBatch::default();
        objective
            .prepare(&self.batch(), Draw::new(seed, draw), &mut out)
            .expect("a valid batch");
        out
    }

    /// The columns of example `e` alone.
    fn only(&self, e: usize) -> Self {
        let tokens = self.offsets[e] as usize..self.offsets[e + 1] as usize;
        Self {
            example_ids: vec![self.example_ids[e]],
            offsets: vec![0, tokens.len() as u32],
            ids: self.ids[tokens.clone()].to_vec(),
            trainable: self.trainable[tokens.clone()].to_vec(),
            weights: self.weights[tokens.clone()].to_vec(),
            noisy_ids: self.noisy_ids.get(tokens).unwrap_or_default().to_vec(),
        }
    }
}

fn objectives() -> Vec<Box<dyn Objective>> {
    vec![
        Box::new(MaskedDiffusion {
            corruption: corruption(1e-3, 1.0, LossWeight::InverseRatio),
            pad_to_multiple_of: 1,
        }),
        Box::new(blocks(4, false)),
        Box::new(blocks(4, true)),
    ]
}

proptest! {
    #[test]
    fn corruption_obeys_its_laws(
        lengths in prop::collection::vec((0u32..9, 1u32..40), 1..4),
        force in prop::collection::vec(prop_oneof![Just(0.0f32), Just(1.0)], 1..7),
        seed: u64,
        draw in 0u64..5,
    ) {
        let columns = Columns::new(&lengths, &force);
        for objective in objectives() {
            let out = columns.prepare(&*objective, seed, draw);
            prop_assert_eq!(&out, &columns.prepare(&*objective, seed, draw), "deterministic");
            let views = match objective.attention() {
                AttentionPattern::BlockDiffusion { views, .. } => views as usize,
                _ => 0,
            };
            for e in 0..lengths.len() {
                let (start, n) = (columns.offsets[e], columns.offsets[e + 1] - columns.offsets[e]);
                let n = n as usize;
                let rows = out.offsets[e] as usize..out.offsets[e + 1] as usize;
                prop_assert_eq!(rows.len(), (views + 1) * n);
                let alone = columns.only(e).prepare(&*objective, seed, draw);
                prop_assert_eq!(&out.input_ids[rows.clone()], &alone.input_ids[..], "no neighbours");
                for (i, row) in rows.enumerate() {
                    let token = start as usize + i % n;
                    prop_assert_eq!(out.positions[row] as usize, i % n);
                    let is_clean_copy = views > 0 && i >= views * n;
                    let masked = out.input_ids[row] == MASK;
                    let may = columns.trainable[token] && !is_clean_copy;
                    prop_assert!(may || !masked, "a prompt or clean token was masked");
                    if may && columns.weights[token] == 1.0 {
                        prop_assert!(masked, "a forced token was left");
                    }
                    match masked {
                        true => {
                            prop_assert_eq!(out.target_pos[row] as usize, token);
                            prop_assert!(out.weights[row] >= 1.0);
                        }
                        false => {
                            prop_assert_eq!(out.input_ids[row], columns.ids[token]);
                            prop_assert_eq!(out.target_pos[row], NO_TARGET);
                            prop_assert_eq!(out.weights[row], 0.0);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_second_view_masks_what_the_first_left(n in 1u32..60, seed: u64) {
        let columns = Columns::new(&[(0, n)], &[0.0]);
        let out = columns.prepare(&blocks(4, true), seed, 0);
        let n = n as usize;
        for i in 0..n {
            prop_assert!((out.input_ids[i] == MASK) != (out.input_ids[n + i] == MASK));
        }
    }
}

/// Draws of one example over many epochs: shares, and the mean of the weights of each token.
fn shares(objective: &dyn Objective, columns: &Columns, draws: u64) -> (f64, Vec<f64>) {
    let n = columns.ids.len();
    let (mut masked, mut weights) = (0usize, vec![0.0; n]);
    for draw in 0..draws {
        let out = columns.prepare(objective, 3, draw);
        masked += out.input_ids[..n].iter().filter(|id| **id == MASK).count();
        for (sum, weight) in weights.iter_mut().zip(&out.weights) {
            *sum += f64::from(*weight) / draws as f64;
        }
    }
    (masked as f64 / (n as f64 * draws as f64), weights)
}

#[test]
fn the_masked_share_is_the_mean_ratio() {
    let columns = Columns::new(&[(0, 50)], &[0.0]);
    // The ratio is drawn per example: its deviation over 2000 draws is 0.5 / sqrt(12 * 2000) = 0.0032.
    let (share, _) = shares(&blocks(8, false), &columns, 2000);
    assert!((share - 0.55).abs() < 0.016, "{share}");
    let full = MaskedDiffusion {
        corruption: corruption(1e-3, 1.0, LossWeight::One),
        pad_to_multiple_of: 1,
    };
    let (share, _) = shares(&full, &columns, 2000);
    assert!((share - 0.5005).abs() < 0.033, "{share}");
}

#[test]
fn importance_weights_count_every_token_once() {
    // Forced with chance 0, 1/2, 1.
    let columns = Columns::new(&[(0, 3)], &[0.0, 0.5, 1.0]);
    let objective = BlockDiffusion {
        corruption: corruption(0.3, 0.8, LossWeight::Importance),
        ..blocks(4, false)
    };
    let (_, means) = shares(&objective, &columns, 20_000);
    for mean in means {
        // The variance of a term is at most 1 / 0.3 - 1 = 2.4: five standard errors are 0.055.
        assert!((mean - 1.0).abs() < 0.055, "{mean}");
    }
    let inverse = BlockDiffusion {
        corruption: corruption(0.5, 0.5, LossWeight::InverseRatio),
        ..blocks(4, false)
    };
    let (_, means) = shares(&inverse, &columns, 2000);
    assert!(
        (means[2] - 2.0).abs() < 1e-4,
        "always masked: counted 1/t times: {means:?}"
    );
}

#[test]
fn epochs_and_seeds_draw_anew() {
    let columns = Columns::new(&[(0, 64)], &[0.0]);
    let objective = blocks(8, false);
    let one = columns.prepare(&objective, 1, 0);
    assert_ne!(one, columns.prepare(&objective, 1, 1));
    assert_ne!(one, columns.prepare(&objective, 2, 0));
}

#[test]
fn end_tokens_fill_the_last_block() {
    let columns = Columns::new(&[(2, 4)], &[1.0]);
    let objective = BlockDiffusion {
        pad_to_block: true,
        ..blocks(4, false)
    };
    let out = columns.prepare(&objective, 1, 0);
    assert_eq!(out.offsets, [0, 16]);
    assert_eq!(
        out.target_pos[..8],
        [NO_TARGET, NO_TARGET, 2, 3, 4, 5, 5, 5]
    );
    assert_eq!(out.input_ids[8 + 5..], [columns.ids[5]; 3]);
    assert_eq!(out.positions[5..9], [5, 6, 7, 0]);
}

#[test]
fn what_cannot_be_corrupted_is_refused() {
    let mut columns = Columns::new(&[(1, 3)], &[0.0]);
    columns.ids[2] = MASK;
    for objective in objectives() {
        let error = objective
            .prepare(
                &columns.batch(),
                Draw::default(),
                &mut ModelBatch::default(),
            )
            .expect_err("refused");
        let message = error.to_string();
        assert!(message.contains("example 7, position 2"), "{message}");
    }
    let mut columns = Columns::new(&[(1, 3)], &[0.0]);
    columns.weights[3] = 1.5;
    for objective in objectives() {
        let mut out = ModelBatch::default();
        assert!(
            objective
                .prepare(&columns.batch(), Draw::default(), &mut out)
                .is_err()
        );
    }
    assert!(blocks(0, false).check().is_err());
    assert!(blocks(4, true).check().is_ok());
    for (low, high) in [(0.0, 0.5), (0.6, 0.5), (0.5, 1.1), (f64::NAN, 0.5)] {
        assert!(corruption(low, high, LossWeight::One).check().is_err());
    }
}

#[test]
fn strata_cover_the_range_of_the_ratio() {
    // Long enough that the masked share tells the ratio to 0.025.
    let columns = Columns::new(&[(0, 10_000)], &[0.0]);
    let objective = blocks(8, false);
    for number in 0..5 {
        let mut out = ModelBatch::default();
        let draw = Draw {
            strata: 5,
            ..Draw::new(3, number)
        };
        objective
            .prepare(&columns.batch(), draw, &mut out)
            .expect("a valid batch");
        let masked = out.input_ids[..10_000].iter().filter(|id| **id == MASK);
        let share = masked.count() as f64 / 10_000.0;
        let low = 0.3 + 0.1 * number as f64;
        assert!(
            (low - 0.025..low + 0.125).contains(&share),
            "{number}: {share}"
        );
    }
}

/// One example of which the data masks the positions 2 and 5, beside one whose mask is drawn.
fn fixed() -> Columns {
    let mut columns = Columns::new(&[(2, 4), (1, 3)], &[1.0]);
    columns.noisy_ids = columns.ids.clone();
    columns.noisy_ids[2] = MASK;
    columns.noisy_ids[5] = MASK;
    columns.noisy_ids[6..].fill(DRAWN);
    columns
}

#[test]
fn the_data_may_fix_the_corruption() {
    let columns = fixed();
    for objective in objectives() {
        let one = columns.prepare(&*objective, 1, 0);
        // The weights force the second example, and not the first.
        assert_eq!(one.input_ids[..6], columns.noisy_ids[..6]);
        let second = one.offsets[1] as usize;
        assert_eq!(one.input_ids[second + 1..second + 4], [MASK; 3]);
        let two = columns.prepare(&*objective, 9, 4);
        assert_eq!(one.input_ids[..6], two.input_ids[..6]);
        assert_eq!(one.weights[..6], two.weights[..6]);
    }
    let half = MaskedDiffusion {
        corruption: corruption(1e-3, 1.0, LossWeight::InverseRatio),
        pad_to_multiple_of: 4,
    };
    let out = columns.prepare(&half, 1, 0);
    assert_eq!(out.weights[2], 2.0, "2 of 4 are masked");
    assert_eq!(out.input_ids[6..8], [MASK; 2], "copies of the last token");
}

#[test]
fn noise_that_is_no_mask_is_refused() {
    for (position, id, what) in [
        (3, 7, "is 7, neither"),
        (0, MASK, "masks a token of the prompt"),
    ] {
        let mut columns = fixed();
        columns.noisy_ids[position] = id;
        for objective in objectives() {
            let error = objective
                .prepare(
                    &columns.batch(),
                    Draw::default(),
                    &mut ModelBatch::default(),
                )
                .expect_err("refused");
            let message = error.to_string();
            assert!(message.contains(what), "{message}");
            assert!(
                message.contains(&format!("position {position}")),
                "{message}"
            );
        }
    }
}
