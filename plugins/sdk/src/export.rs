//! The C symbol `t3s_plugin`. It lives here, so a plugin needs no export line, and several plugins
//! link into one program: every image that contains this crate has one symbol, which lists what
//! `inventory` holds in that image.

#![allow(
    unsafe_code,
    reason = "the C boundary; every block says what the host promises"
)]

mod adapter;
mod catch;
mod view;

use std::{ffi::c_void, sync::OnceLock};

use t3s_core::{
    ComponentError, ConfidenceSignal, SelectContext, SelectionStrategy,
    plugin::{
        SignalDescription, StrategyDescription,
        abi::{
            T3S_ABI_MAJOR, T3S_ABI_MINOR, T3S_ADAPTER, T3S_FLAG_ABORTS, T3S_MAGIC, T3S_SIGNAL,
            T3S_STRATEGY, T3sComponent, T3sPlugin, T3sStr, T3sText, T3sTokens,
        },
    },
    registry::{Factory, Registration},
};

use catch::{Fault, guarded, set_text};

/// What the host reads before it calls anything.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name of a C symbol")]
pub static t3s_plugin: T3sPlugin = T3sPlugin {
    magic: T3S_MAGIC,
    major: T3S_ABI_MAJOR,
    minor: T3S_ABI_MINOR,
    flags: if cfg!(panic = "abort") {
        T3S_FLAG_ABORTS
    } else {
        0
    },
    reserved: 0,
    size: size_of::<T3sPlugin>(),
    built_with: T3sStr::new(concat!("t3s-plugin ", env!("CARGO_PKG_VERSION"))),
    components: Some(components),
    free_text: Some(catch::free_text),
};

/// The components of this image, described once.
struct Listed {
    pointers: Vec<*const T3sComponent>,
}

// SAFETY: the pointers are to leaked constants.
unsafe impl Send for Listed {}
// SAFETY: as above.
unsafe impl Sync for Listed {}

static LISTED: OnceLock<Listed> = OnceLock::new();

unsafe extern "C" fn components(
    components: *mut *const *const T3sComponent,
    count: *mut usize,
    error: *mut T3sText,
) -> i32 {
    guarded(error, || {
        let listed = LISTED.get_or_init(|| Listed {
            pointers: t3s_core::inventory::iter::<Registration>()
                .map(|entry| std::ptr::from_ref(Box::leak(Box::new(describe(entry)))))
                .collect(),
        });
        // SAFETY: both are places of the host's, alive for the call.
        unsafe {
            components.write(listed.pointers.as_ptr());
            count.write(listed.pointers.len());
        }
        Ok(())
    })
}

/// The C form of `entry`; its schema is made and kept here.
fn describe(entry: &'static Registration) -> T3sComponent {
    let schema = (entry.schema)().as_value().to_string();
    let schema: &'static str = Box::leak(schema.into_boxed_str());
    let common = T3sComponent {
        size: size_of::<T3sComponent>(),
        kind: 0,
        reserved: 0,
        name: T3sStr::new(entry.name),
        summary: T3sStr::new(entry.summary),
        schema: T3sStr::new(schema),
        context: std::ptr::from_ref(entry).cast(),
        create: None,
        destroy: None,
        describe: None,
        run: None,
        adapt: None,
        objective: None,
        prepare: None,
        destroy_objective: None,
    };
    match entry.factory {
        Factory::Signal(_) => T3sComponent {
            kind: T3S_SIGNAL,
            create: Some(create::<dyn ConfidenceSignal>),
            destroy: Some(destroy::<Box<dyn ConfidenceSignal>>),
            describe: Some(describe_instance::<dyn ConfidenceSignal>),
            run: Some(run::<dyn ConfidenceSignal>),
            ..common
        },
        Factory::Strategy(_) => T3sComponent {
            kind: T3S_STRATEGY,
            create: Some(create::<dyn SelectionStrategy>),
            destroy: Some(destroy::<Box<dyn SelectionStrategy>>),
            describe: Some(describe_instance::<dyn SelectionStrategy>),
            run: Some(run::<dyn SelectionStrategy>),
            ..common
        },
        Factory::Adapter(_) => T3sComponent {
            kind: T3S_ADAPTER,
            create: Some(adapter::create),
            destroy: Some(destroy::<Box<dyn t3s_core::ModelAdapter>>),
            adapt: Some(adapter::adapt),
            objective: Some(adapter::objective),
            prepare: Some(adapter::prepare),
            destroy_objective: Some(destroy::<Box<dyn t3s_core::Objective>>),
            ..common
        },
    }
}

