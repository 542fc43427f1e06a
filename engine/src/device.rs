//! Where tensors live: the CPU, or an NVIDIA GPU in builds with the feature `cuda`.
//!
//! The driver, cuBLAS and cuRAND are opened when a GPU is asked for, cuDNN when attention first runs on
//! it. A machine without the former runs the same program on its CPU.

use candle_core::{DType, Device};
use t3s_core::plan::{DeviceChoice, Precision};

use crate::EngineError;

/// The device that `choice` names, and the type of weights and activations there.
///
/// # Errors
/// When there is no such device, this build knows none, or it does not compute in that precision;
/// what to do stands in the message.
pub fn open(choice: &DeviceChoice, precision: Precision) -> Result<(Device, DType), EngineError> {
    let device = match choice {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Auto => gpu::first().unwrap_or(Device::Cpu),
        DeviceChoice::Cuda(n) => gpu::open(*n).map_err(|message| EngineError::Device {
            device: format!("cuda:{n}"),
            message,
        })?,
    };
    let dtype = match (precision, device.is_cpu()) {
        (Precision::Bf16, true) => {
            return Err(EngineError::Device {
                device: "cpu".to_owned(),
                message: "student.precision is bf16, but the CPU computes in f32; write f32 or \
                          auto, or choose a GPU"
                    .to_owned(),
            });
        }
        (Precision::F32, _) | (Precision::Auto, true) => DType::F32,
        (Precision::Bf16 | Precision::Auto, false) => DType::BF16,
    };
    Ok((device, dtype))
}

#[cfg(feature = "cuda")]
pub(crate) use gpu::Pool;

