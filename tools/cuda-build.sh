#!/usr/bin/env bash
# Runs cargo with the feature `cuda` so that the result starts on any machine: the driver, cuBLAS and
# cuRAND are opened when a GPU is asked for, not when the program is loaded (docs/cuda.md).
#
#   tools/cuda-build.sh                            # build --release -p t3s --features cuda
#   tools/cuda-build.sh check -p t3s-engine --features cuda
#
# candle as published links those libraries instead. So this builds a second workspace under
# target/cuda: links to the crates of this one, and a copy of two of candle's crates with the edits
# below. Nothing of it is committed, and the plain build never sees it.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v nvcc > /dev/null; then
    tools/cuda-toolkit.sh > /dev/null
    source target/cuda-toolkit/env.sh
elif [ -z "${CUDNN_INCLUDE:-}" ] || [ -z "${CUDNN_FRONTEND_INCLUDE:-}" ]; then
    # No installed toolkit has the frontend's headers. Without them attention is the portable kernels'.
    if tools/cudnn-headers.sh > /dev/null; then
        source target/cudnn-headers/env.sh
    else
        echo "tools/cuda-build.sh: no cuDNN headers; building without attention by cuDNN" >&2
    fi
fi
# What candle's own kernels are compiled for, where no GPU tells; the driver compiles them anew for
# newer ones.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}

root=$PWD
folder=target/cuda/workspace
mkdir -p "$folder/candle"

# The folder of a published crate, as Cargo.lock pins it.
source_of() {
    local manifest
    manifest=$(cargo metadata --locked --format-version 1 --all-features \
        | grep -o "\"manifest_path\":\"[^\"]*/$1-[0-9][^\"]*/Cargo.toml\"" | head -n 1 | cut -d '"' -f 4)
    dirname "$manifest"
}

# edit FILE FROM TO: replaces the one line FROM, or stops: another version of candle needs a look.
edit() {
    if [ "$(grep -cFx -- "$2" "$1")" != 1 ]; then
        echo "tools/cuda-build.sh: $1 has no single line \"$2\"; candle has changed, mend the edit" >&2
        exit 1
    fi
    awk -v from="$2" -v to="$3" '$0 == from { print to; next } { print }' "$1" > "$1.new"
    mv "$1.new" "$1"
}

stamp=$(sha256sum tools/cuda-build.sh Cargo.lock | sha256sum)
if [ "$(cat "$folder/candle/stamp" 2> /dev/null)" != "$stamp" ]; then
    rm -rf "$folder/candle"
    mkdir -p "$folder/candle"
    for crate in candle-core candle-kernels; do
        cp -r "$(source_of "$crate")" "$folder/candle/$crate"
        chmod -R u+w "$folder/candle/$crate"
    done
    edit "$folder/candle/candle-core/Cargo.toml" '    "dynamic-linking",' '    "dynamic-loading",'
    # Of candle's kernels only those that work on plain tensors: the quantised ones and the
    # convolutions take 9 of 10 minutes of compilation, and nothing here calls them.
    kernels=$folder/candle/candle-kernels
    awk '/let mut moe_sources = vec!\[/ { print "    Ok(())"; print "}"; exit } { print }' \
        "$kernels/build.rs" > "$kernels/build.rs.new"
    mv "$kernels/build.rs.new" "$kernels/build.rs"
    edit "$kernels/build.rs" 'const CUTILE_FEATURE: &str = "CARGO_FEATURE_CUTILE";' ''
    for unused in conv quantized; do
        echo "// Left out by tools/cuda-build.sh." > "$kernels/src/$unused.cu"
    done
    echo "$stamp" > "$folder/candle/stamp"
fi

for entry in *; do
    case $entry in
        target | Cargo.toml | Cargo.lock) ;;
        *) ln -sfn "$root/$entry" "$folder/$entry" ;;
    esac
done
{
    cat Cargo.toml
    echo
    echo '[patch.crates-io]'
    echo 'candle-core = { path = "candle/candle-core" }'
    echo 'candle-kernels = { path = "candle/candle-kernels" }'
} > "$folder/Cargo.toml.new"
cmp -s "$folder/Cargo.toml.new" "$folder/Cargo.toml" || mv "$folder/Cargo.toml.new" "$folder/Cargo.toml"
# The same versions of everything; cargo takes out of it only where the two crates come from.
cp Cargo.lock "$folder/Cargo.lock"

[ $# -gt 0 ] || set -- build --release -p t3s --features cuda
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/cuda}
exec cargo "$1" --manifest-path "$folder/Cargo.toml" "${@:2}"
