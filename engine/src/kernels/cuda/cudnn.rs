//! Attention by cuDNN's fused kernels, where they compute what `kernels::attention` does.
//!
//! Plans are built for a [`Bucket`]: the sizes of a batch, rounded up, and tried before a batch gets
//! them ([`trial`]). How long its examples are and where they start is data. The log-sum-exp stands in the same tensor, in the same places, as the
//! portable kernels write it.

#[cfg(cudnn_attention)]
mod shim;
mod trial;

use std::ops::Range;

use candle_core::DType;
#[cfg(cudnn_attention)]
use candle_core::{Device, Result, Tensor};
use t3s_core::AttentionPattern;

#[cfg(cudnn_attention)]
use crate::kernels::{
    attention::Forwarded,
    cuda::memory::{address, indices, one_dtype, overwritten},
};
use crate::kernels::{
    attention::Heads,
    buffers::{
        CUDNN_PART_SCORES as PART_SCORES, cudnn_longest as rounded,
        cudnn_score_bytes as score_bytes,
    },
};

/// What a pair of plans (one for each pass) is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Examples of a batch at most; the surplus has no rows.
    examples: usize,
    /// Rows of the longest example at most.
    longest: usize,
    /// Rows of a batch at most.
    rows: usize,
    heads: Heads,
    causal: bool,
}

impl Bucket {
    /// That of a batch; `None` for one that cuDNN does not get. Of nothing but its arguments, so both
    /// passes of a batch answer alike.
    pub(super) fn of(
        dtype: DType,
        heads: Heads,
        offsets: &[u32],
        pattern: AttentionPattern,
    ) -> Option<Self> {
        if dtype != DType::BF16 {
            return None;
        }
        // Small heads are those of models for tests, which would wait for plans longer than for
        // steps. cudnn-frontend knows of faults where 16 does not divide the size.
        if !(64..=256).contains(&heads.head_dim) || !heads.head_dim.is_multiple_of(16) {
            return None;
        }
        let causal = match pattern {
            AttentionPattern::Causal => true,
            AttentionPattern::Bidirectional => false,
            _ => return None,
        };
        let (mut examples, mut longest) = (0usize, 0);
        for len in lengths(offsets) {
            // cuDNN 9.26 and 9.27 leave a log-sum-exp of such an example unwritten in some plans.
            if len == 1 {
                return None;
            }
            examples += 1;
            longest = longest.max(len as usize);
        }
        if examples == 0 {
            return None;
        }
        let bucket = Self {
            examples: examples.next_power_of_two(),
            longest: rounded(longest),
            rows: offsets
                .last()
                .map_or(0, |rows| *rows as usize)
                .next_power_of_two(),
            heads,
            causal,
        };
        // Places in a tensor are 32-bit numbers.
        (bucket.rows * heads.width() <= i32::MAX as usize).then_some(bucket)
    }

    /// What its batches see.
    #[cfg(cudnn_attention)]
    fn pattern(&self) -> AttentionPattern {
        match self.causal {
            true => AttentionPattern::Causal,
            false => AttentionPattern::Bidirectional,
        }
    }

    /// What cuDNN reads on the device, in one list: the lengths of the examples, then where they
    /// start in elements of the queries, of the keys and of the log-sum-exp. The surplus examples
    /// have no rows and start where the last one ends.
    fn layout(&self, offsets: &[u32]) -> Layout {
        let mut lens: Vec<u32> = lengths(offsets).collect();
        lens.resize(self.examples, 0);
        let mut starts = vec![0];
        for len in &lens {
            starts.push(starts[starts.len() - 1] + len);
        }
        let heads = self.heads;
        let mut layout = Layout {
            values: Vec::new(),
            begins: [0; 4],
        };
        layout.push(0, lens);
        for (part, width) in [
            (1, heads.width()),
            (2, heads.kv_width()),
            (3, heads.n_heads),
        ] {
            layout.push(part, starts.iter().map(|start| start * width as u32));
        }
        layout
    }
}

/// Rows of the examples that have any.
fn lengths(offsets: &[u32]) -> impl Iterator<Item = u32> {
    offsets
        .windows(2)
        .map(|w| w[1] - w[0])
        .filter(|len| *len > 0)
}