/// What the driver calls a GPU; `None` for the CPU.
pub fn name(device: &Device) -> Option<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => device.cuda_stream().context().name().ok(),
        _ => None,
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use candle_core::Device;

    pub(super) fn first() -> Option<Device> {
        None
    }

    pub(super) fn open(_: usize) -> Result<Device, String> {
        Err(
            "this build computes on the CPU; build one for GPUs with tools/cuda-build.sh \
             (docs/cuda.md), or write cpu"
                .to_owned(),
        )
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use candle_core::{
        CudaDevice, Device,
        cuda_backend::cudarc::driver::{
            CudaContext,
            result::{self, DriverError},
            sys::{CUmemPool_attribute, CUmemoryPool},
        },
    };

    /// What is opened at run time, and where it comes from.
    const LIBRARIES: [(&str, &str); 3] = [
        ("cuda", "the NVIDIA driver"),
        (
            "cublas",
            "cuBLAS, of the CUDA toolkit or the wheel nvidia-cublas",
        ),
        (
            "curand",
            "cuRAND, of the CUDA toolkit or the wheel nvidia-curand",
        ),
    ];

    /// The first GPU, if there is one that works; says why not where one might be expected.
    pub(super) fn first() -> Option<Device> {
        if !is_present("cuda") {
            return None;
        }
        match open(0) {
            Ok(device) => Some(device),
            Err(message) => {
                tracing::warn!("computing on the CPU: {message}");
                None
            }
        }
    }

    pub(super) fn open(n: usize) -> Result<Device, String> {
        // Asking for a function of a library that is not there would be a panic.
        for (library, source) in LIBRARIES {
            if !is_present(library) {
                return Err(format!(
                    "lib{library}.so is not found: this needs {source}; install it or add its \
                     folder to LD_LIBRARY_PATH, or write cpu"
                ));
            }
        }
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            format!("{what}: {error}; see what nvidia-smi says, or write cpu")
        };
        result::init().map_err(|e| failed("the driver does not start", &e))?;
        let devices = CudaContext::device_count()
            .map_err(|e| failed("the driver does not count its devices", &e))?;
        if n >= devices.max(0) as usize {
            return Err(match devices {
                0 => "the driver has no device; see what nvidia-smi says, or write cpu".to_owned(),
                1 => "there is one device, cuda:0".to_owned(),
                _ => format!(
                    "there are {devices} devices, cuda:0 to cuda:{}",
                    devices - 1
                ),
            });
        }
        // A stream of its own: the default one would be another for every thread.
        let device =
            CudaDevice::new_with_stream(n).map_err(|e| failed("the device does not open", &e))?;
        prepare(&device).map_err(|e| failed("the device's memory pool", &e))?;
        match cfg!(cudnn_attention) {
            // Which attention that of bfloat16 is, is said when it is first computed.
            true => tracing::info!("computing on cuda:{n}"),
            false => tracing::info!(
                "computing on cuda:{n}; attention by the portable kernels: this build has no cuDNN"
            ),
        }
        Ok(Device::Cuda(device))
    }

    /// Freed memory stays with the pool, and no event is recorded for each tensor.
    fn prepare(device: &CudaDevice) -> Result<(), DriverError> {
        // SAFETY: everything runs on the one stream of this device, in its order.
        #[expect(unsafe_code, reason = "see the safety comment")]
        unsafe {
            device.disable_event_tracking();
        }
        Pool::of(device)?.set(
            CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            u64::MAX,
        )
    }

    /// The driver's stream-ordered pool that the tensors of a device come from.
    pub(crate) struct Pool(CUmemoryPool);

    impl Pool {
        /// That of `device`.
        pub(crate) fn of(device: &CudaDevice) -> Result<Self, DriverError> {
            let n = device.cuda_stream().context().ordinal();
            let ordinal = result::device::get(n as i32)?;
            // SAFETY: the ordinal is one that the driver gave.
            #[expect(unsafe_code, reason = "see the safety comment")]
            let pool = unsafe { result::device::get_default_mem_pool(ordinal)? };
            Ok(Self(pool))
        }

        /// Most bytes that tensors have held since the last reset.
        pub(crate) fn peak_bytes(&self) -> Result<u64, DriverError> {
            self.get(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
        }

        /// Lets the peak count from what is held now.
        pub(crate) fn reset_peak(&self) -> Result<(), DriverError> {
            // The driver takes no other number than 0 here, and means by it what is held.
            self.set(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
        }

        /// Bytes that the pool has from the driver and no tensor holds.
        pub(crate) fn unused_bytes(&self) -> Result<u64, DriverError> {
            let reserved = self.get(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
            let used = self.get(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
            Ok(reserved.saturating_sub(used))
        }

        fn get(&self, attribute: CUmemPool_attribute) -> Result<u64, DriverError> {
            let mut value = 0u64;
            // SAFETY: the pool is the device's own, which is never destroyed; the attributes asked for
            // here are 64-bit numbers, and this one lives through the call.
            #[expect(unsafe_code, reason = "see the safety comment")]
            unsafe {
                result::mem_pool::get_attribute(
                    self.0,
                    attribute,
                    std::ptr::from_mut(&mut value).cast(),
                )?;
            }
            Ok(value)
        }

        fn set(&self, attribute: CUmemPool_attribute, mut value: u64) -> Result<(), DriverError> {
            // SAFETY: as in `get`.
            #[expect(unsafe_code, reason = "see the safety comment")]
            unsafe {
                result::mem_pool::set_attribute(
                    self.0,
                    attribute,
                    std::ptr::from_mut(&mut value).cast(),
                )
            }
        }
    }

    /// Whether the loader finds the library under one of the names that are tried later.
    fn is_present(library: &str) -> bool {
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let plain = format!("{prefix}{library}{suffix}");
        let versions = ["", ".13", ".12", ".11", ".10", ".1"];
        versions.iter().any(|version| {
            // SAFETY: NVIDIA's libraries may be loaded at any time; they stay loaded while used.
            #[expect(unsafe_code, reason = "see the safety comment")]
            unsafe { libloading::Library::new(format!("{plain}{version}")) }.is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_computes_in_f32() {
        for precision in [Precision::Auto, Precision::F32] {
            let (device, dtype) = open(&DeviceChoice::Cpu, precision).unwrap();
            assert!(device.is_cpu());
            assert_eq!(dtype, DType::F32);
        }
        let error = open(&DeviceChoice::Cpu, Precision::Bf16).unwrap_err();
        assert!(error.to_string().contains("student.precision"), "{error}");
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let error = open(&DeviceChoice::Cuda(977), Precision::Auto).unwrap_err();
        assert!(
            error.to_string().starts_with("device cuda:977: "),
            "{error}"
        );
    }
}
