//! AdamW: one tensor and lists of them, every kind of moments, against the CPU.

use candle_core::{DType, Device, Tensor};

use super::{compare, gpu, in_both_orders, overwrite, random, values};
use crate::kernels::{adamw, gradients};

const STEP: adamw::Coefficients = adamw::Coefficients {
    beta1: 0.9,
    beta2: 0.99,
    keep: 0.999,
    step_size: 0.02,
    inverse_root_correction: 3.0,
    eps: 1e-8,
    rounding_seed: 77,
};

/// A step of one tensor whose gradient is halved.
fn adamw_step(
    parameter: &Tensor,
    gradient: &Tensor,
    moments: adamw::MomentPair<'_>,
    c: adamw::Coefficients,
) {
    let item = adamw::Item {
        parameter,
        gradient,
        moments,
        decays: true,
        index: 0,
    };
    let (norm, factor) = (2.0, 0.5);
    adamw::step(&[item], c, &gradients::Clip::Known { norm, factor }).unwrap();
}

#[test]
fn adamw_matches_its_twin() {
    let inputs = [random("p", &[701])];
    compare("adamw", &inputs, |t| {
        let state = |name| random(name, &[701]).to_device(t[0].device()).unwrap();
        let (g, m, v) = (state("g"), state("m"), state("v").abs().unwrap());
        adamw_step(&t[0], &g, adamw::MomentPair::Full(&m, &v), STEP);
        vec![t[0].clone(), m, v]
    });
}

/// Tensors of several sizes, types and kinds of moments in one step, by a clip that is on the device.
#[test]
fn adamw_of_a_list_is_that_of_its_tensors() {
    // Two chunks, a part of one, and one that no eight divides.
    let sizes = [40_000, 256, 37];
    // Below 1, where the neighbours of a bfloat16 are within the bound.
    let inputs = sizes.map(|n| (random("p", &[n]) * 0.9).unwrap());
    let step = |t: &[Tensor], clip_to: f64| {
        let on = t[0].device();
        let g: Vec<Tensor> = sizes
            .iter()
            .map(|n| random("g", &[*n]).to_device(on).unwrap())
            .collect();
        let zeros = |n: usize, dtype| Tensor::zeros(n, dtype, on).unwrap();
        let full: Vec<_> = [(40_000, DType::F32), (256, DType::BF16)]
            .map(|(n, dtype)| (zeros(n, dtype), zeros(n, dtype)))
            .to_vec();
        let quantised = || adamw::Quantised::zeros(t[2].shape(), on).unwrap();
        let (m, v) = (quantised(), quantised());
        let item = |at: usize, moments, decays| adamw::Item {
            parameter: &t[at],
            gradient: &g[at],
            moments,
            decays,
            index: at as u32,
        };
        let items = [
            item(0, adamw::MomentPair::Full(&full[0].0, &full[0].1), true),
            item(1, adamw::MomentPair::Full(&full[1].0, &full[1].1), false),
            item(2, adamw::MomentPair::Quantised(&m, &v), true),
        ];
        let slots: Vec<&Tensor> = g.iter().collect();
        let clip = gradients::clip(&slots, clip_to, &[], None).unwrap();
        adamw::step(&items, STEP, &clip).unwrap();
        let mut results = t.to_vec();
        results.extend([full[0].0.clone(), full[0].1.clone(), m.scales, v.scales]);
        results
    };
    compare("adamw of a list", &inputs, |t| step(t, 3.0));

    // A gradient that is no number leaves everything as it is.
    let check = |device: &Device| {
        let p = Tensor::ones(9, DType::F32, device).unwrap();
        let zeros = || Tensor::zeros(9, DType::F32, device).unwrap();
        let (g, m, v) = (zeros(), zeros(), zeros());
        let bad = Tensor::new(&[f32::NAN], device).unwrap();
        let clip = gradients::clip(&[&bad], 1.0, &[], None).unwrap();
        let item = adamw::Item {
            parameter: &p,
            gradient: &g,
            moments: adamw::MomentPair::Full(&m, &v),
            decays: true,
            index: 0,
        };
        adamw::step(&[item], STEP, &clip).unwrap();
        assert_eq!(values(&p), [1.0; 9]);
    };
    in_both_orders(|| check(&Device::Cpu));
    if let Some(gpu) = gpu() {
        check(&gpu);
    }
}

