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

// `[adamw]` in docs/equations.md. `seed` differs from step to step and from tensor to tensor.
template <typename T>
__device__ void adamw_step(T *parameter, const float *gradient, float *first, float *second, u64 n,
                           float gradient_scale, float beta1, float beta2, float keep, float step_size,
                           float inverse_root_correction, float eps, u32 seed) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float g = gradient[i] * gradient_scale;
    const float m = beta1 * first[i] + (1.0f - beta1) * g;
    const float v = beta2 * second[i] + (1.0f - beta2) * g * g;
    first[i] = m;
    second[i] = v;
    const float root = sqrtf(v) * inverse_root_correction + eps;
    const float p = to_float(parameter[i]) * keep - step_size * m / root;
    store(parameter + i, p, scramble(scramble(static_cast<u32>(i) ^ seed) + static_cast<u32>(i >> 32)));
}
ENTRY(adamw_step,
      (T * parameter, const float *gradient, float *first, float *second, u64 n, float gradient_scale,
       float beta1, float beta2, float keep, float step_size, float inverse_root_correction, float eps,
       u32 seed),
      (parameter, gradient, first, second, n, gradient_scale, beta1, beta2, keep, step_size,
       inverse_root_correction, eps, seed))
