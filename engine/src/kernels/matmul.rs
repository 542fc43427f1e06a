//! Strided matrix products through the `gemm` crate.

use std::marker::PhantomData;

use gemm::Parallelism;

/// A matrix that is read: element `(i, j)` is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Mat<'a> {
    /// `rows` rows of `columns` neighbouring elements, `row_stride` apart.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(covers(data.len(), rows, columns, row_stride));
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// A matrix that is written, with rows of neighbouring elements.
pub(crate) struct MatMut<'a> {
    start: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    /// `rows` rows of `columns` neighbouring elements, `row_stride` apart.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(covers(data.len(), rows, columns, row_stride));
        assert!(columns <= row_stride || rows <= 1);
        Self {
            start: data.as_mut_ptr(),
            rows,
            columns,
            row_stride,
            owner: PhantomData,
        }
    }
}

fn covers(len: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= len
}

/// Whether a product starts from nothing or from what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// `dst = scale * lhs rhs`.
    Overwrite,
    /// `dst += scale * lhs rhs`.
    Add,
}

/// Who computes a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// Every thread of the pool.
    All,
    /// The calling thread: inside a parallel task.
    One,
}

/// `dst (+)= scale * lhs rhs`.
///
/// # Panics
/// When the shapes do not fit; kernels check their tensors first.
pub(crate) fn matmul(
    dst: MatMut<'_>,
    into: Into,
    lhs: Mat<'_>,
    rhs: Mat<'_>,
    scale: f32,
    threads: Threads,
) {
    assert_eq!((dst.rows, dst.columns), (lhs.rows, rhs.columns));
    assert_eq!(lhs.columns, rhs.rows);
    if dst.rows == 0 || dst.columns == 0 {
        return;
    }
    let parallelism = match threads {
        Threads::All => Parallelism::Rayon(0),
        Threads::One => Parallelism::None,
    };
    // SAFETY: constructors have checked that every element of the three matrices lies inside its
    // slice, `dst` is borrowed exclusively, and strides fit in isize because slices do.
    #[expect(unsafe_code, reason = "gemm takes raw pointers")]
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.columns,
            lhs.columns,
            dst.start,
            1,
            dst.row_stride as isize,
            into == Into::Add,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
