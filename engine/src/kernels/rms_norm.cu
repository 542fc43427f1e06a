// `rms_norm.rs` on the GPU: one block per row, or per run of rows where sums over rows are asked for.
// A thread has eight neighbouring columns; of rows wider than that, several such groups.
#include "device.cuh"

// 1 / sqrt(mean(x^2) + eps) of one row, the same in every thread.
template <typename T> __device__ float inverse_rms(const T *x, u32 width, float eps) {
    float squares = 0.0f;
    for (u32 i = threadIdx.x * EIGHT; i < width; i += blockDim.x * EIGHT) {
        Eight xs;
        xs.load(x + i, width - i);
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) squares += xs.v[e] * xs.v[e];
    }
    return 1.0f / sqrtf(block_sum(squares) / static_cast<float>(width) + eps);
}

// y = x / rms(x) * w. Grid: rows.
template <typename T>
__device__ void rms_norm_forward(const T *x, const T *w, T *y, u32 width, float eps) {
    const u64 start = static_cast<u64>(blockIdx.x) * width;
    const float inv = inverse_rms(x + start, width, eps);
    for (u32 i = threadIdx.x * EIGHT; i < width; i += blockDim.x * EIGHT) {
        Eight xs, ws;
        xs.load(x + start + i, width - i);
        ws.load(w + i, width - i);
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) xs.v[e] = xs.v[e] * inv * ws.v[e];
        xs.store(y + start + i, width - i);
    }
}
ENTRY(rms_norm_forward, (const T *x, const T *w, T *y, u32 width, float eps), (x, w, y, width, eps))

// Turns dy into dx (+ residual). Block b has rows b * run .. (b + 1) * run and writes its share of dw
// to partial[b]; residual and partial may be null. A thread owns its columns, so that no two touch
// one element of partial; where it has eight at most, their sums stay in registers.
// Grid: ceil(rows / run).
template <typename T>
__device__ void rms_norm_backward(T *dy, const T *x, const T *w, const T *residual, float *partial,
                                  u32 rows, u32 width, u32 run, float eps) {
    const u32 first = blockIdx.x * run;
    const u32 last = min(first + run, rows);
    float *dw = partial == nullptr ? nullptr : partial + static_cast<u64>(blockIdx.x) * width;
    const bool in_registers = width <= blockDim.x * EIGHT;
    Eight sums = {};
    for (u32 row = first; row < last; row++) {
        const u64 start = static_cast<u64>(row) * width;
        float squares = 0.0f, projection = 0.0f;
        for (u32 i = threadIdx.x * EIGHT; i < width; i += blockDim.x * EIGHT) {
            Eight gs, ws, xs;
            gs.load(dy + start + i, width - i);
            ws.load(w + i, width - i);
            xs.load(x + start + i, width - i);
#pragma unroll
            for (u32 e = 0; e < EIGHT; e++) {
                squares += xs.v[e] * xs.v[e];
                projection += gs.v[e] * ws.v[e] * xs.v[e];
            }
        }
        const float inv = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(width) + eps);
        const float mean = block_sum(projection) * inv / static_cast<float>(width);
        for (u32 i = threadIdx.x * EIGHT; i < width; i += blockDim.x * EIGHT) {
            Eight gs, ws, xs, past = {}, so_far = sums;
            gs.load(dy + start + i, width - i);
            ws.load(w + i, width - i);
            xs.load(x + start + i, width - i);
            if (residual != nullptr) past.load(residual + start + i, width - i);
            if (dw != nullptr && !in_registers && row > first) so_far.load(dw + i, width - i);
#pragma unroll
            for (u32 e = 0; e < EIGHT; e++) {
                const float g = gs.v[e], v = xs.v[e] * inv;
                so_far.v[e] += g * v;
                gs.v[e] = inv * (g * ws.v[e] - v * mean) + past.v[e];
            }
            gs.store(dy + start + i, width - i);
            if (in_registers)
                sums = so_far;
            else if (dw != nullptr)
                so_far.store(dw + i, width - i);
        }
    }
    const u32 own = threadIdx.x * EIGHT;
    if (in_registers && dw != nullptr && own < width) sums.store(dw + own, width - own);
}
ENTRY(rms_norm_backward,
      (T * dy, const T *x, const T *w, const T *residual, float *partial, u32 rows, u32 width, u32 run,
       float eps),
      (dy, x, w, residual, partial, rows, width, run, eps))