/// Four lists in one.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    values: Vec<u32>,
    /// Index of the first value of each.
    begins: [usize; 4],
}

impl Layout {
    /// Adds a list, from an address that 16 bytes divide.
    fn push(&mut self, part: usize, values: impl IntoIterator<Item = u32>) {
        self.values.resize(self.values.len().next_multiple_of(4), 0);
        self.begins[part] = self.values.len();
        self.values.extend(values);
    }
}

/// The examples of a batch in parts, one after the other: each has room for the scores of its backward
/// pass, which takes as many as if all its examples were as long as its longest. Indices into `offsets`.
pub(super) fn parts(heads: Heads, offsets: &[u32]) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let (mut examples, mut longest) = (0, 0);
    for (example, rows) in offsets.windows(2).enumerate() {
        let len = (rows[1] - rows[0]) as usize;
        (examples, longest) = (examples + usize::from(len > 0), len.max(longest));
        let fits = score_bytes(heads, examples, longest) <= PART_SCORES;
        match parts.last_mut() {
            Some(part) if fits || examples <= 1 => part.end = example + 1,
            _ => {
                parts.push(example..example + 1);
                (examples, longest) = (usize::from(len > 0), len);
            }
        }
    }
    parts
}

/// The plans for a batch, and the batch's layout on the device.
#[cfg(cudnn_attention)]
pub(super) struct Packed {
    parts: Vec<Part>,
    device: Device,
    heads: Heads,
}

/// Neighbouring examples that are computed together.
#[cfg(cudnn_attention)]
struct Part {
    /// First row and number of rows.
    rows: (usize, usize),
    plans: shim::Plans,
    /// [`Layout::values`], which lives until the pass is under way.
    layout: Tensor,
    begins: [usize; 4],
}

/// The plans for `bucket`; before the first batch gets them they are tried. `None`, which is said once,
/// where there are none or their results are wrong.
#[cfg(cudnn_attention)]
fn plans_for(
    bucket: Bucket,
    cuda: &candle_core::CudaDevice,
    device: &Device,
) -> Result<Option<shim::Plans>> {
    Ok(match shim::plans(cuda, bucket)? {
        shim::Known::Useless => None,
        shim::Known::Right(plans) => Some(plans),
        shim::Known::Untried(plans) => {
            let fault = trial::fault(bucket, plans, device)?;
            shim::settle(cuda, bucket, plans, fault)?
        }
    })
}

#[cfg(cudnn_attention)]
impl Packed {
    /// For tensors of a batch; `None` where the portable kernels compute, which is decided by their
    /// type and alignment, the shape, the pattern and the offsets, and by what this machine's cuDNN
    /// has plans for, both passes together.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn of(
        tensors: &[&Tensor],
        heads: Heads,
        offsets: &[u32],
        pattern: AttentionPattern,
    ) -> Result<Option<Self>> {
        let Device::Cuda(cuda) = tensors[0].device() else {
            return Ok(None);
        };
        let dtype = one_dtype("attention", tensors)?;
        // Views of whole rows of a new tensor are aligned.
        for tensor in tensors {
            if !address("attention", tensor)?.is_multiple_of(16) {
                return Ok(None);
            }
        }
        let device = tensors[0].device();
        let mut found = Vec::new();
        for part in parts(heads, offsets) {
            let first = offsets[part.start];
            let own: Vec<u32> = offsets[part.start..=part.end]
                .iter()
                .map(|row| row - first)
                .collect();
            let rows = own[own.len() - 1] as usize;
            if rows == 0 {
                continue;
            }
            let Some(bucket) = Bucket::of(dtype, heads, &own, pattern) else {
                return Ok(None);
            };
            // Where a part begins the log-sum-exp has to be aligned too.
            if !(first as usize * heads.n_heads).is_multiple_of(4) {
                return Ok(None);
            }
            let Some(plans) = plans_for(bucket, cuda, device)? else {
                return Ok(None);
            };
            let layout = bucket.layout(&own);
            found.push(Part {
                rows: (first as usize, rows),
                plans,
                layout: indices(&layout.values, device)?,
                begins: layout.begins,
            });
        }
        Ok((!found.is_empty()).then(|| Self {
            parts: found,
            device: device.clone(),
            heads,
        }))
    }

    /// Output and log-sum-exp.
    pub(super) fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let out = overwritten(q.shape(), q.dtype(), &self.device)?;
        let lse = overwritten((q.dim(0)?, self.heads.n_heads), DType::F32, &self.device)?;
        self.run(
            shim::Pass::Forward,
            &[
                (shim::Tensors::Q, q),
                (shim::Tensors::K, k),
                (shim::Tensors::V, v),
                (shim::Tensors::Out, &out),
                (shim::Tensors::Lse, &lse),
            ],
        )?;
        Ok((out, lse))
    }

    /// `(dq, dk, dv)`.
    pub(super) fn backward(
        &self,
        d_out: &Tensor,
        forwarded: Forwarded<'_>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let Forwarded { q, k, v, out, lse } = forwarded;
        let new = |like: &Tensor| overwritten(like.shape(), like.dtype(), &self.device);
        let (dq, dk, dv) = (new(q)?, new(k)?, new(v)?);
        self.run(
            shim::Pass::Backward,
            &[
                (shim::Tensors::Q, q),
                (shim::Tensors::K, k),
                (shim::Tensors::V, v),
                (shim::Tensors::Out, out),
                (shim::Tensors::Lse, lse),
                (shim::Tensors::DOut, d_out),
                (shim::Tensors::DQ, &dq),
                (shim::Tensors::DK, &dk),
                (shim::Tensors::DV, &dv),
            ],
        )?;
        Ok((dq, dk, dv))
    }

    fn run(&self, pass: shim::Pass, tensors: &[(shim::Tensors, &Tensor)]) -> Result<()> {
        self.parts
            .iter()
            .try_for_each(|part| part.run(&self.device, pass, tensors))
    }
}

