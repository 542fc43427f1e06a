//! cudnn_attention.cpp from Rust: one handle for each device, opened at first use, and the plans that
//! were built with it. They live as long as the program.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr::null_mut,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{
    CudaDevice, Result, bail,
    cuda_backend::{WrapErr, cudarc::driver::CudaStream},
};

use super::Bucket;

/// cuDNN 9.6 is the first whose packed statistics, and packed backward passes of grouped heads, the
/// headers let through; 9.10.0 and 9.10.1 they refuse.
const OLDEST: u64 = 90600;

/// Bytes that a backward pass may work in. It keeps the gradient of every score in bfloat16, to add in one
/// order; where that of a single example is more than this (8192 rows of 32 heads take 4 GiB), the
/// portable kernels compute.
const MOST_WORKSPACE: u64 = 5 << 30;

/// `Shape` of cudnn_attention.cpp.
#[repr(C)]
struct Shape {
    examples: i64,
    longest: i64,
    rows: i64,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    causal: i32,
    compute_capability: i32,
}

impl Shape {
    fn of(bucket: Bucket, compute_capability: i32) -> Self {
        let heads = bucket.heads;
        Self {
            examples: bucket.examples as i64,
            longest: bucket.longest as i64,
            rows: bucket.rows as i64,
            heads: heads.n_heads as i64,
            kv_heads: heads.n_kv_heads as i64,
            head_dim: heads.head_dim as i64,
            causal: i32::from(bucket.causal),
            compute_capability,
        }
    }
}

/// The tensors of both passes, as cudnn_attention.cpp numbers them, from 0.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tensors {
    Q,
    K,
    V,
    Out,
    Lse,
    DOut,
    DQ,
    DK,
    DV,
    Lengths,
    QOffsets,
    KOffsets,
    LseOffsets,
}

/// Where each of them is; 0 for those of the other pass.
#[derive(Debug, Default)]
pub(super) struct Addresses([u64; Tensors::LseOffsets as usize + 1]);

impl Addresses {
    pub(super) fn set(&mut self, tensor: Tensors, address: u64) {
        self.0[tensor as usize] = address;
    }
}

/// Forward or backward.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pass {
    Forward,
    Backward,
}

/// What a bucket is computed with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plans {
    plans: *mut c_void,
    workspaces: [u64; 2],
}

impl Plans {
    /// Bytes that the pass works in.
    pub(super) fn workspace(&self, pass: Pass) -> usize {
        self.workspaces[pass as usize] as usize
    }
}

/// What is known of the plans for a bucket.
#[derive(Debug, Clone, Copy)]
pub(super) enum Known {
    /// There are none, or their results were wrong.
    Useless,
    /// Built, and not yet held against anything.
    Untried(Plans),
    /// Their results were right.
    Right(Plans),
}

mod sys {
    use super::{Shape, c_char, c_int, c_void};

    // SAFETY: the signatures are those of cudnn_attention.cpp.
    #[expect(unsafe_code, reason = "see the safety comment")]
    unsafe extern "C" {
        pub(super) fn t3s_cudnn_open(
            version: *mut u64,
            message: *mut c_char,
            capacity: usize,
        ) -> c_int;
        pub(super) fn t3s_cudnn_handle(
            handle: *mut *mut c_void,
            message: *mut c_char,
            capacity: usize,
        ) -> c_int;
        pub(super) fn t3s_cudnn_set_stream(
            handle: *mut c_void,
            stream: *mut c_void,
            message: *mut c_char,
            capacity: usize,
        ) -> c_int;
        #[cfg(test)]
        pub(super) fn t3s_cudnn_validate(
            shape: *const Shape,
            message: *mut c_char,
            capacity: usize,
        ) -> c_int;
        pub(super) fn t3s_cudnn_build(
            handle: *mut c_void,
            shape: *const Shape,
            plans: *mut *mut c_void,
            workspaces: *mut u64,
            message: *mut c_char,
            capacity: usize,
        ) -> c_int;
        pub(super) fn t3s_cudnn_execute(
            handle: *mut c_void,
            plans: *mut c_void,
            backward: i32,
            addresses: *const u64,
            workspace: u64,
            message: *mut c_char,
            capacity: usize,
        ) -> c_int;
    }
}

