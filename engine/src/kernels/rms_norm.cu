// `rms_norm.rs` on the GPU: one block per row, or per run of rows where sums over rows are asked for.
#include "device.cuh"

// 1 / sqrt(mean(x^2) + eps) of one row, the same in every thread.
template <typename T> __device__ float inverse_rms(const T *x, u32 width, float eps) {
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        const float v = to_float(x[i]);
        squares += v * v;
    }
    return 1.0f / sqrtf(block_sum(squares) / static_cast<float>(width) + eps);
}

// y = x / rms(x) * w. Grid: rows.
template <typename T>
__device__ void rms_norm_forward(const T *x, const T *w, T *y, u32 width, float eps) {
    const u64 start = static_cast<u64>(blockIdx.x) * width;
    const float inv = inverse_rms(x + start, width, eps);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        y[start + i] = from_float<T>(to_float(x[start + i]) * inv * to_float(w[i]));
    }
}
ENTRY(rms_norm_forward, (const T *x, const T *w, T *y, u32 width, float eps), (x, w, y, width, eps))

// Turns dy into dx (+ residual). Block b has rows b * run .. (b + 1) * run and writes its share of dw
// to partial[b]; residual and partial may be null. A thread owns its columns, so that no two touch
// one element of partial. Grid: ceil(rows / run).
template <typename T>
__device__ void rms_norm_backward(T *dy, const T *x, const T *w, const T *residual, float *partial,
                                  u32 rows, u32 width, u32 run, float eps) {
    const u32 first = blockIdx.x * run;
    const u32 last = min(first + run, rows);
    float *dw = partial == nullptr ? nullptr : partial + static_cast<u64>(blockIdx.x) * width;
    for (u32 row = first; row < last; row++) {
        const u64 start = static_cast<u64>(row) * width;
        const float inv = inverse_rms(x + start, width, eps);
        float projection = 0.0f;
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            projection += to_float(dy[start + i]) * to_float(w[i]) * to_float(x[start + i]);
        }
        const float mean = block_sum(projection) * inv / static_cast<float>(width);
        for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
            const float g = to_float(dy[start + i]), v = to_float(x[start + i]) * inv;
            if (dw != nullptr) dw[i] = (row == first ? 0.0f : dw[i]) + g * v;
            float dx = inv * (g * to_float(w[i]) - v * mean);
            if (residual != nullptr) dx += to_float(residual[start + i]);
            dy[start + i] = from_float<T>(dx);
        }
    }
}
ENTRY(rms_norm_backward,
      (T * dy, const T *x, const T *w, const T *residual, float *partial, u32 rows, u32 width, u32 run,
       float eps),
      (dy, x, w, residual, partial, rows, width, run, eps))
