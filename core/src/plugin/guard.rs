//! Components on guarded memory: each column, and the answer, ends where a page without rights
//! begins, so that one element too many ends the process. For `t3s plugin test`, in a child process.

use std::ffi::c_void;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::{
    ComponentError, ConfidenceSignal, Declaration, ObservableRef, SelectContext, SelectionStrategy,
    SignalRef, TokenView, When,
    registry::{Factory, Registration},
    table::SketchView,
};

/// Is told what a component is about to be asked.
pub type Note = &'static (dyn Fn(&str) + Send + Sync);

/// `entry`, whose signals and strategies read and write guarded copies. Model adapters are left as
/// they are.
pub fn guarded(entry: &Registration, note: Note) -> Registration {
    let factory = match entry.factory {
        Factory::Signal(make) => Factory::Signal(Box::leak(Box::new(
            move |options: &toml::Table| -> Result<Box<dyn ConfidenceSignal>, ComponentError> {
                let inner = make(options)?;
                Ok(Box::new(Guarded { inner, note }))
            },
        ))),
        Factory::Strategy(make) => Factory::Strategy(Box::leak(Box::new(
            move |options: &toml::Table| -> Result<Box<dyn SelectionStrategy>, ComponentError> {
                let inner = make(options)?;
                Ok(Box::new(Guarded { inner, note }))
            },
        ))),
        adapter => adapter,
    };
    Registration { factory, ..*entry }
}

struct Guarded<T> {
    inner: T,
    note: Note,
}

impl ConfidenceSignal for Guarded<Box<dyn ConfidenceSignal>> {
    fn needs(&self) -> Vec<ObservableRef> {
        self.inner.needs()
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        (self.note)(&shown(tokens, None));
        let fence = Fence::new(tokens, None, out)?;
        let done = self.inner.compute(&fence.view()?, fence.out());
        out.copy_from_slice(fence.out());
        done
    }
}

impl SelectionStrategy for Guarded<Box<dyn SelectionStrategy>> {
    fn needs(&self) -> Vec<SignalRef> {
        self.inner.needs()
    }

    fn when(&self) -> When {
        self.inner.when()
    }

    fn declare(&self) -> Declaration {
        self.inner.declare()
    }

    fn select(
        &self,
        tokens: &TokenView<'_>,
        cx: &SelectContext<'_>,
        out: &mut [f32],
    ) -> Result<(), ComponentError> {
        (self.note)(&shown(tokens, cx.current_logp));
        let fence = Fence::new(tokens, cx.current_logp, out)?;
        let cx = SelectContext {
            current_logp: fence.current.as_ref().map(Copied::slice),
            ..*cx
        };
        let done = self.inner.select(&fence.view()?, &cx, fence.out());
        out.copy_from_slice(fence.out());
        done
    }
}

/// The input, one token per line.
fn shown(tokens: &TokenView<'_>, current: Option<&[f32]>) -> String {
    let mut text = String::new();
    for (example, rows) in tokens.examples() {
        for row in rows {
            let mask = if tokens.eligible()[row] {
                ""
            } else {
                " (masked)"
            };
            text.push_str(&format!(
                "example {example}, position {}{mask}:",
                tokens.positions()[row]
            ));
            for (name, values) in tokens.columns() {
                text.push_str(&format!(" {name} {}", values[row]));
            }
            for (name, sketch) in tokens.sketches() {
                let row = &sketch.values[row * sketch.width..][..sketch.width];
                text.push_str(&format!(" {name} {row:?}"));
            }
            if let Some(current) = current {
                text.push_str(&format!(" current logp {}", current[row]));
            }
            text.push('\n');
        }
    }
    if text.is_empty() {
        text.push_str("no tokens\n");
    }
    text
}

/// A copy of a slice that ends at a page without rights.
struct Copied<T> {
    mapping: *mut c_void,
    mapped: usize,
    data: *mut T,
    len: usize,
}

const PAGE: usize = 65_536;