/// The error text of `call`, which is given room for it.
fn called(call: impl FnOnce(*mut c_char, usize) -> c_int) -> std::result::Result<(), String> {
    let mut message = [0u8; 1024];
    match call(message.as_mut_ptr().cast(), message.len()) {
        0 => Ok(()),
        _ => Err(match CStr::from_bytes_until_nul(&message) {
            Ok(text) => text.to_string_lossy().into_owned(),
            Err(_) => "no text".to_owned(),
        }),
    }
}

/// The library's version; opens it.
fn open() -> std::result::Result<u64, String> {
    let mut version = 0;
    called(|message, capacity| {
        // SAFETY: all three are places of this function; `SESSIONS` is locked.
        #[expect(unsafe_code, reason = "see the safety comment")]
        unsafe {
            sys::t3s_cudnn_open(&raw mut version, message, capacity)
        }
    })
    .map_err(|error| {
        format!(
            "{error}; install cuDNN 9 (the wheel nvidia-cudnn-cu13) or add its folder to \
             LD_LIBRARY_PATH"
        )
    })?;
    match version >= OLDEST {
        true => Ok(version),
        false => Err(format!(
            "cuDNN {} is too old; install 9.6 or newer",
            dotted(version)
        )),
    }
}

/// 90600 as 9.6.0.
fn dotted(version: u64) -> String {
    format!(
        "{}.{}.{}",
        version / 10000,
        version / 100 % 100,
        version % 100
    )
}

/// cuDNN on one device.
struct Session {
    handle: *mut c_void,
    compute_capability: i32,
    /// What the handle is ordered by; the handle belongs to its context, so it stays.
    stream: Arc<CudaStream>,
    /// Those of each bucket that was asked for.
    plans: Vec<(Bucket, Known)>,
}

// SAFETY: cuDNN's handles and plans belong to no thread; `SESSIONS` lets one in at a time.
#[expect(unsafe_code, reason = "see the safety comment")]
unsafe impl Send for Session {}

/// Each device's, by its number; an error where it has none.
static SESSIONS: Mutex<Vec<(usize, std::result::Result<Session, String>)>> = Mutex::new(Vec::new());

impl Session {
    /// Opens the library for the device of `stream`, whose context is current.
    fn new(stream: Arc<CudaStream>) -> std::result::Result<Self, String> {
        let context = stream.context();
        let (major, minor) = context.compute_capability().map_err(|e| e.to_string())?;
        // Asked first: it is no fault of the library, and nothing to install helps.
        if !matches!(major, 9 | 10) {
            return Err(format!(
                "cuDNN's backward pass adds packed examples in one order on GPUs of compute \
                 capability 9 and 10, and this one has {major}.{minor}"
            ));
        }
        let version = open()?;
        let mut handle = null_mut();
        called(|message, capacity| {
            // SAFETY: all three are places of this function; the library is open, the context is
            // current, and `SESSIONS` is locked.
            #[expect(unsafe_code, reason = "see the safety comment")]
            unsafe {
                sys::t3s_cudnn_handle(&raw mut handle, message, capacity)
            }
        })?;
        set_stream(handle, &stream)?;
        tracing::info!("attention in bfloat16 by cuDNN {}", dotted(version));
        Ok(Self {
            handle,
            compute_capability: major * 10 + minor,
            stream,
            plans: Vec::new(),
        })
    }

    /// Orders what follows by `stream`.
    fn order_by(&mut self, stream: Arc<CudaStream>) -> std::result::Result<(), String> {
        if !Arc::ptr_eq(&self.stream, &stream) {
            set_stream(self.handle, &stream)?;
            self.stream = stream;
        }
        Ok(())
    }

