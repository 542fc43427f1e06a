// `rotary.rs` on the GPU: per-head RMSNorm and rotary in one pass, one warp per head of a row.
#include "rotary.cuh"

// A lane holds elements lane, lane + 32, ...: heads of up to 256.
static const u32 MOST_PER_LANE = 8;
// Warps of a block of the backward pass.
static const u32 WARPS = 8;

// Whether all of a head turns and a lane has 2, 4 or 8 neighbouring elements of it: then the partners of
// a lane's are those of the lane 16 on, in its registers.
__device__ __forceinline__ bool turns_whole(u32 head_dim, u32 dim) {
    return dim == head_dim && (head_dim == 64 || head_dim == 128 || head_dim == 256);
}

// A lane's C elements of a head as floats, by one access to memory.
template <u32 C> __device__ __forceinline__ void load_part(float v[C], const float *from) {
#pragma unroll
    for (u32 j = 0; j < C; j++) v[j] = from[j];
}
template <u32 C> struct alignas(2 * C) Words {
    u32 word[C / 2];
};
template <u32 C> __device__ __forceinline__ void load_part(float v[C], const bf16 *from) {
    const Words<C> raw = *reinterpret_cast<const Words<C> *>(from);
#pragma unroll
    for (u32 j = 0; j < C / 2; j++) unpack(raw.word[j], v + 2 * j);
}
template <u32 C> __device__ __forceinline__ void store_part(float *to, const float v[C]) {
#pragma unroll
    for (u32 j = 0; j < C; j++) to[j] = v[j];
}
template <u32 C> __device__ __forceinline__ void store_part(bf16 *to, const float v[C]) {
    Words<C> raw;
#pragma unroll
    for (u32 j = 0; j < C / 2; j++) raw.word[j] = pack(v[2 * j], v[2 * j + 1]);
    *reinterpret_cast<Words<C> *>(to) = raw;
}

// The cosines of a lane's elements, and the sines of the lower one of each pair.
template <u32 C> struct Angles {
    float cos[C], sin[C];
    __device__ Angles(const float *angles) {
        const u32 at = threadIdx.x % 16 * C;
        load_part<C>(cos, angles + at);
        load_part<C>(sin, angles + 16 * C + at);
    }
};

// What the pairs of a head become, turned by `sign` times their angles: (a, b) to (a cos - b sin,
// b cos + a sin).
template <u32 C> __device__ __forceinline__ void turn(float v[C], const Angles<C> &angles, float sign) {
    const float side = threadIdx.x % 32 < 16 ? -sign : sign;
#pragma unroll
    for (u32 j = 0; j < C; j++) {
        const float other = __shfl_xor_sync(0xffffffffu, v[j], 16);
        v[j] = v[j] * angles.cos[j] + side * angles.sin[j] * other;
    }
}

template <u32 C> __device__ __forceinline__ float squares_of(const float v[C]) {
    float sum = 0.0f;
#pragma unroll
    for (u32 j = 0; j < C; j++) sum += v[j] * v[j];
    return warp_sum(sum);
}

// `rotary_forward` of one head that turns whole.
template <typename T, u32 C>
__device__ __forceinline__ void forward_whole(const T *x, const T *norm, const float *angles, T *y, float eps) {
    const u32 at = threadIdx.x % 32 * C;
    float v[C];
    load_part<C>(v, x + at);
    if (norm != nullptr) {
        float w[C];
        load_part<C>(w, norm + at);
        const float inv = 1.0f / sqrtf(squares_of<C>(v) / static_cast<float>(32 * C) + eps);
#pragma unroll
        for (u32 j = 0; j < C; j++) v[j] *= inv * w[j];
    }
    turn<C>(v, Angles<C>(angles), 1.0f);
    store_part<C>(y + at, v);
}

