// `cross_entropy.rs` on the GPU: statistics of rows of logits in one pass, their gradient in a second.
#include "counter_rng.cuh"

// Sums over part of a row, relative to the largest logit of the part: of e^z, e^z * z, e^2z.
struct Sums {
    float largest;
    float total, weighted, squares;
};

__device__ __forceinline__ Sums merge(Sums a, Sums b) {
    const float top = fmaxf(a.largest, b.largest);
    if (top == -INFINITY) return a;
    Sums out = {top, 0.0f, 0.0f, 0.0f};
    for (int side = 0; side < 2; side++) {
        const Sums s = side == 0 ? a : b;
        if (s.largest == -INFINITY) continue;
        const float shift = s.largest - top, f = expf(shift);
        out.total += s.total * f;
        out.weighted += (s.weighted + s.total * shift) * f;
        out.squares += s.squares * f * f;
    }
    return out;
}

__device__ __forceinline__ Sums warp_merge(Sums s) {
    for (int offset = 16; offset > 0; offset /= 2) {
        Sums other;
        other.largest = __shfl_xor_sync(0xffffffffu, s.largest, offset);
        other.total = __shfl_xor_sync(0xffffffffu, s.total, offset);
        other.weighted = __shfl_xor_sync(0xffffffffu, s.weighted, offset);
        other.squares = __shfl_xor_sync(0xffffffffu, s.squares, offset);
        s = merge(s, other);
    }
    return s;
}

// The statistics of each row of logits, `[rows, vocab]` floats, with hidden states h `[rows, width]`:
// out[row] = {logp, entropy, rank, grad_norm}. Where `keep` is not 0 the logits become p - e_target,
// and `residual` (may be null) the same rounded to T. Grid: rows.
//
// The target is left out of the sums and added at the end, so that 1 - p keeps its precision.
template <typename T>
__device__ void head_statistics(float *logits, const T *h, const u32 *targets, float *out, T *residual,
                                u32 vocab, u32 width, u32 keep) {
    __shared__ Sums partial[32];
    float *z = logits + static_cast<u64>(blockIdx.x) * vocab;
    const u32 target = targets[blockIdx.x];
    const float at_target = z[target];
    u32 above = 0;
    bool bad = !(at_target == at_target);
    Sums own = {-INFINITY, 0.0f, 0.0f, 0.0f};
    for (u32 v = threadIdx.x; v < vocab; v += blockDim.x) {
        const float x = z[v];
        bad = bad || !(x == x);
        if (v == target) continue;
        above += x > at_target;
        if (x > own.largest) {
            // Rescales what is there; the first element rescales nothing.
            if (own.largest != -INFINITY) {
                const float shift = own.largest - x, f = expf(shift);
                own.weighted = (own.weighted + own.total * shift) * f;
                own.total *= f;
                own.squares *= f * f;
            }
            own.largest = x;
        }
        if (x == -INFINITY) continue;
        const float shifted = x - own.largest, e = expf(shifted);
        own.total += e;
        own.weighted += e * shifted;
        own.squares += e * e;
    }
    own = warp_merge(own);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    if (lane == 0) partial[warp] = own;
    __syncthreads();
    Sums all = {-INFINITY, 0.0f, 0.0f, 0.0f};
    if (lane < warps) all = partial[lane];
    all = warp_merge(all);
    const u32 rank = block_sum(above);
    const bool any_bad = block_sum(bad ? 1u : 0u) > 0;
    float hidden = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float x = to_float(h[static_cast<u64>(blockIdx.x) * width + i]);
        hidden += x * x;
    }
    hidden = block_sum(hidden);

    const float top = fmaxf(all.largest, at_target);
    const double f = all.largest == -INFINITY ? 0.0 : exp(static_cast<double>(all.largest - top));
    const double spread = all.largest == -INFINITY ? 0.0 : static_cast<double>(all.largest - top);
    const double total = all.total * f, squares = all.squares * f * f;
    const double weighted = (all.weighted + all.total * spread) * f;
    const double shifted = static_cast<double>(at_target - top), e_target = exp(shifted);
    const double partition = total + e_target;
    const double log_partition = shifted == 0.0 ? log1p(total) : log(partition);
    const double others = total / partition;
    if (threadIdx.x == 0) {
        float *to = out + static_cast<u64>(blockIdx.x) * 4;
        const double error = sqrt(others * others + squares / (partition * partition));
        const float nan = __uint_as_float(0x7fc00000u);
        to[0] = any_bad ? nan : static_cast<float>(shifted - log_partition);
        const double target_part = e_target > 0.0 ? e_target * shifted : 0.0;
        to[1] = any_bad ? nan : static_cast<float>(log_partition - (weighted + target_part) / partition);
        // A vocabulary has fewer than 2^24 entries: exact in a float.
        to[2] = static_cast<float>(rank);
        to[3] = any_bad ? nan : static_cast<float>(error * sqrt(static_cast<double>(hidden)));
    }
    if (keep == 0) return;
    const float inverse = static_cast<float>(1.0 / partition);
    for (u32 v = threadIdx.x; v < vocab; v += blockDim.x) {
        const float p = v == target ? -static_cast<float>(others) : expf(z[v] - top) * inverse;
        z[v] = p;
        if (residual != nullptr) residual[static_cast<u64>(blockIdx.x) * vocab + v] = from_float<T>(p);
    }
}
ENTRY(head_statistics,
      (float *logits, const T *h, const u32 *targets, float *out, T *residual, u32 vocab, u32 width, u32 keep),
      (logits, h, targets, out, residual, vocab, width, keep))

// signs[v, i] of rows first .. first + n of a sign matrix of `width` columns, as floats; `key` is the
// stream's. Grid: ceil(n * width / threads).
extern "C" __global__ void sketch_signs(float *signs, u64 key, u32 first, u32 n, u32 width) {
    const u64 at = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= static_cast<u64>(n) * width) return;
    const u64 v = first + at / width, i = at % width;
    const u64 bits = random_bits(key, v, i / 64);
    signs[at] = (bits >> (i % 64) & 1) == 0 ? 1.0f : -1.0f;
}
REGISTERED(sketch_signs)

// to[i] = from[i], as float.
template <typename T> __device__ void widen(const T *from, float *to, u64 n) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) to[i] = to_float(from[i]);
}
ENTRY(widen, (const T *from, float *to, u64 n), (from, to, n))

// errors[i] *= hidden[i] * factor.
extern "C" __global__ void sketch_product(float *errors, const float *hidden, float factor, u64 n) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) errors[i] = errors[i] * hidden[i] * factor;
}
REGISTERED(sketch_product)
