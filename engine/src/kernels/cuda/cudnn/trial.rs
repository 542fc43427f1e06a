//! What cuDNN computes is held against the portable kernels before a batch gets its plans: a library's
//! fault then costs speed, not a training run.

#[cfg(cudnn_attention)]
use candle_core::Device;
use candle_core::{DType, Result, Tensor};

use super::Bucket;
#[cfg(cudnn_attention)]
use super::{Packed, Part, shim};
use crate::kernels::buffers::CUDNN_TRIAL_ROWS;
#[cfg(cudnn_attention)]
use crate::kernels::{
    attention::Forwarded,
    cuda::{
        attention::{portable_backward, portable_forward},
        memory::indices,
    },
    normal,
};

/// Lengths of a trial's examples: several tiles, the least there may be, and one more and one less than
/// tiles have.
const LENGTHS: [usize; 7] = [1111, 2, 65, 300, 127, 64, 129];
/// How far apart rows may be, see [`distance`]. Right ones in bfloat16 are within 0.01 of those in f32 (a
/// test measures it); a row that is wrong, or was not written, is about 0.5 or more apart.
const FARTHEST: f32 = 0.05;
/// The log-sum-exp is f32 throughout; in nats.
#[cfg(cudnn_attention)]
const FARTHEST_LSE: f32 = 1e-2;

/// Lengths of examples that fit into `bucket`.
fn lengths(bucket: &Bucket) -> Vec<u32> {
    let mut left = bucket.rows.min(CUDNN_TRIAL_ROWS);
    let mut lengths = Vec::new();
    for len in LENGTHS {
        let len = len.min(bucket.longest).min(left);
        if len < 2 || lengths.len() == bucket.examples {
            break;
        }
        lengths.push(len as u32);
        left -= len;
    }
    lengths
}

