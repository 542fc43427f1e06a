// `gradients.rs` on the GPU.
#include "device.cuh"

extern "C" __global__ void scale(float *values, float factor, u64 n) {
    const u64 i = first_of_eight();
    if (i >= n) return;
    Eight v;
    v.load(values + i, n - i);
#pragma unroll
    for (u32 e = 0; e < EIGHT; e++) v.v[e] *= factor;
    v.store(values + i, n - i);
}
REGISTERED(scale)

// A tensor of a list that one launch goes through.
struct Slot {
    const float *values;
    u64 n;
};

// partial[block] = the sum of squares of a chunk: chunks[2 block] says of which slot, chunks[2 block + 1]
// which of its chunks of `chunk` elements, a multiple of eight. Grid: number of chunks.
extern "C" __global__ void chunk_squares(const Slot *slots, const u32 *chunks, double *partial, u32 chunk) {
    const Slot slot = slots[chunks[2 * blockIdx.x]];
    const u64 first = static_cast<u64>(chunks[2 * blockIdx.x + 1]) * chunk;
    const u64 last = first + chunk < slot.n ? first + chunk : slot.n;
    double total = 0.0;
    for (u64 i = first + threadIdx.x * EIGHT; i < last; i += blockDim.x * EIGHT) {
        Eight v;
        v.load(slot.values + i, last - i);
        // Few enough that the float sum loses nothing that matters.
        float sum = 0.0f;
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) sum += v.v[e] * v.v[e];
        total += sum;
    }
    total = block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}
REGISTERED(chunk_squares)

// out[0] = 0, or NaN unless every first of four numbers (a row's log-prob) is finite. Grid: 1.
extern "C" __global__ void nan_unless_finite(const float *rows, double *out, u32 n) {
    u32 bad = 0;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) bad += !(fabsf(rows[4 * static_cast<u64>(i)]) < INFINITY);
    bad = block_sum(bad);
    if (threadIdx.x == 0) out[0] = bad == 0 ? 0.0 : static_cast<double>(__uint_as_float(0x7fc00000u));
}
REGISTERED(nan_unless_finite)

// norm[0] = the root of the sum of n squares, added in an order that n alone decides; factor[0] = what
// makes it `largest` where it is larger and `largest` is above 0, else 1; NaN where the norm is no
// number. failed[0] (may be null) is added to the sum, and becomes NaN with the norm. Grid: 1.
extern "C" __global__ void clip_factor(const double *partial, double *norm, float *factor, double *failed, u32 n,
                                       float largest) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x > 0) return;
    const double root = sqrt(failed == nullptr ? sum : sum + failed[0]);
    norm[0] = root;
    const bool finite = root - root == 0.0;
    if (failed != nullptr && !finite) failed[0] = static_cast<double>(__uint_as_float(0x7fc00000u));
    factor[0] = !finite ? __uint_as_float(0x7fc00000u)
                        : (largest > 0.0f && root > largest ? static_cast<float>(largest / root) : 1.0f);
}
REGISTERED(clip_factor)
