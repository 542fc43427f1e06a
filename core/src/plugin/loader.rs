//! From a file to components.

use std::{
    fs, mem,
    path::{Path, PathBuf},
};

use libloading::Library as Image;
use sha2::{Digest, Sha256};

use super::{
    PluginError,
    abi::{
        COMPONENT_SIZE_1_0, T3S_ABI_MAJOR, T3S_ABI_MINOR, T3S_ADAPTER, T3S_FLAG_ABORTS, T3S_MAGIC,
        T3S_OK, T3S_SIGNAL, T3S_STRATEGY, T3sComponent, T3sPlugin, T3sStr, T3sText, slice,
    },
    adapter::LoadedAdapter,
    call::Library,
    component, elf,
    error::Cause,
};
use crate::registry::{Factory, Registration, Registry};

/// The exported symbol.
const SYMBOL: &[u8] = b"t3s_plugin\0";
/// More components than this are a wrong count.
const MOST_COMPONENTS: usize = 4096;
/// The first fields of [`T3sPlugin`], which no version moves.
const FIXED_HEAD: usize = mem::offset_of!(T3sPlugin, size);

/// A loaded plugin. It stays loaded for as long as the program runs: what it has handed out cannot
/// be called back.
#[derive(Clone)]
pub struct Plugin {
    path: PathBuf,
    sha256: String,
    abi: (u32, u32),
    built_with: String,
    components: Vec<Registration>,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.components.iter().map(|c| c.name).collect();
        f.debug_struct("Plugin")
            .field("path", &self.path)
            .field("abi", &self.abi)
            .field("components", &names)
            .finish_non_exhaustive()
    }
}

impl Plugin {
    /// The file, as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Digest of the file, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Major and minor version of the interface it was built with.
    pub fn abi(&self) -> (u32, u32) {
        self.abi
    }

    /// What built it, in its own words.
    pub fn built_with(&self) -> &str {
        &self.built_with
    }

    /// Its components, by kind and name.
    pub fn components(&self) -> &[Registration] {
        &self.components
    }

    /// `registry` with the plugin's components in it.
    ///
    /// # Errors
    /// When one has the name of one that is there, or the plugin itself is there.
    pub fn add_to(&self, registry: Registry) -> Result<Registry, PluginError> {
        let origin = self.path.display().to_string();
        if registry.plugins().contains(&origin) {
            return Err(PluginError::new(&self.path, Cause::Twice));
        }
        registry
            .with_plugin(origin, self.components.iter().copied())
            .map_err(|error| PluginError::new(&self.path, error))
    }
}

/// Loads the plugin at `path`. With `pinned`, only if that is the SHA-256 of the file, in hexadecimal.
///
/// Code of the library runs here (its initialisers, its list of components), with the rights of the
/// user.
///
/// # Errors
/// See [`Cause`]; the host goes on.
pub fn load(path: &Path, pinned: Option<&str>) -> Result<Plugin, PluginError> {
    read(path, pinned).map_err(|cause| PluginError::new(path, cause))
}

