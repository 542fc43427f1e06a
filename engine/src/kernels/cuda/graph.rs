//! A sequence of launches recorded once and started again as a whole (a CUDA graph): what the host
//! spends on a launch is spent once for all of them.
//!
//! Recorded launches keep their addresses and arguments: whatever changes from one replay to the next
//! lives on the device. cuBLAS gets a fixed workspace first, since its own might be allocated in the
//! middle of a recording.

use candle_core::{Device, Result};

/// What cuBLAS may use on a large GPU, by its manual.
#[cfg(feature = "cuda")]
const WORKSPACE_BYTES: usize = 32 << 20;

/// While it lives, cuBLAS computes in this memory. Nothing on the CPU.
#[must_use]
pub(crate) struct Workspace {
    #[cfg(feature = "cuda")]
    device: Device,
    #[cfg(feature = "cuda")]
    _memory: Option<candle_core::Tensor>,
}

#[cfg(not(feature = "cuda"))]
impl Workspace {
    pub(crate) fn of(_: &Device) -> Result<Self> {
        Ok(Self {})
    }
}

#[cfg(feature = "cuda")]
impl Workspace {
    /// Allocates it and hands it to cuBLAS.
    #[expect(unsafe_code, reason = "see the safety comment")]
    pub(crate) fn of(device: &Device) -> Result<Self> {
        use candle_core::cuda_backend::cudarc::cublas::sys;

        let mut memory = None;
        if let Device::Cuda(cuda) = device {
            let tensor =
                super::memory::overwritten(WORKSPACE_BYTES, candle_core::DType::U8, device)?;
            let start = super::memory::address("cuBLAS workspace", &tensor)?;
            // SAFETY: the memory is that long, from the stream-ordered pool (aligned to 256 bytes), and
            // lives until `drop` has given cuBLAS its own back; its use and its end are ordered by the
            // one stream.
            let set = unsafe {
                sys::cublasSetWorkspace_v2(
                    *cuda.cublas_handle().handle(),
                    start as *mut _,
                    WORKSPACE_BYTES,
                )
            };
            set.result()
                .map_err(|error| candle_core::Error::Msg(format!("cuBLAS workspace: {error:?}")))?;
            memory = Some(tensor);
        }
        Ok(Self {
            device: device.clone(),
            _memory: memory,
        })
    }
}

#[cfg(feature = "cuda")]
impl Drop for Workspace {
    #[expect(unsafe_code, reason = "see the safety comment")]
    fn drop(&mut self) {
        use candle_core::cuda_backend::cudarc::cublas::result::set_stream;

        if let Device::Cuda(cuda) = &self.device {
            // Setting the stream, to the one it has, sets cuBLAS's own workspace again.
            // SAFETY: both handles are the device's, which lives.
            let set = unsafe {
                set_stream(
                    *cuda.cublas_handle().handle(),
                    cuda.cuda_stream().cu_stream().cast(),
                )
            };
            if let Err(error) = set {
                tracing::error!("cuBLAS keeps a workspace that is gone: {error:?}");
            }
        }
    }
}

/// Launches that can be started again together.
pub(crate) struct Recording {
    #[cfg(feature = "cuda")]
    graph: candle_core::cuda_backend::cudarc::driver::CudaGraph,
}

#[cfg(not(feature = "cuda"))]
impl Recording {
    /// There is nothing to record on.
    pub(crate) fn of(_: &Device, _: impl FnOnce() -> Result<()>) -> Option<Self> {
        None
    }

    pub(crate) fn replay(&self) -> Result<()> {
        candle_core::bail!("a build without the feature cuda records nothing")
    }
}

#[cfg(feature = "cuda")]
impl Recording {
    /// Records what `launches` starts on the device's stream; nothing of it runs. `None`, with one
    /// warning, where the driver refuses: then the launches have to be started one by one. They must
    /// have run before (kernels are loaded at first use), and allocate and free nothing.
    pub(crate) fn of(device: &Device, launches: impl FnOnce() -> Result<()>) -> Option<Self> {
        let Device::Cuda(device) = device else {
            return None;
        };
        match Self::record(device, launches) {
            Ok(graph) => Some(Self { graph }),
            Err(error) => {
                static ONCE: std::sync::Once = std::sync::Once::new();
                ONCE.call_once(|| {
                    tracing::warn!("steps are launched kernel by kernel: no CUDA graph: {error}");
                });
                None
            }
        }
    }

    fn record(
        device: &candle_core::CudaDevice,
        launches: impl FnOnce() -> Result<()>,
    ) -> Result<candle_core::cuda_backend::cudarc::driver::CudaGraph> {
        use candle_core::cuda_backend::{
            WrapErr,
            cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
        };

        let stream = device.cuda_stream();
        // Relaxed: the other modes would refuse calls of other libraries that do no harm here.
        stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
            .w()?;
        let launched = launches();
        // Whatever happened: the stream has to compute again.
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).w();
        launched?;
        match graph? {
            Some(graph) => Ok(graph),
            None => candle_core::bail!("the driver recorded nothing"),
        }
    }

    /// Starts everything once.
    pub(crate) fn replay(&self) -> Result<()> {
        use candle_core::cuda_backend::WrapErr;

        self.graph.launch().w()
    }
}