// `rotary_backward` of heads that turn whole: items warp, warp + warps, ... of all. The next item is on its
// way while one is turned. Adds to dw, a lane's neighbouring elements.
template <typename T, u32 C>
__device__ __forceinline__ void backward_whole(T *dy, const T *x, const T *norm, const float *table,
                                               const u32 *positions, float *dw, u32 warp, u32 warps, u32 items,
                                               u32 heads, float eps) {
    const u32 at = threadIdx.x % 32 * C;
    float w[C] = {}, d[C], v[C] = {};
    if (norm != nullptr) load_part<C>(w, norm + at);
    u32 position = 0;
    if (warp < items) {
        const u64 start = static_cast<u64>(warp) * 32 * C + at;
        position = positions[warp / heads];
        load_part<C>(d, dy + start);
        if (norm != nullptr) load_part<C>(v, x + start);
    }
    for (u32 item = warp; item < items; item += warps) {
        const Angles<C> angles(table + static_cast<u64>(position) * 32 * C);
        const u64 start = static_cast<u64>(item) * 32 * C + at;
        float next_d[C], next_v[C] = {};
        // Not past the end, nor past what 32 bits count.
        if (items - item > warps) {
            const u64 next = start + static_cast<u64>(warps) * 32 * C;
            position = positions[(item + warps) / heads];
            load_part<C>(next_d, dy + next);
            if (norm != nullptr) load_part<C>(next_v, x + next);
        }
        turn<C>(d, angles, -1.0f);
        if (norm != nullptr) {
            const float inv = 1.0f / sqrtf(squares_of<C>(v) / static_cast<float>(32 * C) + eps);
            float projection = 0.0f;
#pragma unroll
            for (u32 j = 0; j < C; j++) projection += d[j] * w[j] * v[j];
            const float mean = warp_sum(projection) * inv / static_cast<float>(32 * C);
#pragma unroll
            for (u32 j = 0; j < C; j++) {
                v[j] *= inv;
                dw[j] += d[j] * v[j];
                d[j] = inv * (d[j] * w[j] - v[j] * mean);
            }
        }
        store_part<C>(dy + start, d);
        if (items - item <= warps) break;
#pragma unroll
        for (u32 j = 0; j < C; j++) {
            d[j] = next_d[j];
            v[j] = next_v[j];
        }
    }
}
// y = rotary(norm(x)); norm may be null. `items` = rows * heads, `table` [positions, dim].
// Grid: ceil(items / warps per block).
template <typename T>
__device__ void rotary_forward(const T *x, const T *norm, const float *table, const u32 *positions,
                               T *y, u32 items, u32 heads, u32 head_dim, u32 dim, float eps) {
    const u32 item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    // Whole warps leave: nothing below waits for the block.
    if (item >= items) return;
    const u64 start = static_cast<u64>(item) * head_dim;
    const float *angles = table + static_cast<u64>(positions[item / heads]) * dim;
    if (turns_whole(head_dim, dim)) {
        if (head_dim == 64) forward_whole<T, 2>(x + start, norm, angles, y + start, eps);
        if (head_dim == 128) forward_whole<T, 4>(x + start, norm, angles, y + start, eps);
        if (head_dim == 256) forward_whole<T, 8>(x + start, norm, angles, y + start, eps);
        return;
    }
    const float inv = norm == nullptr ? 1.0f : warp_inverse_rms(x + start, head_dim, eps);
    for (u32 e = threadIdx.x % 32; e < head_dim; e += 32) {
        const Turn turn = turn_of(angles, e, dim);
        float own = to_float(x[start + e]) * inv, other = to_float(x[start + turn.partner]) * inv;
        if (norm != nullptr) {
            own *= to_float(norm[e]);
            other *= to_float(norm[turn.partner]);
        }
        y[start + e] = from_float<T>(own * turn.cos + other * turn.sin);
    }
}
ENTRY(rotary_forward,
      (const T *x, const T *norm, const float *table, const u32 *positions, T *y, u32 items, u32 heads,
       u32 head_dim, u32 dim, float eps),
      (x, norm, table, positions, y, items, heads, head_dim, dim, eps))

// The sum of a block's shares of a norm's gradient: `elements` of each lane's dw, `step` apart from `from`
// on, to partial[block].
__device__ __forceinline__ void add_shares(const float *dw, u32 elements, u32 from, u32 step, u32 head_dim,
                                           float *partial) {
    __shared__ float shares[WARPS][32 * MOST_PER_LANE];
    for (u32 j = 0; j < elements; j++) {
        const u32 e = from + j * step;
        if (e < head_dim) shares[threadIdx.x / 32][e] = dw[j];
    }
    __syncthreads();
    for (u32 e = threadIdx.x; e < head_dim; e += blockDim.x) {
        float sum = 0.0f;
        for (u32 w = 0; w < WARPS; w++) sum += shares[w][e];
        partial[static_cast<u64>(blockIdx.x) * head_dim + e] = sum;
    }
}