fn read(path: &Path, pinned: Option<&str>) -> Result<Plugin, Cause> {
    let unreadable = |error: std::io::Error| Cause::Unreadable(error.to_string());
    // Resolved here: of a name without a slash, `dlopen` searches the system's folders.
    let file = path.canonicalize().map_err(unreadable)?;
    let metadata = fs::metadata(&file).map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(Cause::NotAFile("directory"));
    }
    if !metadata.is_file() {
        return Err(Cause::NotAFile("device or pipe"));
    }
    let bytes = fs::read(&file).map_err(unreadable)?;
    let sha256: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if let Some(expected) = pinned
        && !expected.eq_ignore_ascii_case(&sha256)
    {
        return Err(Cause::Digest {
            found: sha256,
            expected: expected.to_owned(),
        });
    }
    if cfg!(target_os = "linux") {
        elf::check(&bytes)?;
    }
    drop(bytes);

    // SAFETY: loading runs the library's initialisers. That is what the user asks for by naming the
    // file; the preflight has refused what the system's loader would die of.
    let image = unsafe { Image::new(&file) }.map_err(|error| Cause::System(system(&error)))?;
    // SAFETY: the type is a pointer; what it points to is examined before it is believed.
    let symbol = unsafe { image.get::<*const u8>(SYMBOL) }.map_err(|_| Cause::NoSymbol)?;
    let symbol: *const u8 = *symbol;
    // Never unloaded: texts, functions and thread-local destructors of it may be in use until exit.
    mem::forget(image);
    let table = table(symbol)?;
    let library = Library {
        free_text: table.free_text.ok_or_else(|| null("free_text"))?,
        minor: table.minor,
    };
    let origin: &'static str = Box::leak(path.display().to_string().into_boxed_str());
    let mut components: Vec<Registration> = components(&table, library)?
        .iter()
        .enumerate()
        .map(|(index, pointer)| {
            registration(*pointer, table.minor, library, origin)
                .map_err(|fault| Cause::Table(format!("component {index}: {fault}")))
        })
        .collect::<Result<_, _>>()?;
    // A linker gives no order.
    components.sort_by_key(|c| (c.kind(), c.name));
    Registry::from_entries(components.iter().copied())?;
    Ok(Plugin {
        path: path.to_owned(),
        sha256,
        abi: (table.major, table.minor),
        built_with: built_with(&table),
        components,
    })
}

/// libloading says only that loading failed; the system's words are in the source.
fn system(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn null(field: &str) -> Cause {
    Cause::Table(format!("{field} is null"))
}

/// Copies the plugin's table, after its head has been found good.
fn table(symbol: *const u8) -> Result<T3sPlugin, Cause> {
    if symbol.is_null() || !symbol.cast::<T3sPlugin>().is_aligned() {
        return Err(Cause::Magic);
    }
    let mut head = [0_u8; FIXED_HEAD];
    // SAFETY: a data symbol of this name; reads past its end stay in the mapped image except for a
    // symbol in its last 24 bytes, and the magic number is read first for that.
    unsafe {
        std::ptr::copy_nonoverlapping(symbol, head.as_mut_ptr(), 8);
        if u64_of(&head) != T3S_MAGIC {
            return Err(Cause::Magic);
        }
        std::ptr::copy_nonoverlapping(symbol, head.as_mut_ptr(), FIXED_HEAD);
    }
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (major, minor) = (word(8), word(12));
    if major != T3S_ABI_MAJOR {
        // Nothing after the head is where this program knows it.
        return Err(Cause::Version {
            major,
            minor,
            built_with: "another t3s-plugin".to_owned(),
        });
    }
    // SAFETY: magic and major version say that a whole table of version 1.0 or later lies there, and
    // no minor version has grown it yet.
    let table = unsafe { symbol.cast::<T3sPlugin>().read() };
    if minor > T3S_ABI_MINOR {
        return Err(Cause::Version {
            major,
            minor,
            built_with: built_with(&table),
        });
    }
    if table.size < size_of::<T3sPlugin>() {
        return Err(Cause::Table(format!(
            "its size is {}, of version {major}.{minor} it is {}",
            table.size,
            size_of::<T3sPlugin>()
        )));
    }
    if table.flags & T3S_FLAG_ABORTS != 0 {
        return Err(Cause::Aborts);
    }
    Ok(table)
}

fn u64_of(head: &[u8; FIXED_HEAD]) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&head[..8]);
    u64::from_ne_bytes(eight)
}

fn built_with(table: &T3sPlugin) -> String {
    // SAFETY: a constant text of the plugin, whose table is known to be one.
    let bytes = unsafe { table.built_with.bytes() };
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

/// Asks the plugin for its list.
fn components(
    table: &T3sPlugin,
    library: Library,
) -> Result<&'static [*const T3sComponent], Cause> {
    let list = table.components.ok_or_else(|| null("components"))?;
    let (mut first, mut count, mut error) = (std::ptr::null(), 0, T3sText::NONE);
    // SAFETY: a function of the plugin with this signature, by the interface; the arguments outlive
    // the call.
    let status = unsafe { list(&mut first, &mut count, &mut error) };
    let said = library.take(error).unwrap_or_else(|e| e.to_string());
    if status != T3S_OK {
        return Err(Cause::List(said));
    }
    if count == 0 {
        return Err(Cause::Empty);
    }
    if count > MOST_COMPONENTS {
        return Err(Cause::Table(format!("it lists {count} components")));
    }
    // SAFETY: the plugin says that `count` pointers lie there for as long as the program runs.
    unsafe { slice(first, count) }.ok_or_else(|| null("the list of components"))
}