impl<T: Copy> Copied<T> {
    fn new(values: &[T]) -> Result<Self, ComponentError> {
        let failed = |error: rustix::io::Errno| {
            ComponentError::Failed(format!("no guarded memory: {error}"))
        };
        let bytes = size_of_val(values);
        let room = bytes.next_multiple_of(PAGE);
        let mapped = room + PAGE;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, wherever the system likes; the last page of it loses its rights.
        let mapping = unsafe {
            let mapping = mmap_anonymous(std::ptr::null_mut(), mapped, rights, MapFlags::PRIVATE)
                .map_err(failed)?;
            let end = mapping.cast::<u8>().add(room).cast();
            mprotect(end, PAGE, MprotectFlags::empty()).map_err(failed)?;
            mapping
        };
        // SAFETY: the `bytes` before the guard page are inside the mapping; a page's end is aligned
        // for every T, and so is what lies a whole number of them before it.
        let data = unsafe {
            let data = mapping.cast::<u8>().add(room - bytes).cast::<T>();
            std::ptr::copy_nonoverlapping(values.as_ptr(), data, values.len());
            data
        };
        Ok(Self {
            mapping,
            mapped,
            data,
            len: values.len(),
        })
    }

    fn slice(&self) -> &[T] {
        // SAFETY: written by `new`, and mapped for as long as this lives.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl<T> Drop for Copied<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; nobody borrows from it any more. A failure leaks it.
        let _ = unsafe { munmap(self.mapping, self.mapped) };
    }
}

/// Guarded copies of everything that a call reads and writes.
struct Fence<'a> {
    example_ids: Copied<u64>,
    offsets: Copied<u32>,
    token_ids: Copied<u32>,
    positions: Copied<u32>,
    eligible: Copied<bool>,
    columns: Vec<(&'a str, Copied<f32>)>,
    sketches: Vec<(&'a str, usize, Copied<f32>)>,
    current: Option<Copied<f32>>,
    out: Copied<f32>,
}

impl<'a> Fence<'a> {
    fn new(
        tokens: &TokenView<'a>,
        current: Option<&[f32]>,
        out: &[f32],
    ) -> Result<Self, ComponentError> {
        let columns = tokens.columns().iter();
        let sketches = tokens.sketches().iter();
        Ok(Self {
            example_ids: Copied::new(tokens.example_ids())?,
            offsets: Copied::new(tokens.offsets())?,
            token_ids: Copied::new(tokens.token_ids())?,
            positions: Copied::new(tokens.positions())?,
            eligible: Copied::new(tokens.eligible())?,
            columns: columns
                .map(|(name, values)| Ok((*name, Copied::new(values)?)))
                .collect::<Result<_, ComponentError>>()?,
            sketches: sketches
                .map(|(name, s)| Ok((*name, s.width, Copied::new(s.values)?)))
                .collect::<Result<_, ComponentError>>()?,
            current: current.map(Copied::new).transpose()?,
            out: Copied::new(out)?,
        })
    }

    fn view(&self) -> Result<TokenView<'_>, ComponentError> {
        let failed = |error: crate::TableError| ComponentError::Failed(error.to_string());
        let mut view = TokenView::new(
            self.example_ids.slice(),
            self.offsets.slice(),
            self.token_ids.slice(),
            self.positions.slice(),
            self.eligible.slice(),
        )
        .map_err(failed)?;
        for (name, values) in &self.columns {
            view.push(name, values.slice()).map_err(failed)?;
        }
        for (name, width, values) in &self.sketches {
            let sketch = SketchView {
                width: *width,
                values: values.slice(),
            };
            view.push_sketch(name, sketch).map_err(failed)?;
        }
        Ok(view)
    }

    /// Where the answer goes.
    #[allow(clippy::mut_from_ref, reason = "no other borrow of `out` exists")]
    fn out(&self) -> &mut [f32] {
        // SAFETY: written by `new`, mapped for as long as this lives, and borrowed by one call at a
        // time: the component's, then the copy back.
        unsafe { std::slice::from_raw_parts_mut(self.out.data, self.out.len) }
    }
}