// Turns dy into dx in place. Warp w of all warps takes items w, w + n, ...; the sum of a block's shares of
// the norm's gradient goes to partial[block] ([blocks, head_dim], may be null). A block has 8 warps.
template <typename T>
__device__ void rotary_backward(T *dy, const T *x, const T *norm, const float *table,
                                const u32 *positions, float *partial, u32 items, u32 heads,
                                u32 head_dim, u32 dim, float eps) {
    const u32 lane = threadIdx.x % 32;
    const u32 warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const u32 warps = gridDim.x * (blockDim.x / 32);
    float dw[MOST_PER_LANE] = {};
    for (u32 item = warp; item < items; item += warps) {
        const u64 start = static_cast<u64>(item) * head_dim;
        const float *angles = table + static_cast<u64>(positions[item / heads]) * dim;
        float turned[MOST_PER_LANE];
        for (u32 j = 0, e = lane; e < head_dim; j++, e += 32) {
            const Turn turn = turn_of(angles, e, dim);
            turned[j] = to_float(dy[start + e]) * turn.cos - to_float(dy[start + turn.partner]) * turn.sin;
        }
        // Every lane has read its partners before any lane writes.
        __syncwarp();
        if (norm == nullptr) {
            for (u32 j = 0, e = lane; e < head_dim; j++, e += 32) dy[start + e] = from_float<T>(turned[j]);
            continue;
        }
        const float inv = warp_inverse_rms(x + start, head_dim, eps);
        float projection = 0.0f;
        for (u32 j = 0, e = lane; e < head_dim; j++, e += 32) {
            projection += turned[j] * to_float(norm[e]) * to_float(x[start + e]);
        }
        const float mean = warp_sum(projection) * inv / static_cast<float>(head_dim);
        for (u32 j = 0, e = lane; e < head_dim; j++, e += 32) {
            const float v = to_float(x[start + e]) * inv;
            dw[j] += turned[j] * v;
            dy[start + e] = from_float<T>(inv * (turned[j] * to_float(norm[e]) - v * mean));
        }
    }
    if (partial != nullptr) add_shares(dw, MOST_PER_LANE, lane, 32, head_dim, partial);
}
ENTRY(rotary_backward,
      (T * dy, const T *x, const T *norm, const float *table, const u32 *positions, float *partial,
       u32 items, u32 heads, u32 head_dim, u32 dim, float eps),
      (dy, x, norm, table, positions, partial, items, heads, head_dim, dim, eps))

// The same for heads of 32 C elements that turn whole.
template <typename T, u32 C>
__device__ void rotary_backward_whole(T *dy, const T *x, const T *norm, const float *table, const u32 *positions,
                                      float *partial, u32 items, u32 heads, float eps) {
    const u32 lane = threadIdx.x % 32;
    const u32 warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const u32 warps = gridDim.x * (blockDim.x / 32);
    float dw[C] = {};
    backward_whole<T, C>(dy, x, norm, table, positions, dw, warp, warps, items, heads, eps);
    if (partial != nullptr) add_shares(dw, C, C * lane, 1, 32 * C, partial);
}
#define WHOLE(HEAD_DIM)                                                                                \
    template <typename T>                                                                              \
    __device__ void rotary_backward_##HEAD_DIM(T *dy, const T *x, const T *norm, const float *table,   \
                                               const u32 *positions, float *partial, u32 items,        \
                                               u32 heads, u32, u32, float eps) {                       \
        rotary_backward_whole<T, HEAD_DIM / 32>(dy, x, norm, table, positions, partial, items, heads, eps); \
    }                                                                                                  \
    ENTRY(rotary_backward_##HEAD_DIM,                                                                  \
          (T * dy, const T *x, const T *norm, const float *table, const u32 *positions,                \
           float *partial, u32 items, u32 heads, u32 head_dim, u32 dim, float eps),                    \
          (dy, x, norm, table, positions, partial, items, heads, head_dim, dim, eps))
WHOLE(64)
WHOLE(128)
WHOLE(256)
