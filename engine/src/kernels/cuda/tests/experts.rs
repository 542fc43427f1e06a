//! Mixtures of experts: choices, routing and the products of rows sorted by expert.

use candle_core::{DType, Device, Tensor};

use super::{compare, gpu, ids, random, same, slot};
use crate::kernels::{
    Into,
    cuda::emulated::in_both_orders,
    experts,
    routing::{self, Choice, Routing},
};

fn choice(n_chosen: usize, n_groups: usize, n_groups_kept: usize) -> Choice {
    Choice {
        n_chosen,
        n_groups,
        n_groups_kept,
        normalise: true,
        scale: 2.5,
    }
}

/// Experts, and how they are chosen: more and fewer than lanes, one group, groups of one, all groups
/// kept, all experts chosen.
const CHOICES: [(usize, usize, usize, usize); 8] = [
    (256, 8, 8, 4),
    (64, 6, 1, 1),
    (40, 4, 8, 3),
    (8, 2, 4, 2),
    (8, 8, 2, 2),
    (12, 3, 12, 5),
    (70, 5, 35, 30),
    (1, 1, 1, 1),
];

/// The same experts in the same order, whatever is tied: scores are drawn from few values, whose sums are
/// tied only where the values are.
#[test]
fn choices_are_the_cpus() {
    let gpu = gpu();
    for (n_experts, n_chosen, n_groups, kept) in CHOICES {
        let choice = choice(n_chosen, n_groups, kept);
        let rows = 33;
        let draw = |name: &str, n: usize, below: u64, step: f32| -> Vec<f32> {
            let values = ids(name, n, below);
            values.iter().map(|v| *v as f32 * step).collect()
        };
        for below in [5, 4000] {
            let logits = draw("logits", rows * n_experts, below, 1.0 / 1024.0);
            let logits = Tensor::from_vec(logits, (rows, n_experts), &Device::Cpu).unwrap();
            let bias = draw("bias", n_experts, 3, 0.125);
            let bias = Tensor::from_vec(bias, n_experts, &Device::Cpu).unwrap();
            for (bias, dtype) in [(None, DType::F32), (Some(&bias), DType::BF16)] {
                let run = |dtype, device: &Device| -> Vec<Vec<u32>> {
                    let logits = logits.to_device(device).unwrap();
                    let bias = bias.map(|b| b.to_dtype(dtype).unwrap().to_device(device).unwrap());
                    let chosen = routing::chosen(&logits, bias.as_ref(), &choice).unwrap();
                    chosen.to_vec2().unwrap()
                };
                let wanted = run(DType::F32, &Device::Cpu);
                let what = format!("{choice:?}, {below} values, {dtype:?}");
                for found in in_both_orders(|| run(dtype, &Device::Cpu))
                    .into_iter()
                    .flatten()
                {
                    assert_eq!(found, wanted, "{what}");
                }
                if let Some(gpu) = &gpu {
                    assert_eq!(run(dtype, gpu), wanted, "{what}, GPU");
                }
            }
        }
    }
}

/// Scores from which no two ways of computing them choose differently: row `r` ranks the experts from
/// `r` on, modulo what there are.
fn clear_logits(rows: usize, n_experts: usize, like: &Tensor) -> Tensor {
    let n = n_experts as f32;
    let value = |i: usize| {
        let rank = (i % n_experts + 7 * (i / n_experts)) % n_experts;
        2.0 * rank as f32 / n - 1.0
    };
    let values: Vec<f32> = (0..rows * n_experts).map(value).collect();
    Tensor::from_vec(values, (rows, n_experts), like.device()).unwrap()
}

/// Rows and experts, experts chosen: experts without rows, experts with more than a tile of them, runs of
/// pairs that end early.
const ROUTED: [(usize, usize, usize); 4] = [(3, 16, 2), (150, 3, 1), (40, 5, 2), (521, 9, 4)];

