// `adamw.rs` on the GPU: one pass over parameters, gradients and both moments, all tensors in one launch.
#include "device.cuh"

__device__ __forceinline__ u32 scramble(u32 x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// What is stored of `x` in a tensor of T: of a float all; of a bfloat16 the number next to it, above or below
// at random, by the distance to both, so that small updates are not lost: the mean of what is stored is `x`.
template <typename T> __device__ __forceinline__ float rounded(float x, u32 random);
template <> __device__ __forceinline__ float rounded<float>(float x, u32) { return x; }
template <> __device__ __forceinline__ float rounded<bf16>(float x, u32 random) {
    const u32 bits = __float_as_uint(x);
    // Infinities and NaN keep their meaning.
    if ((bits & 0x7f800000u) == 0x7f800000u) return x;
    return __uint_as_float((bits + (random & 0xffffu)) & 0xffff0000u);
}

// What parameter `i` is rounded by; `seed` differs from step to step and from tensor to tensor. Its
// moments have draws of their own, made from it.
__device__ __forceinline__ u32 draw_of(u64 i, u32 seed) {
    return scramble(scramble(static_cast<u32>(i) ^ seed) + static_cast<u32>(i >> 32));
}
__device__ __forceinline__ u32 draw_of_first(u32 draw) { return scramble(draw + 0x9e3779b9u); }
__device__ __forceinline__ u32 draw_of_second(u32 draw) { return scramble(draw + 0x3c6ef372u); }

// The numbers of one step that are the same for every element of a tensor.
struct Coefficients {
    float gradient_scale, beta1, beta2, keep, step_size, inverse_root_correction, eps;
};

// `[adamw]` in docs/equations.md for one element: renews both moments, returns the new parameter.
__device__ __forceinline__ float update(float p, float gradient, float &m, float &v, const Coefficients &c) {
    const float g = gradient * c.gradient_scale;
    m = c.beta1 * m + (1.0f - c.beta1) * g;
    v = c.beta2 * v + (1.0f - c.beta2) * g * g;
    const float root = sqrtf(v) * c.inverse_root_correction + c.eps;
    return p * c.keep - c.step_size * m / root;
}

// A tensor of a step; as tensor_list.rs lays it out.
struct AdamWItem {
    void *parameter;
    const float *gradient;
    void *first, *second;
    // Of moments in 8 bits.
    float *first_scales, *second_scales;
    u64 n;
    // Added to the seed; whether weights decay.
    u32 index, decays;
};

// What a block has to do: elements [first, last) of a tensor. Nothing where clipping found that the gradient
// is no number.
struct AdamWPart {
    AdamWItem item;
    u64 first, last;
    Coefficients c;
    __device__ AdamWPart(const AdamWItem *items, const u32 *chunks, const float *clip, u32 chunk, Coefficients all)
        : item(items[chunks[2 * blockIdx.x]]), c(all) {
        const float factor = clip == nullptr ? 1.0f : clip[0];
        first = static_cast<u64>(chunks[2 * blockIdx.x + 1]) * chunk;
        last = first + chunk < item.n ? first + chunk : item.n;
        if (factor != factor) last = first;
        c.gradient_scale *= factor;
        if (item.decays == 0) c.keep = 1.0f;
    }
};

// Renews a thread's eight elements from element `i` of the tensor on.
template <typename T>
__device__ __forceinline__ void renew(Eight &p, const Eight &g, Eight &m, Eight &v, const Coefficients &c, u64 i,
                                      u32 seed) {
#pragma unroll
    for (u32 e = 0; e < EIGHT; e++) {
        p.v[e] = rounded<T>(update(p.v[e], g.v[e], m.v[e], v.v[e], c), draw_of(i + e, seed));
    }
}

// Moments of floats, or `[adamw-bf16]`: of bfloat16, rounded at random. Grid: chunks of all tensors.
template <typename T, typename M>
__device__ __forceinline__ void step_chunk(const AdamWPart &part, u32 seed) {
    T *parameter = static_cast<T *>(part.item.parameter);
    M *first = static_cast<M *>(part.item.first), *second = static_cast<M *>(part.item.second);
    seed += part.item.index;
    for (u64 i = part.first + threadIdx.x * EIGHT; i < part.last; i += blockDim.x * EIGHT) {
        const u64 left = part.last - i;
        Eight p, g, m, v;
        p.load(parameter + i, left);
        g.load(part.item.gradient + i, left);
        m.load(first + i, left);
        v.load(second + i, left);
        renew<T>(p, g, m, v, part.c, i, seed);
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) {
            const u32 draw = draw_of(i + e, seed);
            m.v[e] = rounded<M>(m.v[e], draw_of_first(draw));
            v.v[e] = rounded<M>(v.v[e], draw_of_second(draw));
        }
        p.store(parameter + i, left);
        m.store(first + i, left);
        v.store(second + i, left);
    }
}

#define ADAMW_PARAMETERS                                                                               \
    (const AdamWItem *items, const u32 *chunks, const float *clip, u32 chunk, float gradient_scale,    \
     float beta1, float beta2, float keep, float step_size, float inverse_root_correction, float eps, u32 seed)
#define ADAMW_ARGUMENTS                                                                                \
    (items, chunks, clip, chunk, gradient_scale, beta1, beta2, keep, step_size, inverse_root_correction, eps, seed)
