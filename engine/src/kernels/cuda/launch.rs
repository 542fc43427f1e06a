//! Kernel launches: name, grid, arguments.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::memory::address;

/// Threads of a block where the kernel does not say otherwise.
pub(super) const THREADS: u32 = 256;

/// Whole warps for `n` elements of a row, at most `most` threads.
pub(super) fn threads_for(n: usize, most: u32) -> u32 {
    n.next_multiple_of(32).clamp(32, most as usize) as u32
}

/// One `.cu` file, compiled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    #[cfg_attr(
        not(feature = "cuda"),
        expect(dead_code, reason = "the emulator has one library")
    )]
    pub name: &'static str,
    #[cfg(feature = "cuda")]
    pub ptx: &'static str,
}

/// The [`Source`] of the `.cu` file of this name.
macro_rules! source {
    ($name:literal) => {
        $crate::kernels::cuda::launch::Source {
            name: $name,
            #[cfg(feature = "cuda")]
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        }
    };
}
pub(super) use source;

/// A launch being put together; arguments in the order of the kernel's parameters.
#[must_use]
pub(super) struct Launch {
    #[cfg_attr(
        not(feature = "cuda"),
        expect(dead_code, reason = "the emulator has one library")
    )]
    source: Source,
    kernel: String,
    device: Device,
    shared: u32,
    /// Each in the first bytes of eight.
    arguments: Vec<u64>,
}

impl Launch {
    /// The kernel `name` for tensors of the type of `like`, on its device.
    pub(super) fn of(source: Source, name: &str, like: &Tensor) -> Result<Self> {
        let suffix = match like.dtype() {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            other => bail!("{name}: found {other:?}; the CUDA kernels compute in F32 or BF16"),
        };
        Ok(Self::plain(
            source,
            &format!("{name}_{suffix}"),
            like.device(),
        ))
    }

    /// The kernel `name`, which has no types to choose from.
    pub(super) fn plain(source: Source, name: &str, device: &Device) -> Self {
        Self {
            source,
            kernel: name.to_owned(),
            device: device.clone(),
            shared: 0,
            arguments: Vec::new(),
        }
    }

    /// A pointer to the tensor's first element.
    pub(super) fn tensor(mut self, tensor: &Tensor) -> Result<Self> {
        self.arguments.push(address(&self.kernel, tensor)?);
        Ok(self)
    }

    /// A pointer that may be null.
    pub(super) fn optional(mut self, tensor: Option<&Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => {
                self.arguments.push(0);
                Ok(self)
            }
        }
    }

    /// A `u32`.
    ///
    /// # Errors
    /// When `value` is none.
    pub(super) fn u32(mut self, value: usize) -> Result<Self> {
        let Ok(value) = u32::try_from(value) else {
            bail!("{}: {value} is more than a kernel can count", self.kernel)
        };
        self.arguments.push(u64::from(value));
        Ok(self)
    }

    /// A `u64`.
    pub(super) fn u64(mut self, value: u64) -> Self {
        self.arguments.push(value);
        self
    }

    /// A `float`.
    pub(super) fn f32(mut self, value: f32) -> Self {
        self.arguments.push(u64::from(value.to_bits()));
        self
    }

    /// A `double`.
    pub(super) fn f64(mut self, value: f64) -> Self {
        self.arguments.push(value.to_bits());
        self
    }

    /// Bytes of dynamic shared memory.
    pub(super) fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes as u32;
        self
    }

    /// Starts enough blocks of [`THREADS`] for one thread per element.
    pub(super) fn per_element(self, n: usize) -> Result<()> {
        self.run((n.div_ceil(THREADS as usize), 1), THREADS)
    }

    /// Starts `grid` blocks of `threads`; an empty grid is no work.
    pub(super) fn run(mut self, grid: (usize, usize), threads: u32) -> Result<()> {
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        // What a grid may be: 2^31 - 1 by 65535.
        let (Ok(x), Ok(y)) = (i32::try_from(grid.0), u16::try_from(grid.1)) else {
            bail!("{}: a grid of {} x {} blocks", self.kernel, grid.0, grid.1)
        };
        self.start([x as u32, u32::from(y), 1], threads)
    }

    fn start(&mut self, grid: [u32; 3], threads: u32) -> Result<()> {
        let mut pointers: Vec<*mut std::ffi::c_void> = self
            .arguments
            .iter_mut()
            .map(|argument| std::ptr::from_mut(argument).cast())
            .collect();
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                use candle_core::cuda_backend::{WrapErr, cudarc::driver};

                let function = device.get_or_load_custom_func(
                    &self.kernel,
                    self.source.name,
                    self.source.ptx,
                )?;
                if self.shared > DEFAULT_SHARED {
                    let most = driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    function.set_attribute(most, self.shared as i32).w()?;
                }
                // SAFETY: the arguments are those of the kernel, in its order (the emulator's tests
                // run every launch), and the tensors behind the addresses live until after this
                // call; freeing them is ordered behind the kernel by the stream.
                #[expect(unsafe_code, reason = "see the safety comment")]
                unsafe {
                    driver::result::launch_kernel(
                        function.cu_function(),
                        (grid[0], grid[1], grid[2]),
                        (threads, 1, 1),
                        self.shared,
                        device.cuda_stream().cu_stream(),
                        &mut pointers,
                    )
                    .w()
                }
            }
            #[cfg(test)]
            Device::Cpu => {
                super::emulated::launch(&self.kernel, grid, threads, self.shared, &mut pointers)
            }
            device => {
                pointers.clear();
                bail!(
                    "{}: no kernel for the device {device:?} ({grid:?} x {threads})",
                    self.kernel
                )
            }
        }
    }
}

/// Dynamic shared memory that every kernel may have without asking.
#[cfg(feature = "cuda")]
const DEFAULT_SHARED: u32 = 48 << 10;
