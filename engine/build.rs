//! Compiles the CUDA kernels to PTX, with the feature `cuda`; nothing otherwise.

use std::{env, path::Path, process::Command};

/// The `.cu` files of `src/kernels`.
const KERNELS: [&str; 12] = [
    "adamw",
    "attention",
    "attention_mma",
    "cross_entropy",
    "decode",
    "embedding",
    "gradients",
    "residual",
    "rms_norm",
    "rotary",
    "sample",
    "swiglu",
];

/// The oldest GPUs that have bfloat16; the driver compiles for newer ones when it loads a kernel.
const ARCHITECTURE: &str = "compute_80";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-env-changed=NVCC");
    for header in [
        "attention_pattern",
        "counter_rng",
        "decode",
        "device",
        "rotary",
        "tensor_core",
    ] {
        println!("cargo:rerun-if-changed=src/kernels/{header}.cuh");
    }
    let nvcc = env::var("NVCC").unwrap_or_else(|_| "nvcc".to_owned());
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let compilers: Vec<_> = KERNELS
        .into_iter()
        .map(|name| {
            let source = format!("src/kernels/{name}.cu");
            println!("cargo:rerun-if-changed={source}");
            let compiler = Command::new(&nvcc)
                .args(["-std=c++17", "-O3", "-ptx", "-arch", ARCHITECTURE])
                .arg(&source)
                .arg("-o")
                .arg(Path::new(&out).join(format!("{name}.ptx")))
                .spawn();
            (name, compiler)
        })
        .collect();
    for (name, compiler) in compilers {
        let result = compiler.and_then(|mut compiler| compiler.wait());
        match result {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{nvcc} {name}.cu: {status}"),
            Err(error) => panic!(
                "{nvcc}: {error}; the feature `cuda` needs the CUDA compiler: \
                 tools/cuda-build.sh gets it (docs/cuda.md)"
            ),
        }
    }
}