/// The registration behind a component's context.
///
/// # Safety
/// `context` is that of a component of [`describe`].
unsafe fn entry<'a>(context: *const c_void) -> &'a Registration {
    // SAFETY: a registration is a constant of this image.
    unsafe { &*context.cast::<Registration>() }
}

/// Options as the host writes them.
///
/// # Safety
/// `options` is a text that lives for the call.
unsafe fn options(options: T3sStr) -> Result<t3s_core::toml::Table, Fault> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { options.bytes() }.unwrap_or_default();
    serde_json::from_slice(bytes).map_err(|error| Fault::new(format!("options: {error}")))
}

/// Gives `made` to the host.
///
/// # Safety
/// `place` is a place of the host's.
unsafe fn hand_out<T>(made: T, place: *mut *mut c_void) {
    // SAFETY: the caller's promise; `destroy::<T>` takes the box back.
    unsafe { place.write(Box::into_raw(Box::new(made)).cast()) };
}

unsafe extern "C" fn destroy<T>(instance: *mut c_void) {
    if !instance.is_null() {
        let _ = guarded(std::ptr::null_mut(), || {
            // SAFETY: of `hand_out::<T>`, given back once.
            drop(unsafe { Box::from_raw(instance.cast::<T>()) });
            Ok(())
        });
    }
}

/// What signals and strategies have in common at the boundary.
trait Scores {
    /// One made by `factory`, if that makes this kind.
    fn make(factory: Factory, options: &t3s_core::toml::Table) -> Result<Box<Self>, Fault>;

    /// What it reads and promises, as JSON.
    fn description(&self) -> Result<String, Fault>;

    /// One number per token.
    fn answer(&self, lent: &view::Lent<'_>, out: &mut [f32]) -> Result<(), ComponentError>;
}

impl Scores for dyn ConfidenceSignal {
    fn make(factory: Factory, options: &t3s_core::toml::Table) -> Result<Box<Self>, Fault> {
        match factory {
            Factory::Signal(make) => Ok(make(options)?),
            _ => Err(Fault::new("not a signal")),
        }
    }

    fn description(&self) -> Result<String, Fault> {
        to_json(&SignalDescription::of(self))
    }

    fn answer(&self, lent: &view::Lent<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        self.compute(&lent.tokens, out)
    }
}

impl Scores for dyn SelectionStrategy {
    fn make(factory: Factory, options: &t3s_core::toml::Table) -> Result<Box<Self>, Fault> {
        match factory {
            Factory::Strategy(make) => Ok(make(options)?),
            _ => Err(Fault::new("not a strategy")),
        }
    }

    fn description(&self) -> Result<String, Fault> {
        to_json(&StrategyDescription::of(self))
    }

    fn answer(&self, lent: &view::Lent<'_>, out: &mut [f32]) -> Result<(), ComponentError> {
        let cx = match lent.current_logp {
            Some(current) => SelectContext::online(lent.seed, lent.step, current),
            None => SelectContext::recorded(lent.seed),
        };
        self.select(&lent.tokens, &cx, out)
    }
}

unsafe extern "C" fn create<C: Scores + ?Sized>(
    context: *const c_void,
    text: T3sStr,
    instance: *mut *mut c_void,
    error: *mut T3sText,
) -> i32 {
    guarded(error, || {
        // SAFETY: the host hands a component its own context, and texts that outlive the call.
        let (entry, options) = unsafe { (entry(context), options(text)?) };
        // SAFETY: the host's place.
        unsafe { hand_out(C::make(entry.factory, &options)?, instance) };
        Ok(())
    })
}

unsafe extern "C" fn describe_instance<C: Scores + ?Sized>(
    instance: *const c_void,
    answer: *mut T3sText,
    error: *mut T3sText,
) -> i32 {
    guarded(error, || {
        // SAFETY: an instance of `create::<C>`, alive for the call.
        let component = unsafe { &*instance.cast::<Box<C>>() };
        set_text(answer, component.description()?);
        Ok(())
    })
}

unsafe extern "C" fn run<C: Scores + ?Sized>(
    instance: *const c_void,
    tokens: *const T3sTokens,
    out: *mut f32,
    n: usize,
    error: *mut T3sText,
) -> i32 {
    guarded(error, || {
        // SAFETY: an instance of `create::<C>`; tokens and `out` are the host's, of the lengths they
        // say, alive and not shared for the call.
        let (component, lent, out) = unsafe {
            let component = &*instance.cast::<Box<C>>();
            (component, view::Lent::new(&*tokens)?, view::room(out, n)?)
        };
        Ok(component.answer(&lent, out)?)
    })
}

fn to_json(value: &impl serde::Serialize) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(|error| Fault::new(error.to_string()))
}
