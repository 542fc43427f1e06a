//! `plugins/include/t3s_plugin.h` is made from core's `plugin/abi.rs` and says what it says.
//!
//! `T3S_WRITE=1 cargo test -p t3s-plugin --test header` writes it anew.

use std::{env, fs, path::Path};

#[test]
fn the_header_is_that_of_the_interface() {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let source = plugins.join("../core/src/plugin/abi.rs");
    let header = plugins.join("include/t3s_plugin.h");
    let config = cbindgen::Config {
        language: cbindgen::Language::C,
        include_guard: Some("T3S_PLUGIN_H".to_owned()),
        header: Some(
            "/* The C interface of T3S plugins. Made from core/src/plugin/abi.rs by cbindgen; do \
             not edit.\n * In C++, include it inside extern \"C\". */"
                .to_owned(),
        ),
        after_includes: Some(
            "\n/* A plugin defines this: `const T3sPlugin t3s_plugin = { ... };` */".to_owned(),
        ),
        no_includes: true,
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        usize_is_size_t: true,
        documentation_style: cbindgen::DocumentationStyle::C,
        style: cbindgen::Style::Type,
        export: cbindgen::ExportConfig {
            include: ["T3sPlugin", "T3sComponent", "T3sTokens", "T3sColumn"]
                .map(str::to_owned)
                .into(),
            exclude: vec!["COMPONENT_SIZE_1_0".to_owned()],
            ..Default::default()
        },
        ..Default::default()
    };
    let bindings = cbindgen::Builder::new()
        .with_src(source)
        .with_config(config)
        .generate()
        .expect("cbindgen reads the interface");
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).expect("text");
    if env::var_os("T3S_WRITE").is_some() {
        fs::write(&header, &made).expect("the header is written");
    }
    let found = fs::read_to_string(&header).unwrap_or_default();
    assert!(
        found == made,
        "plugins/include/t3s_plugin.h is stale; run T3S_WRITE=1 cargo test -p t3s-plugin --test \
         header and commit it"
    );
}