    /// Those for `bucket`, built when it is asked for the first time.
    fn plans(&mut self, bucket: Bucket) -> Known {
        if let Some((_, known)) = self.plans.iter().find(|(other, _)| *other == bucket) {
            return *known;
        }
        let known = match self.build(bucket) {
            Ok(plans) => Known::Untried(plans),
            Err(why) => self.useless(bucket, &why),
        };
        self.plans.push((bucket, known));
        known
    }

    /// What a trial has shown of `bucket`: `fault` is why its plans are of no use.
    fn settle(&mut self, bucket: Bucket, plans: Plans, fault: Option<String>) -> Known {
        let known = match fault {
            None => Known::Right(plans),
            Some(why) => self.useless(bucket, &why),
        };
        for (other, place) in &mut self.plans {
            if *other == bucket {
                *place = known;
            }
        }
        known
    }

    /// Says that `bucket` is left to the portable kernels: one warning, the rest is for who looks
    /// closer.
    fn useless(&self, bucket: Bucket, why: &str) -> Known {
        let said = |(_, known): &(Bucket, Known)| matches!(known, Known::Useless);
        match self.plans.iter().any(said) {
            false => tracing::warn!(
                "attention by the portable kernels for batches like {bucket:?}: {why}"
            ),
            true => tracing::debug!(
                "attention by the portable kernels for batches like {bucket:?}: {why}"
            ),
        }
        Known::Useless
    }

    fn build(&self, bucket: Bucket) -> std::result::Result<Plans, String> {
        let shape = Shape::of(bucket, self.compute_capability);
        let mut plans = Plans {
            plans: null_mut(),
            workspaces: [0; 2],
        };
        called(|message, capacity| {
            // SAFETY: the handle is open and its context current; the rest are places of this
            // function, two workspaces as the callee writes; `SESSIONS` is locked.
            #[expect(unsafe_code, reason = "see the safety comment")]
            unsafe {
                sys::t3s_cudnn_build(
                    self.handle,
                    &raw const shape,
                    &raw mut plans.plans,
                    plans.workspaces.as_mut_ptr(),
                    message,
                    capacity,
                )
            }
        })
        .map_err(|error| format!("cuDNN has no plan ({error})"))?;
        let most = plans.workspaces[0].max(plans.workspaces[1]);
        match most <= MOST_WORKSPACE {
            true => Ok(plans),
            false => Err(format!("cuDNN would work in {} MiB", most >> 20)),
        }
    }
}

fn set_stream(handle: *mut c_void, stream: &CudaStream) -> std::result::Result<(), String> {
    called(|message, capacity| {
        // SAFETY: the handle is open, the stream of its context lives, and `SESSIONS` is locked.
        #[expect(unsafe_code, reason = "see the safety comment")]
        unsafe {
            sys::t3s_cudnn_set_stream(handle, stream.cu_stream().cast(), message, capacity)
        }
    })
}

/// What is known of the devices. A panic under the lock leaves at most a bucket that is built again.
fn sessions() -> MutexGuard<'static, Vec<(usize, std::result::Result<Session, String>)>> {
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `body` with the device's session, its context current and its stream the handle's; with the reason
/// where it has none.
fn with_session<R>(
    device: &CudaDevice,
    body: impl FnOnce(std::result::Result<&mut Session, &str>) -> R,
) -> Result<R> {
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    let n = stream.context().ordinal();
    let mut sessions = sessions();
    let at = match sessions.iter().position(|(known, _)| *known == n) {
        Some(at) => at,
        None => {
            let session = Session::new(stream.clone());
            if let Err(why) = &session {
                tracing::warn!("attention by the portable kernels: {why}");
            }
            sessions.push((n, session));
            sessions.len() - 1
        }
    };
    Ok(match &mut sessions[at].1 {
        Ok(session) => match session.order_by(stream) {
            Ok(()) => body(Ok(session)),
            Err(error) => bail!("attention: cuDNN: {error}"),
        },
        Err(why) => body(Err(why)),
    })
}