/// Copies a component and makes its entry of the registry. Its text and the copy live as long as
/// the library, that is until the program ends.
fn registration(
    pointer: *const T3sComponent,
    minor: u32,
    library: Library,
    origin: &'static str,
) -> Result<Registration, String> {
    if pointer.is_null() || !pointer.is_aligned() {
        return Err("its pointer is null".to_owned());
    }
    // SAFETY: the plugin's list says that a component lies there; `size` is its first field in every
    // version.
    let size = unsafe { pointer.cast::<usize>().read() };
    let known = if minor == 0 {
        COMPONENT_SIZE_1_0
    } else {
        size_of::<T3sComponent>()
    };
    if size < known {
        return Err(format!(
            "its size is {size}, of version 1.{minor} it is {known}"
        ));
    }
    let mut copy = mem::MaybeUninit::<T3sComponent>::zeroed();
    // SAFETY: `known` bytes of a component lie there and fit; all zeros is a value of every field
    // that is not copied (`None`).
    let component = unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), known);
        copy.assume_init()
    };
    let name = text(component.name, "name")?;
    if name.is_empty() {
        return Err("its name is empty".to_owned());
    }
    let summary = text(component.summary, "summary").map_err(|e| format!("{name:?}: {e}"))?;
    let schema = text(component.schema, "schema").map_err(|e| format!("{name:?}: {e}"))?;
    let schema: serde_json::Value = serde_json::from_str(schema)
        .map_err(|error| format!("{name:?}: its schema is not JSON: {error}"))?;
    let schema = schemars::Schema::try_from(schema)
        .map_err(|error| format!("{name:?}: its schema is not one: {error}"))?;
    let has = |function: bool, what: &str| {
        if function {
            Ok(())
        } else {
            Err(format!("{name:?}: {what} is null"))
        }
    };
    has(component.create.is_some(), "create")?;
    has(component.destroy.is_some(), "destroy")?;
    match component.kind {
        T3S_SIGNAL | T3S_STRATEGY => {
            has(component.describe.is_some(), "describe")?;
            has(component.run.is_some(), "run")?;
        }
        T3S_ADAPTER => {
            has(component.adapt.is_some(), "adapt")?;
            has(component.objective.is_some(), "objective")?;
            has(component.prepare.is_some(), "prepare")?;
            has(component.destroy_objective.is_some(), "destroy_objective")?;
        }
        other => {
            return Err(format!(
                "{name:?}: its kind is {other}, which means nothing"
            ));
        }
    }
    let component: &'static T3sComponent = Box::leak(Box::new(component));
    let factory = match component.kind {
        T3S_SIGNAL => Factory::Signal(Box::leak(Box::new(move |options: &toml::Table| {
            component::signal(library, component, &format!("signal {name:?}"), options)
        }))),
        T3S_STRATEGY => Factory::Strategy(Box::leak(Box::new(move |options: &toml::Table| {
            component::strategy(library, component, &format!("strategy {name:?}"), options)
        }))),
        _ => Factory::Adapter(Box::leak(Box::new(
            move || -> Box<dyn crate::ModelAdapter> {
                let who = format!("model adapter {name:?}");
                Box::new(LoadedAdapter::new(library, component, &who))
            },
        ))),
    };
    Ok(Registration {
        name,
        summary,
        origin,
        schema: Box::leak(Box::new(move || schema.clone())),
        factory,
    })
}

/// A text of the plugin.
fn text(text: T3sStr, what: &str) -> Result<&'static str, String> {
    // SAFETY: a constant text of a library that is never unloaded, as the interface says.
    let bytes = unsafe { text.bytes() }.ok_or_else(|| format!("its {what} is null"))?;
    std::str::from_utf8(bytes).map_err(|_| format!("its {what} is not UTF-8"))
}
