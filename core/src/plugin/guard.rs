//! Components on guarded memory: each column, and the answer, lies between two pages without rights,
//! flush to one of them, so that one element too many on that side ends the process, and so does
//! writing into a column. For `t3s plugin
//! test`, in a child process.

use std::ffi::c_void;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use serde::{Deserialize, Serialize};

use crate::{
    AttentionPattern, ComponentError, ConfidenceSignal, Declaration, DecodeRule, DecoderSpec,
    ExampleBatch, HfConfig, ModelAdapter, ModelBatch, Objective, ObservableRef, SelectContext,
    SelectionStrategy, SignalRef, TokenView, When,
    adapter::FamilyOptions,
    objective::{Draw, Weighting},
    registry::{Factory, Registration},
    table::SketchView,
};

/// Is told what a component is about to be asked.
pub type Note = &'static (dyn Fn(&str) + Send + Sync);

/// The page without rights that the columns lie flush to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fenced {
    /// The one behind them.
    After,
    /// The one before them.
    Before,
}

/// `entry`, whose signals and strategies read and write guarded copies. Of model adapters only the
/// questions are noted.
pub fn guarded(entry: &Registration, fenced: Fenced, note: Note) -> Registration {
    let factory = match entry.factory {
        Factory::Signal(make) => Factory::Signal(Box::leak(Box::new(
            move |options: &toml::Table| -> Result<Box<dyn ConfidenceSignal>, ComponentError> {
                let inner = make(options)?;
                Ok(Box::new(Guarded {
                    inner,
                    fenced,
                    note,
                }))
            },
        ))),
        Factory::Strategy(make) => Factory::Strategy(Box::leak(Box::new(
            move |options: &toml::Table| -> Result<Box<dyn SelectionStrategy>, ComponentError> {
                let inner = make(options)?;
                Ok(Box::new(Guarded {
                    inner,
                    fenced,
                    note,
                }))
            },
        ))),
        Factory::Adapter(make) => {
            Factory::Adapter(Box::leak(Box::new(move || -> Box<dyn ModelAdapter> {
                Box::new(Guarded {
                    inner: make(),
                    fenced,
                    note,
                })
            })))
        }
    };
    Registration { factory, ..*entry }
}

struct Guarded<T> {
    inner: T,
    fenced: Fenced,
    note: Note,
}

impl ConfidenceSignal for Guarded<Box<dyn ConfidenceSignal>> {
    fn needs(&self) -> Vec<ObservableRef> {
        self.inner.needs()
    }

    fn compute(&self, tokens: &TokenView<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        (self.note)(&shown(tokens, None));
        let fence = Fence::new(self.fenced, tokens, None, out)?;
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
        let fence = Fence::new(self.fenced, tokens, cx.current_logp, out)?;
        let cx = SelectContext {
            current_logp: fence.current.as_ref().map(Copied::slice),
            ..*cx
        };
        let done = self.inner.select(&fence.view()?, &cx, fence.out());
        out.copy_from_slice(fence.out());
        done
    }
}

impl ModelAdapter for Guarded<Box<dyn ModelAdapter>> {
    fn claims(&self, config: &HfConfig) -> bool {
        (self.note)(&shown_config(config));
        self.inner.claims(config)
    }

    fn decoder(&self, config: &HfConfig) -> Result<DecoderSpec, ComponentError> {
        (self.note)(&shown_config(config));
        self.inner.decoder(config)
    }

    fn options(&self, config: &HfConfig) -> Result<FamilyOptions, ComponentError> {
        (self.note)(&shown_config(config));
        self.inner.options(config)
    }

    fn objective(&self, options: &toml::Table) -> Result<Box<dyn Objective>, ComponentError> {
        (self.note)(&format!("options of the objective: {{{options}}}\n"));
        let inner = self.inner.objective(options)?;
        Ok(Box::new(Guarded {
            inner,
            fenced: self.fenced,
            note: self.note,
        }))
    }

    fn decode(&self, options: &toml::Table) -> Result<DecodeRule, ComponentError> {
        (self.note)(&format!("options of the decode rule: {{{options}}}\n"));
        self.inner.decode(options)
    }
}

