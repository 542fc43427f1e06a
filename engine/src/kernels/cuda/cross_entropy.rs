//! Twin of `kernels::cross_entropy`.

use candle_core::{DType, Device, Result, Tensor};
use t3s_core::{CounterRng, table::Sketch};

use super::{
    embedding::{blank, forward as gather, scale_rows, scatter_scaled},
    gemm::{Matrix, gemm},
    launch::{Launch, Source, source, threads_for_eights},
    memory::{indices, one_dtype, overwritten, upload, zeros},
};
use crate::kernels::{
    Into,
    buffers::head_chunk_rows,
    cross_entropy::{
        HeadGradients, HeadOutput, HeadRow, PendingHead, SketchSpec, empty_without_rows,
    },
};

const SOURCE: Source = source!("cross_entropy");

/// Threads per row of logits, at most.
const THREADS: u32 = 512;
/// Rows of a sign matrix made at a time.
const SIGN_ROWS: usize = 1 << 14;

/// Statistics and gradients; shapes and rows have been checked.
pub(in crate::kernels) fn run(
    hidden: &Tensor,
    weight: &Tensor,
    rows: &[HeadRow],
    sketch: Option<SketchSpec>,
    gradients: HeadGradients<'_>,
) -> Result<(PendingHead, Option<Tensor>)> {
    let ((_, width), (vocab, _)) = (hidden.dims2()?, weight.dims2()?);
    let dtype = one_dtype("head", &[hidden, weight])?;
    let device = hidden.device();
    let chunk_rows = head_chunk_rows(vocab, rows.len());
    let backward = matches!(gradients, HeadGradients::Hidden { .. });
    // Only who reads them again needs the errors as floats.
    let keep = sketch.is_some() || (backward && dtype == DType::F32);
    let d_hidden = backward.then(|| blank(hidden)).transpose()?;

    // Buffers of a whole chunk; the last chunk uses their first rows.
    let logits = overwritten((chunk_rows, vocab), DType::F32, device)?;
    // In f32 the logits themselves become the residual.
    let rounded = match backward && dtype != DType::F32 {
        true => Some(overwritten((chunk_rows, vocab), dtype, device)?),
        false => None,
    };
    let statistics = overwritten((rows.len().max(1), 4), DType::F32, device)?;
    let mut sketches = sketch
        .map(|spec| Sketcher::new(spec, rows.len(), device))
        .transpose()?;
    let mut weight_slot = gradients.weight_slot();
    empty_without_rows(weight_slot, rows)?;
    let mut done = 0;
    for chunk in rows.chunks(chunk_rows) {
        let n = chunk.len();
        let column = |of: fn(&HeadRow) -> u32| chunk.iter().map(of).collect::<Vec<u32>>();
        let from = column(|row| row.row);
        let h = gather(hidden, &from)?;
        let logits = logits.narrow(0, 0, n)?;
        gemm(
            "head",
            &logits,
            Into::Overwrite,
            Matrix::new(&h)?,
            Matrix::new(weight)?.t(),
            1.0,
        )?;
        let rounded = rounded.as_ref().map(|r| r.narrow(0, 0, n)).transpose()?;
        Launch::of(SOURCE, "head_statistics", &h)?
            .tensor(&logits)?
            .tensor(&h)?
            .tensor(&indices(&column(|row| row.target), device)?)?
            .tensor(&statistics.narrow(0, done, n)?)?
            .optional(rounded.as_ref())?
            .u32(vocab)?
            .u32(width)?
            .u32(usize::from(keep))?
            .run((n, 1), threads_for_eights(vocab, THREADS))?;
        if let Some(sketches) = &mut sketches {
            sketches.add(&logits, &h, done)?;
        }
        if let Some(d_hidden) = &d_hidden {
            let residual = rounded.as_ref().unwrap_or(&logits);
            let factors: Vec<f32> = chunk.iter().map(|row| row.coefficient).collect();
            let factors = upload(&factors, device)?;
            let dh = overwritten((n, width), DType::F32, device)?;
            let (r, w) = (Matrix::new(residual)?, Matrix::new(weight)?);
            gemm("head", &dh, Into::Overwrite, r, w, 1.0)?;
            scatter_scaled(&dh, &indices(&from, device)?, &factors, d_hidden)?;
            if let Some((slot, into)) = &mut weight_slot {
                scale_rows(&h, &factors)?;
                gemm("head", slot, *into, r.t(), Matrix::new(&h)?, 1.0)?;
                *into = Into::Add;
            }
        }
        done += n;
    }
    let statistics = Statistics {
        values: statistics,
        coefficients: rows.iter().map(|row| row.coefficient).collect(),
        sketches,
    };
    Ok((PendingHead::on_device(statistics), d_hidden))
}