#define ADAMW_PART                                                                                     \
    AdamWPart(items, chunks, clip, chunk,                                                              \
              Coefficients{gradient_scale, beta1, beta2, keep, step_size, inverse_root_correction, eps})

template <typename T> __device__ void adamw_step ADAMW_PARAMETERS { step_chunk<T, float>(ADAMW_PART, seed); }
ENTRY(adamw_step, ADAMW_PARAMETERS, ADAMW_ARGUMENTS)
template <typename T> __device__ void adamw_bf16_step ADAMW_PARAMETERS { step_chunk<T, bf16>(ADAMW_PART, seed); }
ENTRY(adamw_bf16_step, ADAMW_PARAMETERS, ADAMW_ARGUMENTS)

// The code of the number next to `x` in the ascending `map`, the lower of two that are as near.
__device__ __forceinline__ u32 nearest(const float *map, float x) {
    u32 low = 0, high = 255;
    while (low < high) {
        const u32 middle = (low + high + 1) / 2;
        if (map[middle] <= x)
            low = middle;
        else
            high = middle - 1;
    }
    const u32 above = low + 1 < 255 ? low + 1 : 255;
    return map[above] - x < x - map[low] ? above : low;
}

// Eight codes, of which `left` exist; those that do not are 0.
struct alignas(8) Codes {
    unsigned char code[EIGHT];
    static __device__ __forceinline__ bool whole(const void *at, u64 left) {
        return left >= EIGHT && reinterpret_cast<u64>(at) % 8 == 0;
    }
    __device__ __forceinline__ void load(const unsigned char *from, u64 left) {
        if (whole(from, left)) {
            *this = *reinterpret_cast<const Codes *>(from);
            return;
        }
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) code[e] = e < left ? from[e] : 0;
    }
    __device__ __forceinline__ void store(unsigned char *to, u64 left) const {
        if (whole(to, left)) {
            *reinterpret_cast<Codes *>(to) = *this;
            return;
        }
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) {
            if (e < left) to[e] = code[e];
        }
    }
};

// `[adamw-8bit]`: a warp has 256 neighbouring elements, which share a scale. `maps`: that of the first
// moment, then that of the second.
template <typename T>
__device__ void adamw_8bit_step(const AdamWItem *items, const u32 *chunks, const float *clip, u32 chunk,
                                float gradient_scale, float beta1, float beta2, float keep, float step_size,
                                float inverse_root_correction, float eps, u32 seed, const float *maps) {
    __shared__ float shared_maps[2 * 256];
    for (u32 i = threadIdx.x; i < 2 * 256; i += blockDim.x) shared_maps[i] = maps[i];
    __syncthreads();
    const float *signed_map = shared_maps, *unsigned_map = shared_maps + 256;
    const AdamWPart part = ADAMW_PART;
    T *parameter = static_cast<T *>(part.item.parameter);
    unsigned char *first = static_cast<unsigned char *>(part.item.first);
    unsigned char *second = static_cast<unsigned char *>(part.item.second);
    seed += part.item.index;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (u64 block = part.first / 256 + warp; block * 256 < part.last; block += warps) {
        const u64 i = block * 256 + lane * EIGHT, left = i < part.last ? part.last - i : 0;
        const float first_scale = part.item.first_scales[block], second_scale = part.item.second_scales[block];
        Eight p = {}, g = {}, m = {}, v = {};
        Codes firsts = {}, seconds = {};
        if (left > 0) {
            p.load(parameter + i, left);
            g.load(part.item.gradient + i, left);
            firsts.load(first + i, left);
            seconds.load(second + i, left);
#pragma unroll
            for (u32 e = 0; e < EIGHT; e++) {
                m.v[e] = e < left ? signed_map[firsts.code[e]] * first_scale : 0.0f;
                v.v[e] = e < left ? unsigned_map[seconds.code[e]] * second_scale : 0.0f;
            }
            renew<T>(p, g, m, v, part.c, i, seed);
            p.store(parameter + i, left);
        }
        float largest_first = 0.0f, largest_second = 0.0f;
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) {
            largest_first = fmaxf(largest_first, fabsf(m.v[e]));
            largest_second = fmaxf(largest_second, v.v[e]);
        }
        // Everyone has read the old scales when these return.
        largest_first = warp_max(largest_first);
        largest_second = warp_max(largest_second);
        if (lane == 0) {
            part.item.first_scales[block] = largest_first;
            part.item.second_scales[block] = largest_second;
        }
        if (left == 0) continue;
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) {
            const float relative_first = largest_first > 0.0f ? m.v[e] / largest_first : 0.0f;
            firsts.code[e] = static_cast<unsigned char>(nearest(signed_map, relative_first));
            const u32 code = nearest(unsigned_map, largest_second > 0.0f ? v.v[e] / largest_second : 0.0f);
            // A second moment that vanishes under a first that does not would be an enormous step.
            seconds.code[e] = static_cast<unsigned char>(code == 0 && v.v[e] > 0.0f ? 1 : code);
        }
        firsts.store(first + i, left);
        seconds.store(second + i, left);
    }
}
ENTRY(adamw_8bit_step,
      (const AdamWItem *items, const u32 *chunks, const float *clip, u32 chunk, float gradient_scale,
       float beta1, float beta2, float keep, float step_size, float inverse_root_correction, float eps,
       u32 seed, const float *maps),
      (items, chunks, clip, chunk, gradient_scale, beta1, beta2, keep, step_size, inverse_root_correction, eps,
       seed, maps))