#[test]
fn routing_matches_its_twin() {
    for (rows, n_experts, n_chosen) in ROUTED {
        // The only weight of a row, divided by itself, has a gradient of nothing but rounding.
        for (normalise, width) in [(n_chosen > 1, 24), (false, 13)] {
            let choice = Choice {
                normalise,
                ..choice(n_chosen, 1, 1)
            };
            let pairs = rows * n_chosen;
            let inputs = [
                random("x", &[rows, width]),
                random("sorted", &[pairs, width]),
                random("other", &[pairs, width]),
            ];
            compare("routing", &inputs, |t| {
                let logits = clear_logits(rows, n_experts, &t[0]);
                let expert = routing::chosen(&logits, None, &choice).unwrap();
                let routing = Routing::new(&logits, &expert, &choice).unwrap();
                let gathered = routing.gather(&t[0]).unwrap();
                let d_logits = routing
                    .logit_gradient(&logits, &t[1], &t[2], &choice)
                    .unwrap();
                let (plain, weighted) = (t[0].copy().unwrap(), t[0].copy().unwrap());
                routing.scatter_add(&t[1], false, &plain).unwrap();
                routing.scatter_add(&t[1], true, &weighted).unwrap();
                routing.weigh(&t[2]).unwrap();
                vec![gathered, d_logits, plain, weighted, t[2].clone()]
            });
        }
    }
}

/// Scores are f32 beside bfloat16 rows, and not rounded on the way.
#[test]
fn scores_are_not_rounded() {
    let (x, router) = (random("x", &[9, 40]), random("router", &[6, 40]));
    let rounded = [x, router].map(|t| t.to_dtype(DType::BF16).unwrap());
    let wide = rounded.clone().map(|t| t.to_dtype(DType::F32).unwrap());
    let wanted = routing::scores(&wide[0], &wide[1]).unwrap();
    let check = |found: &Tensor| {
        assert_eq!(found.dtype(), DType::F32);
        assert!(super::error(found, &wanted) <= super::F32);
    };
    let found = in_both_orders(|| routing::scores(&rounded[0], &rounded[1]).unwrap());
    found.iter().flatten().for_each(check);
    if let Some(gpu) = gpu() {
        let rounded = rounded.map(|t| t.to_device(&gpu).unwrap());
        check(&routing::scores(&rounded[0], &rounded[1]).unwrap());
    }
}

/// Rows and columns of the experts' matrices: odd ones, several tiles of tensor cores both ways, one
/// narrow one, what an adapter has.
const SIZES: [(usize, usize); 6] = [(7, 13), (72, 70), (136, 48), (24, 264), (16, 40), (48, 16)];

#[test]
fn products_of_experts_match_their_twins() {
    for ((out, width), (rows, n_experts, n_chosen)) in
        SIZES.into_iter().zip(ROUTED.into_iter().cycle())
    {
        let pairs = rows * n_chosen;
        let mut inputs = vec![
            random("x", &[pairs, width]),
            random("dy", &[pairs, out]),
            random("y", &[pairs, out]),
            random("dx", &[pairs, width]),
        ];
        inputs.extend((0..n_experts).map(|e| random(&format!("w {e}"), &[out, width])));
        let what = format!("{n_experts} experts [{out}, {width}], {pairs} pairs");
        compare(&what, &inputs, |t| {
            let choice = choice(n_chosen, 1, 1);
            let logits = clear_logits(rows, n_experts, &t[0]);
            let expert = routing::chosen(&logits, None, &choice).unwrap();
            let routing = &Routing::new(&logits, &expert, &choice).unwrap();
            let w: Vec<&Tensor> = t[4..].iter().collect();
            let (x, dy) = (&t[0], &t[1]);
            let y = experts::forward(routing, x, &w, 0.5, None).unwrap();
            let added = experts::forward(routing, x, &w, 1.0, Some(t[2].clone())).unwrap();
            let dx = experts::backward_input(routing, dy, &w, 1.0, None).unwrap();
            let more = experts::backward_input(routing, dy, &w, 2.0, Some(t[3].clone())).unwrap();
            // As adapters are: in f32 whatever the rows are.
            let wide: Vec<Tensor> = w.iter().map(|w| w.to_dtype(DType::F32).unwrap()).collect();
            let wide: Vec<&Tensor> = wide.iter().collect();
            let low = experts::forward(routing, x, &wide, 0.5, None).unwrap();
            assert!(same(&[low], std::slice::from_ref(&y)));
            let mut results = vec![y, added, dx, more];
            // The second expert is frozen; the last time some add and some start from nothing.
            for all in [Some(Into::Overwrite), Some(Into::Add), None] {
                let into = |e: usize| match all {
                    Some(into) => into,
                    None if e.is_multiple_of(2) => Into::Overwrite,
                    None => Into::Add,
                };
                let slots: Vec<Option<(Tensor, Into)>> = (0..n_experts)
                    .map(|e| (e != 1).then(|| (slot(&[out, width], x), into(e))))
                    .collect();
                experts::backward_weight(routing, dy, x, 0.5, &slots).unwrap();
                results.extend(slots.into_iter().flatten().map(|(slot, _)| slot));
            }
            results
        });
    }
}