/// The draws are the same, so the emulated moments are, bit for bit. A GPU fuses multiply-adds, which
/// moves a sum by its last bit, and one that a draw stands at to the other neighbour.
#[test]
fn adamw_with_bfloat16_moments_matches_its_twin() {
    let n = 5001;
    let run = |dtype, device: &Device| -> [Vec<f32>; 3] {
        let of = |name: &str, dtype| {
            let rounded = random(name, &[n]).to_dtype(DType::BF16).unwrap();
            rounded.to_dtype(dtype).unwrap().to_device(device).unwrap()
        };
        let (p, m) = (of("p", dtype), of("m", DType::BF16));
        let v = of("v", DType::F32).abs().unwrap();
        let v = v.to_dtype(DType::BF16).unwrap();
        for step in 0..3 {
            let c = adamw::Coefficients {
                rounding_seed: 7 + step,
                ..STEP
            };
            let g = of(&format!("g{step}"), DType::F32);
            adamw_step(&p, &g, adamw::MomentPair::Full(&m, &v), c);
        }
        [p, m, v].map(|t| values(&t))
    };
    let wanted = run(DType::F32, &Device::Cpu);
    let gpu = gpu();
    for dtype in [DType::F32, DType::BF16] {
        if let Some(both) = in_both_orders(|| run(dtype, &Device::Cpu)) {
            for found in both {
                assert_eq!(found[1..], wanted[1..], "{dtype:?}");
                if dtype == DType::F32 {
                    assert_eq!(found[0], wanted[0]);
                }
            }
        }
        if let Some(gpu) = &gpu {
            for (found, wanted) in run(dtype, gpu)[1..].iter().zip(&wanted[1..]) {
                let off = |(f, w): &(&f32, &f32)| (*f - *w).abs() > 1e-6 * w.abs();
                let others: Vec<_> = found.iter().zip(wanted).filter(off).collect();
                assert!(others.len() < n / 100, "{dtype:?}: {others:?}");
                // Numbers of up to 1 have their neighbours within 2^-8; three steps.
                let near = |(f, w): &&(&f32, &f32)| (*f - *w).abs() <= 3.0 / 256.0;
                assert!(
                    others.iter().all(|pair| near(&pair)),
                    "{dtype:?}: {others:?}"
                );
            }
        }
    }
}

/// The codes are the same; the last of three steps moves the parameter, so that it is rounded once.
#[test]
fn adamw_with_8_bit_moments_matches_its_twin() {
    let inputs = [random("p", &[701])];
    compare("adamw 8bit", &inputs, |t| {
        let g = |step| {
            random(&format!("g{step}"), &[701])
                .to_device(t[0].device())
                .unwrap()
        };
        let zeros = || adamw::Quantised::zeros(t[0].shape(), t[0].device()).unwrap();
        let (m, v) = (zeros(), zeros());
        let other = t[0].to_dtype(DType::F32).unwrap().copy().unwrap();
        for (step, parameter) in [&other, &other, &t[0]].into_iter().enumerate() {
            adamw_step(
                parameter,
                &g(step),
                adamw::MomentPair::Quantised(&m, &v),
                STEP,
            );
        }
        vec![t[0].clone(), m.codes, m.scales, v.codes, v.scales]
    });
}

/// What is stored is one of the two neighbours, and the mean of many is the number itself.
#[test]
fn bfloat16_parameters_are_rounded_without_bias() {
    let n = 4000;
    let zeros = || Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();
    let Some([stored, again]) = in_both_orders(|| {
        let parameter = zeros().to_dtype(DType::BF16).unwrap();
        overwrite(&parameter, &vec![1.0; n]).unwrap();
        // A quarter of the way from 1 to the next bfloat16 below, 1 - 2^-8.
        let c = adamw::Coefficients {
            keep: 1.0 - 0.25 / 256.0,
            ..STEP
        };
        adamw_step(
            &parameter,
            &zeros(),
            adamw::MomentPair::Full(&zeros(), &zeros()),
            c,
        );
        values(&parameter)
    }) else {
        return;
    };
    assert_eq!(stored, again);
    let below = 1.0 - 1.0 / 256.0;
    assert!(stored.iter().all(|v| *v == 1.0 || *v == below));
    let down = stored.iter().filter(|v| **v == below).count() as f64 / n as f64;
    // Four standard deviations of a mean of 4000.
    assert!(
        (down - 0.25).abs() < 4.0 * (0.25 * 0.75 / n as f64).sqrt(),
        "{down}"
    );
}
