//! Compiles the CUDA kernels to PTX, and the shim of cuDNN's attention into a library, with the
//! feature `cuda`; nothing otherwise.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command},
};

/// The `.cu` files of `src/kernels`.
const KERNELS: [&str; 16] = [
    "adamw",
    "attention",
    "attention_mma",
    "cross_entropy",
    "decode",
    "embedding",
    "experts",
    "experts_mma",
    "gradients",
    "normal",
    "residual",
    "rms_norm",
    "rotary",
    "routing",
    "sample",
    "swiglu",
];

/// The oldest GPUs that have bfloat16; the driver compiles for newer ones when it loads a kernel.
const ARCHITECTURE: &str = "compute_80";

/// Where the shim's headers are, cuDNN's and cudnn-frontend's; tools/cudnn-headers.sh sets both.
const HEADERS: [(&str, &str); 2] = [
    ("CUDNN_INCLUDE", "cudnn.h"),
    ("CUDNN_FRONTEND_INCLUDE", "cudnn_frontend.h"),
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(cudnn_attention)");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-env-changed=NVCC");
    for header in [
        "attention_pattern",
        "counter_rng",
        "decode",
        "device",
        "experts",
        "rotary",
        "tensor_core",
    ] {
        println!("cargo:rerun-if-changed=src/kernels/{header}.cuh");
    }
    let nvcc = env::var("NVCC").unwrap_or_else(|_| "nvcc".to_owned());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let shim = cudnn_shim(&nvcc, &out);
    let mut compilers: Vec<_> = KERNELS
        .into_iter()
        .map(|name| {
            let source = format!("src/kernels/{name}.cu");
            println!("cargo:rerun-if-changed={source}");
            let mut compiler = Command::new(&nvcc);
            compiler
                .args(["-std=c++17", "-O3", "-ptx", "-arch", ARCHITECTURE])
                .arg(&source)
                .arg("-o")
                .arg(out.join(format!("{name}.ptx")));
            (source, compiler.spawn())
        })
        .collect();
    compilers.extend(shim);
    for (source, compiler) in compilers {
        let result = compiler.and_then(|mut compiler| compiler.wait());
        match result {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{nvcc} {source}: {status}"),
            Err(error) => panic!(
                "{nvcc}: {error}; the feature `cuda` needs the CUDA compiler: \
                 tools/cuda-build.sh gets it (docs/cuda.md)"
            ),
        }
    }
}

/// Starts the compiler of the shim, where its headers are.
fn cudnn_shim(nvcc: &str, out: &Path) -> Option<(String, std::io::Result<Child>)> {
    let source = "src/kernels/cudnn_attention.cpp";
    println!("cargo:rerun-if-changed={source}");
    let mut compiler = Command::new(nvcc);
    for (variable, header) in HEADERS {
        println!("cargo:rerun-if-env-changed={variable}");
        let folder = env::var_os(variable).map(PathBuf::from);
        match folder.filter(|folder| folder.join(header).is_file()) {
            Some(folder) => compiler.arg("-isystem").arg(folder),
            None => {
                println!(
                    "cargo:warning=attention without cuDNN: {variable} names no folder with \
                     {header}; tools/cudnn-headers.sh gets it (docs/cuda.md)"
                );
                return None;
            }
        };
    }
    compiler
        .args([
            "-std=c++17",
            "-O2",
            "-Xcompiler",
            "-fPIC",
            "-lib",
            source,
            "-o",
        ])
        .arg(out.join("libt3s_cudnn.a"));
    println!("cargo:rustc-cfg=cudnn_attention");
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=t3s_cudnn");
    println!("cargo:rustc-link-lib=stdc++");
    Some((source.to_owned(), compiler.spawn()))
}
