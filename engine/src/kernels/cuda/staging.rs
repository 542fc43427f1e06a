//! Lists of the host on their way to a GPU, through page-locked memory: a copy from there is queued like
//! a kernel, while one of ordinary memory may wait for all that is queued before it.

use std::{cell::RefCell, sync::Arc};

use candle_core::{
    CudaDevice, Result,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result::memcpy_htod_async},
    },
};

/// Copies that may be under way at once: those of more than one step.
const BUFFERS: usize = 128;
/// Bytes of a buffer at least.
const LEAST: usize = 4 << 10;

/// Page-locked memory whose last copy may be under way.
struct Buffer {
    memory: PinnedHostSlice<u8>,
    /// Behind that copy.
    copied: CudaEvent,
}

impl Buffer {
    /// Room for `bytes`.
    #[expect(unsafe_code, reason = "see the safety comment")]
    fn new(bytes: usize, stream: &CudaStream) -> Result<Self> {
        let context = stream.context();
        // SAFETY: the memory is written before it is read; any bytes are `u8`s.
        let memory = unsafe { context.alloc_pinned(bytes.next_power_of_two().max(LEAST)) };
        Ok(Self {
            memory: memory.w()?,
            copied: context.new_event(None).w()?,
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The memory goes now; an error here was one of the copy, which others see too.
        let _ = self.copied.synchronize();
    }
}

/// The buffers of a thread and a stream, used in turn.
struct Ring {
    stream: Arc<CudaStream>,
    buffers: Vec<Buffer>,
    next: usize,
}

thread_local! {
    static RING: RefCell<Option<Ring>> = const { RefCell::new(None) };
}

/// Queues a copy of `bytes` to the address `to` on the device, and comes back before it is done. Waits
/// only where [`BUFFERS`] copies are under way.
///
/// # Errors
/// When the driver has no page-locked memory, or fails.
pub(super) fn copy(bytes: &[u8], to: u64, device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    RING.with_borrow_mut(|ring| {
        let ring = match ring {
            Some(ring) if Arc::ptr_eq(&ring.stream, &stream) => ring,
            other => other.insert(Ring {
                stream: stream.clone(),
                buffers: Vec::new(),
                next: 0,
            }),
        };
        ring.copy(bytes, to)
    })
}

impl Ring {
    fn copy(&mut self, bytes: &[u8], to: u64) -> Result<()> {
        let at = self.next % BUFFERS;
        if at == self.buffers.len() {
            self.buffers.push(Buffer::new(bytes.len(), &self.stream)?);
        } else if self.buffers[at].memory.len() < bytes.len() {
            self.buffers[at] = Buffer::new(bytes.len(), &self.stream)?;
        }
        let buffer = &mut self.buffers[at];
        buffer.copied.synchronize().w()?;
        let staged = &mut buffer.memory.as_mut_slice().w()?[..bytes.len()];
        staged.copy_from_slice(bytes);
        // SAFETY: the caller names memory of the device with room for these bytes, whose end is ordered
        // behind the copy by the stream; the buffer is written again, or freed, only when `copied` has
        // passed.
        #[expect(unsafe_code, reason = "see the safety comment")]
        unsafe { memcpy_htod_async(to, staged, self.stream.cu_stream()) }.w()?;
        buffer.copied.record(&self.stream).w()?;
        self.next += 1;
        Ok(())
    }
}