/// What the kernels write, row by row.
#[derive(Debug)]
pub(in crate::kernels) struct Statistics {
    /// `[rows, 4]`: log-prob, entropy, rank, gradient norm.
    values: Tensor,
    /// Of the rows.
    coefficients: Vec<f32>,
    sketches: Option<Sketcher>,
}

impl Statistics {
    pub(in crate::kernels) fn rows(&self) -> &Tensor {
        &self.values
    }

    /// The one wait for the device.
    pub(in crate::kernels) fn read(self) -> Result<HeadOutput> {
        let mut output = HeadOutput::default();
        if !self.coefficients.is_empty() {
            let values: Vec<f32> = self.values.flatten_all()?.to_vec1()?;
            for (coefficient, values) in self.coefficients.iter().zip(values.chunks_exact(4)) {
                output.logp.push(values[0]);
                output.entropy.push(values[1]);
                output.rank.push(values[2] as u32);
                output.grad_norm.push(values[3]);
                if *coefficient != 0.0 {
                    output.loss_sum -= f64::from(*coefficient) * f64::from(values[0]);
                }
            }
        }
        output.sketch = self.sketches.map(Sketcher::finish).transpose()?;
        Ok(output)
    }
}

/// `s = (R1 (p - e_y)) * (R2 h) / sqrt(k)`, with the signs of the CPU's twin.
#[derive(Debug)]
struct Sketcher {
    of_errors: CounterRng,
    of_hidden: CounterRng,
    width: usize,
    /// `[rows, width]`, f32.
    sketches: Tensor,
}

impl Sketcher {
    fn new(spec: SketchSpec, rows: usize, device: &Device) -> Result<Self> {
        Ok(Self {
            of_errors: CounterRng::new(spec.seed, "sketch-vocab"),
            of_hidden: CounterRng::new(spec.seed, "sketch-hidden"),
            width: spec.width,
            sketches: zeros((rows, spec.width), DType::F32, device)?,
        })
    }

    /// Rows `done..` of the sketches, from `errors [n, vocab]` (f32) and `h [n, width]`.
    fn add(&mut self, errors: &Tensor, h: &Tensor, done: usize) -> Result<()> {
        let (n, device) = (errors.dim(0)?, errors.device());
        let to = self.sketches.narrow(0, done, n)?;
        project(errors, &self.of_errors, &to)?;
        let wide = overwritten(h.shape(), DType::F32, device)?;
        let elements = h.elem_count();
        Launch::of(SOURCE, "widen", h)?
            .tensor(h)?
            .tensor(&wide)?
            .u64(elements as u64)
            .per_eight(elements)?;
        let of_hidden = overwritten((n, self.width), DType::F32, device)?;
        project(&wide, &self.of_hidden, &of_hidden)?;
        Launch::plain(SOURCE, "sketch_product", device)
            .tensor(&to)?
            .tensor(&of_hidden)?
            .f32(1.0 / (self.width as f32).sqrt())
            .u64((n * self.width) as u64)
            .per_element(n * self.width)
    }

    fn finish(self) -> Result<Sketch> {
        Ok(Sketch {
            width: self.width,
            values: self.sketches.flatten_all()?.to_vec1()?,
        })
    }
}

/// `y = x R`, with `R` made a few rows at a time. `x [rows, n]`, `y [rows, k]`, f32.
fn project(x: &Tensor, stream: &CounterRng, y: &Tensor) -> Result<()> {
    let ((_, n), (_, k)) = (x.dims2()?, y.dims2()?);
    for start in (0..n).step_by(SIGN_ROWS) {
        let len = SIGN_ROWS.min(n - start);
        let signs = overwritten((len, k), DType::F32, x.device())?;
        Launch::plain(SOURCE, "sketch_signs", x.device())
            .tensor(&signs)?
            .u64(stream.key())
            .u32(start)?
            .u32(len)?
            .u32(k)?
            .per_element(len * k)?;
        let into = if start == 0 {
            Into::Overwrite
        } else {
            Into::Add
        };
        let x = Matrix::new(x)?.columns(start, len);
        gemm("sketch", y, into, x, Matrix::new(&signs)?, 1.0)?;
    }
    Ok(())
}