#[cfg(cudnn_attention)]
impl Part {
    fn run(
        &self,
        device: &Device,
        pass: shim::Pass,
        tensors: &[(shim::Tensors, &Tensor)],
    ) -> Result<()> {
        let Device::Cuda(cuda) = device else {
            unreachable!("`Packed::of` has asked")
        };
        let mut addresses = shim::Addresses::default();
        for (place, tensor) in tensors {
            let rows = tensor.narrow(0, self.rows.0, self.rows.1)?;
            addresses.set(*place, address("attention", &rows)?);
        }
        let layout = address("attention", &self.layout)?;
        let lists = [
            shim::Tensors::Lengths,
            shim::Tensors::QOffsets,
            shim::Tensors::KOffsets,
            shim::Tensors::LseOffsets,
        ];
        for (place, begin) in lists.into_iter().zip(self.begins) {
            addresses.set(place, layout + 4 * begin as u64);
        }
        // Freed in the order of the stream, like everything else here: after the pass.
        let bytes = self.plans.workspace(pass).max(1);
        let workspace = overwritten(bytes, DType::U8, device)?;
        let room = address("attention", &workspace)?;
        let named = || format!("attention cudnn {pass:?}");
        crate::profile::around(cuda, named, || {
            shim::execute(cuda, self.plans, pass, &addresses, room)
        })
    }
}