/// Holds both passes of `plans` against the portable kernels: why they are of no use, `None` where they
/// are right.
///
/// # Errors
/// When the device has no room, or fails outside of cuDNN.
#[cfg(cudnn_attention)]
pub(super) fn fault(bucket: Bucket, plans: shim::Plans, device: &Device) -> Result<Option<String>> {
    let started = std::time::Instant::now();
    let mut offsets = vec![0u32];
    for len in lengths(&bucket) {
        offsets.push(offsets[offsets.len() - 1] + len);
    }
    let rows = offsets[offsets.len() - 1] as usize;
    let layout = bucket.layout(&offsets);
    let packed = Packed {
        parts: vec![Part {
            rows: (0, rows),
            plans,
            layout: indices(&layout.values, device)?,
            begins: layout.begins,
        }],
        device: device.clone(),
        heads: bucket.heads,
    };
    let draw = |name: &str, width: usize| {
        let stream = t3s_core::CounterRng::new(0, name);
        normal::draw(&stream, 1.0, &[rows, width], DType::BF16, device)
    };
    let (width, kv_width) = (bucket.heads.width(), bucket.heads.kv_width());
    let (q, k) = (draw("q", width)?, draw("k", kv_width)?);
    let (v, d_out) = (draw("v", kv_width)?, draw("d_out", width)?);

    let pattern = bucket.pattern();
    let (out, lse) = portable_forward(&q, &k, &v, bucket.heads, &offsets, pattern)?;
    let forwarded = Forwarded {
        q: &q,
        k: &k,
        v: &v,
        out: &out,
        lse: &lse,
    };
    let (dq, dk, dv) = portable_backward(&d_out, forwarded, bucket.heads, &offsets, pattern)?;
    // The same statistics for both backward passes: each pass is judged by itself.
    let by_cudnn = packed
        .forward(&q, &k, &v)
        .and_then(|forward| Ok((forward, packed.backward(&d_out, forwarded)?)));
    let ((found_out, found_lse), (found_dq, found_dk, found_dv)) = match by_cudnn {
        Ok(found) => found,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let apart = (&found_lse - &lse)?
        .abs()?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let mut faults = Vec::new();
    let mut judge = |name: &str, apart: f32, farthest: f32| {
        if apart > farthest {
            faults.push(format!("{name} by {apart:.2e}, {farthest} allowed"));
        }
    };
    judge("log-sum-exp", largest(apart), FARTHEST_LSE);
    for (name, found, wanted) in [
        ("output", &found_out, &out),
        ("dq", &found_dq, &dq),
        ("dk", &found_dk, &dk),
        ("dv", &found_dv, &dv),
    ] {
        judge(name, distance(found, wanted)?, FARTHEST);
    }
    tracing::debug!("tried cuDNN with {bucket:?} in {:?}", started.elapsed());
    Ok(match faults.is_empty() {
        true => None,
        false => Some(format!(
            "cuDNN's results are not those of the portable kernels: {}",
            faults.join("; ")
        )),
    })
}

/// The largest distance of a row of `found` from that of `wanted`, over the sum of that row's length
/// and the root mean square of all rows' lengths: rows that should be next to nothing are measured by
/// the others. Infinity where something is no number.
fn distance(found: &Tensor, wanted: &Tensor) -> Result<f32> {
    let (found, wanted) = (found.to_dtype(DType::F32)?, wanted.to_dtype(DType::F32)?);
    let lengths = |t: &Tensor| t.sqr()?.sum(1)?.sqrt()?.to_vec1::<f32>();
    let (apart, wanted) = (lengths(&(found - &wanted)?)?, lengths(&wanted)?);
    let squares: f32 = wanted.iter().map(|len| len * len).sum();
    let usual = (squares / wanted.len() as f32).sqrt();
    let relative = apart.iter().zip(&wanted).map(|(apart, len)| match *apart {
        // Also where nothing has a length.
        0.0 => 0.0,
        apart => apart / (len + usual),
    });
    Ok(largest(relative))
}

/// The largest of `values`; infinity where one is no number.
fn largest(values: impl IntoIterator<Item = f32>) -> f32 {
    let values = values.into_iter();
    values.fold(0.0, |most: f32, value| match value.is_nan() {
        true => f32::INFINITY,
        false => most.max(value),
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use t3s_core::AttentionPattern;

    use super::*;
    use crate::kernels::{
        attention::Heads,
        cuda::{
            emulated,
            tests::{attention_both_ways, attention_inputs},
        },
    };

    #[test]
    fn a_trial_fits_into_its_bucket() {
        let heads = Heads {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 64,
        };
        for examples in [1, 2, 4, 64] {
            for longest in [128, 192, 4096] {
                for rows in [2, 4, 64, 256, 8192] {
                    let bucket = Bucket {
                        examples,
                        longest,
                        rows,
                        heads,
                        causal: true,
                    };
                    let lengths = lengths(&bucket);
                    assert!(!lengths.is_empty() && lengths.len() <= examples);
                    assert!(lengths.iter().all(|len| (2..=longest as u32).contains(len)));
                    let total: u32 = lengths.iter().sum();
                    assert!(
                        total as usize <= rows.min(CUDNN_TRIAL_ROWS),
                        "{bucket:?}: {lengths:?}"
                    );
                }
            }
        }
    }

    /// 40 rows of 64 numbers, in bfloat16.
    fn rows() -> Tensor {
        let values: Vec<f32> = (0..40 * 64)
            .map(|i| ((i * 37 % 101) as f32) - 50.0)
            .collect();
        let rows = Tensor::from_vec(values, (40, 64), &Device::Cpu).unwrap();
        rows.to_dtype(DType::BF16).unwrap()
    }

    /// [`rows`] with each multiplied by its own factor.
    fn scaled(factor: impl Fn(usize) -> f32) -> Tensor {
        let factors: Vec<f32> = (0..40).map(factor).collect();
        let factors = Tensor::from_vec(factors, (40, 1), &Device::Cpu).unwrap();
        let rows = rows().to_dtype(DType::F32).unwrap();
        rows.broadcast_mul(&factors).unwrap()
    }

    #[test]
    fn rounding_passes_and_a_single_wrong_row_does_not() {
        assert_eq!(distance(&rows(), &rows()).unwrap(), 0.0);
        assert!(distance(&scaled(|_| 1.01), &rows()).unwrap() < FARTHEST);
        let only = |row: usize, factor: f32| scaled(move |r| if r == row { factor } else { 1.0 });
        for (row, factor) in [
            (0, 0.0),
            (39, -1.0),
            (17, 1.2),
            (3, f32::NAN),
            (3, f32::INFINITY),
        ] {
            let apart = distance(&only(row, factor), &rows()).unwrap();
            assert!(apart > FARTHEST, "row {row} times {factor}: {apart}");
        }
    }

    /// What two right results are apart: the portable kernels in bfloat16, and the CPU in f32.
    #[test]
    fn right_results_are_near_each_other() {
        let heads = Heads {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 64,
        };
        let offsets = [0u32, 150, 152, 217];
        for pattern in [AttentionPattern::Causal, AttentionPattern::Bidirectional] {
            let run = |dtype: DType| {
                let rounded = |t: Tensor| t.to_dtype(DType::BF16)?.to_dtype(dtype);
                let inputs = attention_inputs(heads, &offsets).map(|t| rounded(t).unwrap());
                attention_both_ways(&inputs, heads, &offsets, pattern)
            };
            let Some(found) = emulated::once(false, || run(DType::BF16)) else {
                return;
            };
            for (found, wanted) in found.iter().zip(run(DType::F32)) {
                let apart = distance(found, &wanted).unwrap();
                assert!(apart < FARTHEST / 5.0, "{pattern:?}: {apart}");
            }
        }
    }

    #[test]
    fn rows_of_next_to_nothing_are_measured_by_the_others() {
        let wanted = scaled(|row| if row == 0 { 1e-6 } else { 1.0 });
        let found = scaled(|row| if row == 0 { -1e-6 } else { 1.0 });
        assert!(distance(&found, &wanted).unwrap() < 1e-5);
        let nothing = rows().zeros_like().unwrap();
        assert_eq!(distance(&nothing, &nothing).unwrap(), 0.0);
        assert!(distance(&rows(), &nothing).unwrap() > FARTHEST);
    }
}
