// `adamw.rs` on the GPU: one pass over parameter, gradient and both moments.
#include "device.cuh"

__device__ __forceinline__ u32 scramble(u32 x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// What is stored of `x`. A float as it is; a bfloat16 rounded up or down at random, by the distance to
// both, so that small updates are not lost: the mean of what is stored is `x`.
__device__ __forceinline__ void store(float *to, float x, u32) { *to = x; }
__device__ __forceinline__ void store(bf16 *to, float x, u32 random) {
    const u32 bits = __float_as_uint(x);
    // Infinities and NaN keep their meaning.
    if ((bits & 0x7f800000u) == 0x7f800000u) {
        *to = __float2bfloat16_rn(x);
        return;
    }
    *to = __ushort_as_bfloat16(static_cast<unsigned short>((bits + (random & 0xffffu)) >> 16));
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

// One element, with moments of floats or of bfloat16.
template <typename T, typename M>
__device__ __forceinline__ void step_of(T *parameter, const float *gradient, M *first, M *second, u64 i,
                                        const Coefficients &c, u32 seed) {
    float m = to_float(first[i]), v = to_float(second[i]);
    const float p = update(to_float(parameter[i]), gradient[i], m, v, c);
    const u32 draw = draw_of(i, seed);
    store(parameter + i, p, draw);
    store(first + i, m, draw_of_first(draw));
    store(second + i, v, draw_of_second(draw));
}

// Moments of floats.
template <typename T>
__device__ void adamw_step(T *parameter, const float *gradient, float *first, float *second, u64 n,
                           float gradient_scale, float beta1, float beta2, float keep, float step_size,
                           float inverse_root_correction, float eps, u32 seed) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const Coefficients c = {gradient_scale, beta1, beta2, keep, step_size, inverse_root_correction, eps};
    step_of(parameter, gradient, first, second, i, c, seed);
}
ENTRY(adamw_step,
      (T * parameter, const float *gradient, float *first, float *second, u64 n, float gradient_scale,
       float beta1, float beta2, float keep, float step_size, float inverse_root_correction, float eps,
       u32 seed),
      (parameter, gradient, first, second, n, gradient_scale, beta1, beta2, keep, step_size,
       inverse_root_correction, eps, seed))

// `[adamw-bf16]`: moments of bfloat16, rounded at random.
template <typename T>
__device__ void adamw_bf16_step(T *parameter, const float *gradient, bf16 *first, bf16 *second, u64 n,
                                float gradient_scale, float beta1, float beta2, float keep,
                                float step_size, float inverse_root_correction, float eps, u32 seed) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const Coefficients c = {gradient_scale, beta1, beta2, keep, step_size, inverse_root_correction, eps};
    step_of(parameter, gradient, first, second, i, c, seed);
}
ENTRY(adamw_bf16_step,
      (T * parameter, const float *gradient, bf16 *first, bf16 *second, u64 n, float gradient_scale,
       float beta1, float beta2, float keep, float step_size, float inverse_root_correction, float eps,
       u32 seed),
      (parameter, gradient, first, second, n, gradient_scale, beta1, beta2, keep, step_size,
       inverse_root_correction, eps, seed))

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

// `[adamw-8bit]`: a thread block is a block of 256 elements that share a scale.
template <typename T>
__device__ void adamw_8bit_step(T *parameter, const float *gradient, unsigned char *first,
                                float *first_scales, unsigned char *second, float *second_scales,
                                const float *signed_map, const float *unsigned_map, u64 n,
                                float gradient_scale, float beta1, float beta2, float keep,
                                float step_size, float inverse_root_correction, float eps, u32 seed) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    const bool inside = i < n;
    const Coefficients c = {gradient_scale, beta1, beta2, keep, step_size, inverse_root_correction, eps};
    float m = 0.0f, v = 0.0f;
    if (inside) {
        m = signed_map[first[i]] * first_scales[blockIdx.x];
        v = unsigned_map[second[i]] * second_scales[blockIdx.x];
        const float p = update(to_float(parameter[i]), gradient[i], m, v, c);
        store(parameter + i, p, draw_of(i, seed));
    }
    // Everyone has read the old scales when these return.
    const float first_scale = block_max(fabsf(m)), second_scale = block_max(v);
    if (threadIdx.x == 0) {
        first_scales[blockIdx.x] = first_scale;
        second_scales[blockIdx.x] = second_scale;
    }
    if (!inside) return;
    first[i] = static_cast<unsigned char>(nearest(signed_map, first_scale > 0.0f ? m / first_scale : 0.0f));
    const u32 code = nearest(unsigned_map, second_scale > 0.0f ? v / second_scale : 0.0f);
    // A second moment that vanishes under a first that does not would be an enormous step.
    second[i] = static_cast<unsigned char>(code == 0 && v > 0.0f ? 1 : code);
}
ENTRY(adamw_8bit_step,
      (T * parameter, const float *gradient, unsigned char *first, float *first_scales,
       unsigned char *second, float *second_scales, const float *signed_map, const float *unsigned_map,
       u64 n, float gradient_scale, float beta1, float beta2, float keep, float step_size,
       float inverse_root_correction, float eps, u32 seed),
      (parameter, gradient, first, first_scales, second, second_scales, signed_map, unsigned_map, n,
       gradient_scale, beta1, beta2, keep, step_size, inverse_root_correction, eps, seed))