/// What is known of the plans for `bucket` on the device; builds them when asked the first time.
pub(super) fn plans(device: &CudaDevice, bucket: Bucket) -> Result<Known> {
    with_session(device, |session| match session {
        Ok(session) => session.plans(bucket),
        Err(_) => Known::Useless,
    })
}

/// Keeps what a trial of `plans` has shown; they themselves where it has shown no `fault`.
pub(super) fn settle(
    device: &CudaDevice,
    bucket: Bucket,
    plans: Plans,
    fault: Option<String>,
) -> Result<Option<Plans>> {
    let known = with_session(device, |session| match session {
        Ok(session) => session.settle(bucket, plans, fault),
        Err(_) => Known::Useless,
    })?;
    Ok(match known {
        Known::Right(plans) => Some(plans),
        Known::Useless | Known::Untried(_) => None,
    })
}

/// Starts a pass in `workspace`, the address of as many bytes as the plans ask for.
pub(super) fn execute(
    device: &CudaDevice,
    plans: Plans,
    pass: Pass,
    addresses: &Addresses,
    workspace: u64,
) -> Result<()> {
    let started = with_session(device, |session| {
        let session = session.map_err(str::to_owned)?;
        called(|message, capacity| {
            // SAFETY: the plans were built with this handle; the addresses are those of live tensors
            // of the shapes that the plans were built for, or smaller ones, and freeing them is
            // ordered behind the pass by the stream; `SESSIONS` is locked.
            #[expect(unsafe_code, reason = "see the safety comment")]
            unsafe {
                sys::t3s_cudnn_execute(
                    session.handle,
                    plans.plans,
                    pass as i32,
                    addresses.0.as_ptr(),
                    workspace,
                    message,
                    capacity,
                )
            }
        })
    })?;
    match started {
        Ok(()) => Ok(()),
        Err(error) => bail!("attention: cuDNN: {error}"),
    }
}

/// Why the device has no session, `None` where it has one.
#[cfg(test)]
pub(super) fn missing(device: &CudaDevice) -> Result<Option<String>> {
    with_session(device, |session| session.err().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::attention::Heads;

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let _locked = sessions();
        match open() {
            Ok(version) => assert!(version >= OLDEST),
            Err(error) => {
                assert!(error.contains("libcudnn.so.9"), "{error}");
                assert!(error.contains("LD_LIBRARY_PATH"), "{error}");
            }
        }
    }

    #[test]
    fn versions_are_written_with_dots() {
        assert_eq!(dotted(91900), "9.19.0");
        assert_eq!(dotted(91002), "9.10.2");
    }

    /// As far as the headers and the library check them without a device.
    #[test]
    fn graphs_are_valid_wherever_cudnn_is() {
        let _locked = sessions();
        if let Err(error) = open() {
            eprintln!("SKIPPED: attention by cuDNN: {error}");
            return;
        }
        for compute_capability in [90, 100, 103] {
            for head_dim in [64, 80, 96, 128, 256] {
                // cuDNN's backward pass of compute capability 10 has 256 only from 9.23 on.
                if head_dim == 256 && compute_capability > 90 {
                    continue;
                }
                for (n_kv_heads, causal) in [(8, true), (8, false), (2, true), (2, false)] {
                    let bucket = Bucket {
                        examples: 8,
                        longest: 384,
                        rows: 1024,
                        heads: Heads {
                            n_heads: 8,
                            n_kv_heads,
                            head_dim,
                        },
                        causal,
                    };
                    let shape = Shape::of(bucket, compute_capability);
                    let valid = called(|message, capacity| {
                        // SAFETY: all three are places of this function; the library is open and
                        // `SESSIONS` is locked.
                        #[expect(unsafe_code, reason = "see the safety comment")]
                        unsafe {
                            sys::t3s_cudnn_validate(&raw const shape, message, capacity)
                        }
                    });
                    assert_eq!(valid, Ok(()), "{bucket:?}, {compute_capability}");
                }
            }
        }
    }
}