impl Objective for Guarded<Box<dyn Objective>> {
    fn attention(&self) -> AttentionPattern {
        self.inner.attention()
    }

    fn weighting(&self) -> Weighting {
        self.inner.weighting()
    }

    fn prepare(
        &self,
        batch: &ExampleBatch<'_>,
        draw: Draw,
        out: &mut ModelBatch,
    ) -> Result<(), ComponentError> {
        (self.note)(&format!("{draw:?}, {batch:?}\n"));
        self.inner.prepare(batch, draw, out)
    }
}

fn shown_config(config: &HfConfig) -> String {
    format!("{}\n", serde_json::Value::Object(config.0.clone()))
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

/// A copy of a slice between two pages without rights.
struct Copied<T> {
    mapping: *mut c_void,
    mapped: usize,
    data: *mut T,
    len: usize,
}

const PAGE: usize = 65_536;

fn unmapped(error: rustix::io::Errno) -> ComponentError {
    ComponentError::Failed(format!("no guarded memory: {error}"))
}

/// Keeps the system from writing this process's memory to a file when a component ends it: looking
/// for a smallest input does that many times.
pub fn no_core_file() {
    // Without it the search is slower, nothing else.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

impl<T: Copy> Copied<T> {
    fn new(fenced: Fenced, values: &[T]) -> Result<Self, ComponentError> {
        let bytes = size_of_val(values);
        let room = bytes.next_multiple_of(PAGE);
        let mapped = PAGE + room + PAGE;
        let start = match fenced {
            Fenced::After => PAGE + room - bytes,
            Fenced::Before => PAGE,
        };
        // SAFETY: a new mapping, wherever the system likes; what lies between its first and its last
        // page gets rights.
        let mapping = unsafe {
            let mapping = mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
            .map_err(unmapped)?;
            let between = mapping.cast::<u8>().add(PAGE).cast();
            let rights = MprotectFlags::READ | MprotectFlags::WRITE;
            if room > 0 {
                mprotect(between, room, rights).map_err(unmapped)?;
            }
            mapping
        };
        // SAFETY: the `bytes` from `start` on lie between the two pages; a page is aligned for every
        // T, and so is what lies a whole number of them before its end.
        let data = unsafe {
            let data = mapping.cast::<u8>().add(start).cast::<T>();
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

    /// A copy that cannot be written to.
    fn readable(fenced: Fenced, values: &[T]) -> Result<Self, ComponentError> {
        let copied = Self::new(fenced, values)?;
        let room = copied.mapped - 2 * PAGE;
        if room > 0 {
            // SAFETY: the pages between the first and the last one of `new`'s mapping, which nobody
            // borrows from yet.
            unsafe {
                let between = copied.mapping.cast::<u8>().add(PAGE).cast();
                mprotect(between, room, MprotectFlags::READ)
            }
            .map_err(unmapped)?;
        }
        Ok(copied)
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
        fenced: Fenced,
        tokens: &TokenView<'a>,
        current: Option<&[f32]>,
        out: &[f32],
    ) -> Result<Self, ComponentError> {
        let columns = tokens.columns().iter();
        let sketches = tokens.sketches().iter();
        Ok(Self {
            example_ids: Copied::readable(fenced, tokens.example_ids())?,
            offsets: Copied::readable(fenced, tokens.offsets())?,
            token_ids: Copied::readable(fenced, tokens.token_ids())?,
            positions: Copied::readable(fenced, tokens.positions())?,
            eligible: Copied::readable(fenced, tokens.eligible())?,
            columns: columns
                .map(|(name, values)| Ok((*name, Copied::readable(fenced, values)?)))
                .collect::<Result<_, ComponentError>>()?,
            sketches: sketches
                .map(|(name, s)| Ok((*name, s.width, Copied::readable(fenced, s.values)?)))
                .collect::<Result<_, ComponentError>>()?,
            current: current.map(|c| Copied::readable(fenced, c)).transpose()?,
            out: Copied::new(fenced, out)?,
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