/// Why the device has no cuDNN, `None` where it has it.
#[cfg(all(test, cudnn_attention))]
pub(super) fn missing(device: &candle_core::CudaDevice) -> Result<Option<String>> {
    shim::missing(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads {
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
    };

    fn bucket(offsets: &[u32]) -> Bucket {
        Bucket::of(DType::BF16, HEADS, offsets, AttentionPattern::Causal).unwrap()
    }

    #[test]
    fn batches_of_like_sizes_share_plans() {
        let one = bucket(&[0, 200, 202, 900]);
        assert_eq!((one.examples, one.longest, one.rows), (4, 768, 1024));
        assert_eq!(one, bucket(&[0, 2, 2, 600, 700, 1024]));
        assert_ne!(one, bucket(&[0, 769, 900, 1024]));
        assert_ne!(one, bucket(&[0, 600, 1025, 1027]));
        assert_ne!(one, bucket(&[0, 600, 700, 800, 900, 1000]));
    }

    #[test]
    fn the_longest_example_has_room_and_not_much_more() {
        for longest in 1..5000 {
            let room = rounded(longest);
            assert!(
                longest <= room && room <= (longest * 3 / 2).max(128),
                "{longest}: {room}"
            );
        }
        let sizes = [1, 128, 129, 192, 193, 1025, 1536, 1537].map(rounded);
        assert_eq!(sizes, [128, 128, 192, 192, 256, 1536, 1536, 2048]);
    }

    #[test]
    fn parts_cover_the_examples_and_have_room() {
        let heads = Heads {
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 128,
        };
        let offsets = |lengths: &[u32]| -> Vec<u32> {
            let mut offsets = vec![0];
            for len in lengths {
                offsets.push(offsets[offsets.len() - 1] + len);
            }
            offsets
        };
        let of = |lengths: &[u32]| -> Vec<(usize, usize)> {
            let parts = parts(heads, &offsets(lengths)).into_iter();
            parts.map(|part| (part.start, part.end)).collect()
        };
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[0, 0]), [(0, 2)]);
        // 16 of 1024 take 1 GiB; one of 4096 takes as much.
        assert_eq!(of(&[1024; 16]), [(0, 16)]);
        assert_eq!(of(&[1024; 17]), [(0, 16), (16, 17)]);
        assert_eq!(
            of(&[4096, 4000, 100, 0, 300, 4096]),
            [(0, 1), (1, 2), (2, 5), (5, 6)]
        );
        // Longer than a part has room for: by itself.
        assert_eq!(of(&[5, 9000, 0, 7]), [(0, 1), (1, 3), (3, 4)]);
        for lengths in [vec![777; 40], (1..200).map(|i| 37 * i % 3000).collect()] {
            let parts = of(&lengths);
            assert_eq!(parts[0].0, 0);
            assert_eq!(parts[parts.len() - 1].1, lengths.len());
            assert!(parts.windows(2).all(|two| two[0].1 == two[1].0));
            for (start, end) in parts {
                let own: Vec<u32> = lengths[start..end]
                    .iter()
                    .copied()
                    .filter(|l| *l > 0)
                    .collect();
                let longest = own.iter().copied().max().unwrap_or(0) as usize;
                assert!(own.len() <= 1 || score_bytes(heads, own.len(), longest) <= PART_SCORES);
            }
        }
    }

    #[test]
    fn what_cudnn_does_not_compute_is_left_to_the_portable_kernels() {
        let applies = |dtype, heads, offsets: &[u32], pattern| {
            Bucket::of(dtype, heads, offsets, pattern).is_some()
        };
        let (bf16, causal) = (DType::BF16, AttentionPattern::Causal);
        assert!(applies(bf16, HEADS, &[0, 5], causal));
        assert!(applies(
            bf16,
            HEADS,
            &[0, 5],
            AttentionPattern::Bidirectional
        ));
        assert!(!applies(DType::F32, HEADS, &[0, 5], causal));
        for pattern in [
            AttentionPattern::BlockCausal { block: 4 },
            AttentionPattern::BlockDiffusion { block: 4, views: 1 },
        ] {
            assert!(!applies(bf16, HEADS, &[0, 8], pattern));
        }
        for head_dim in [8, 32, 72, 264, 512] {
            let heads = Heads { head_dim, ..HEADS };
            assert!(!applies(bf16, heads, &[0, 5], causal), "{head_dim}");
        }
        for offsets in [&[0, 0][..], &[0, 5, 6], &[0, 1 << 23]] {
            assert!(!applies(bf16, HEADS, offsets, causal), "{offsets:?}");
        }
    }

    #[test]
    fn surplus_examples_have_no_rows_and_start_at_the_end() {
        let offsets = [0, 3, 3, 10, 12];
        let layout = bucket(&offsets).layout(&offsets);
        let list = |part: usize, n: usize| &layout.values[layout.begins[part]..][..n];
        assert_eq!(list(0, 4), [3, 7, 2, 0]);
        let starts = [0, 3, 10, 12, 12];
        assert_eq!(list(1, 5), starts.map(|start| start * 4 * 64));
        assert_eq!(list(2, 5), starts.map(|start| start * 2 * 64));
        assert_eq!(list(3, 5), starts.map(|start| start * 4));
        assert!(layout.begins.iter().all(|begin| begin.is_multiple_of(4)));
    }
}
