//! A stand-in for the GPU in unit tests: the kernels compiled as C++, one after the other on the CPU.

use std::{
    cell::Cell,
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, bail};
use libloading::Library;

use super::{gemm::Matrix, tests::counting::uncounted};
use crate::kernels::Into;

thread_local! {
    /// The compiled kernels that this thread's are emulated by.
    static LIBRARY: Cell<Option<&'static Library>> = const { Cell::new(None) };
    static REVERSED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread's kernels are emulated.
pub(super) fn is_on() -> bool {
    LIBRARY.get().is_some()
}

/// Runs `body` with every kernel of this thread emulated: twice, with blocks and threads in ascending
/// and in descending order. `None`, loudly, where there is no C++ compiler.
pub(crate) fn in_both_orders<R>(body: impl Fn() -> R) -> Option<[R; 2]> {
    Some([once(false, &body)?, once(true, &body)?])
}

/// Runs `body` with every kernel of this thread emulated, blocks and threads in descending order where
/// `reversed`. `None`, loudly, where there is no C++ compiler.
pub(crate) fn once<R>(reversed: bool, body: impl Fn() -> R) -> Option<R> {
    LIBRARY.set(Some(take()?));
    REVERSED.set(reversed);
    let guard = TurnOff;
    let result = body();
    drop(guard);
    Some(result)
}

struct TurnOff;

impl Drop for TurnOff {
    fn drop(&mut self) {
        free().extend(LIBRARY.take());
        REVERSED.set(false);
    }
}

type LaunchFn = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    c_uint,
    c_uint,
    *mut *mut c_void,
    usize,
    c_int,
) -> *const c_char;

/// Compiled kernels that no thread uses: their state is global, so each thread has its own.
fn free() -> MutexGuard<'static, Vec<&'static Library>> {
    static FREE: Mutex<Vec<&'static Library>> = Mutex::new(Vec::new());
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compiled kernels for this thread; `None` where there is no C++ compiler.
fn take() -> Option<&'static Library> {
    static COMPILED: OnceLock<Option<PathBuf>> = OnceLock::new();
    static COPIES: AtomicUsize = AtomicUsize::new(0);
    let path = COMPILED.get_or_init(compile).as_ref()?;
    if let Some(library) = free().pop() {
        return Some(library);
    }
    // Of one file the loader makes one library.
    let (process, number) = (std::process::id(), COPIES.fetch_add(1, Ordering::Relaxed));
    let copy = path.with_extension(format!("{process}-{number}.so"));
    std::fs::copy(path, &copy).expect("the library was just compiled");
    // SAFETY: the library was made a moment ago from this folder's sources; its constructors only fill
    // a table.
    #[expect(unsafe_code, reason = "see the safety comment")]
    let library = unsafe { Library::new(&copy) }.expect("the library was just compiled");
    // It stays mapped.
    std::fs::remove_file(copy).expect("it was just made");
    Some(Box::leak(Box::new(library)))
}

fn compile() -> Option<PathBuf> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
    let folder = PathBuf::from(env!("OUT_DIR"));
    let (new, library) = (
        folder.join(format!("emulated-{}.so", std::process::id())),
        folder.join("emulated.so"),
    );
    if !kernels.exists() {
        // A test binary that was carried to a machine with a GPU.
        eprintln!("SKIPPED: the CUDA kernels are not emulated: no {kernels:?} here");
        return None;
    }
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-DT3S_EMULATED"])
        // Copies of the library would share what is visible and inline: static variables too.
        .args(["-fvisibility=hidden", "-fvisibility-inlines-hidden"])
        .arg(kernels.join("cuda/emulated.cpp"))
        .arg("-o")
        .arg(&new)
        .output();
    match output {
        Ok(output) if output.status.success() => {
            std::fs::rename(&new, &library).expect("both are in OUT_DIR");
            Some(library)
        }
        Ok(output) => panic!("{compiler}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            eprintln!("SKIPPED: the CUDA kernels are not emulated: no {compiler} here ({error})");
            None
        }
    }
}

/// Runs a kernel to its end.
pub(super) fn launch(
    kernel: &str,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    arguments: &mut [*mut c_void],
) -> Result<()> {
    let library = LIBRARY
        .get()
        .expect("emulation is on only where there is a library");
    let name = CString::new(kernel).expect("kernel names have no zero byte");
    // SAFETY: the signature is that of emulated.cpp; the addresses are those of live tensors, and
    // nothing else touches them while this thread waits here.
    #[expect(unsafe_code, reason = "see the safety comment")]
    let error = unsafe {
        let launch = library
            .get::<LaunchFn>(b"emulated_launch")
            .expect("emulated.cpp has it");
        let error = launch(
            name.as_ptr(),
            grid.as_ptr(),
            threads,
            shared,
            arguments.as_mut_ptr(),
            arguments.len(),
            c_int::from(REVERSED.get()),
        );
        (!error.is_null()).then(|| CStr::from_ptr(error).to_string_lossy().into_owned())
    };
    match error {
        None => Ok(()),
        Some(error) => bail!("{kernel}: {error}"),
    }
}

/// What cuBLAS computes: products of rounded numbers, summed in f32, rounded once.
pub(super) fn gemm(
    c: Matrix<'_>,
    into: Into,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
) -> Result<()> {
    // What it needs for itself is nothing that cuBLAS would.
    uncounted(|| multiply(c, into, a, b, scale))
}

fn multiply(c: Matrix<'_>, into: Into, a: Matrix<'_>, b: Matrix<'_>, scale: f32) -> Result<()> {
    let values = |m: &Matrix<'_>| -> Result<Vec<f32>> {
        m.tensor().flatten_all()?.to_dtype(DType::F32)?.to_vec1()
    };
    let (x, y, mut z) = (values(&a)?, values(&b)?, values(&c)?);
    let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
    // What a product runs along is side by side: index arithmetic would be most of the time.
    let columns_of_b: Vec<f32> = (0..columns)
        .flat_map(|j| (0..inner).map(move |k| (k, j)))
        .map(|(k, j)| y[b.at(k, j)])
        .collect();
    for i in 0..rows {
        let row: Vec<f32> = (0..inner).map(|k| x[a.at(i, k)]).collect();
        for j in 0..columns {
            let column = &columns_of_b[j * inner..][..inner];
            let product: f32 = row.iter().zip(column).map(|(x, y)| x * y).sum();
            let before = if into == Into::Add {
                z[c.at(i, j)]
            } else {
                0.0
            };
            z[c.at(i, j)] = before + scale * product;
        }
    }
    overwrite(c.tensor(), &z)
}

/// Puts `values` in place of the tensor's elements.
pub(super) fn overwrite(tensor: &Tensor, values: &[f32]) -> Result<()> {
    struct Overwrite<'a>(&'a [f32]);
    impl InplaceOp1 for Overwrite<'_> {
        fn name(&self) -> &'static str {
            "overwrite"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let start = layout.start_offset();
            match storage {
                CpuStorage::F32(to) => to[start..start + self.0.len()].copy_from_slice(self.0),
                CpuStorage::BF16(to) => {
                    for (to, value) in to[start..].iter_mut().zip(self.0) {
                        *to = half::bf16::from_f32(*value);
                    }
                }
                _ => bail!("neither f32 nor bfloat16"),
            }
            Ok(())
        }
    }
    tensor.inplace_op1(&Overwrite(values))
}
