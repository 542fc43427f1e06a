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

// Two sums over the block at a time, with one barrier: the buffers take turns, so that nobody writes
// where others may still read.
struct PairSum {
    float (*partial)[2][32];
    u32 turn;
    __device__ float2 operator()(float a, float b) {
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
        a = warp_sum(a);
        b = warp_sum(b);
        float(*own)[32] = partial[turn];
        turn ^= 1;
        if (lane == 0) {
            own[0][warp] = a;
            own[1][warp] = b;
        }
        __syncthreads();
        return {warp_sum(lane < warps ? own[0][lane] : 0.0f), warp_sum(lane < warps ? own[1][lane] : 0.0f)};
    }
};

// One row's part of a thread: what arrives, and what is normed.
template <typename T> struct RowPart {
    Eight g, x, past;
    __device__ __forceinline__ void load(const T *dy, const T *from, const T *residual, u64 at, u64 left) {
        g.load(dy + at, left);
        x.load(from + at, left);
        if (residual != nullptr) past.load(residual + at, left);
    }
    // Adds to the sums over the row.
    __device__ __forceinline__ void add(const Eight &w, float &squares, float &projection) const {
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) {
            squares += x.v[e] * x.v[e];
            projection += g.v[e] * w.v[e] * x.v[e];
        }
    }
    // Turns g into dx; adds to the weight's gradient.
    __device__ __forceinline__ void finish(const Eight &w, float inv, float mean, Eight &dw) {
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) {
            const float v = x.v[e] * inv;
            dw.v[e] += g.v[e] * v;
            g.v[e] = inv * (g.v[e] * w.v[e] - v * mean) + past.v[e];
        }
    }
};

// Turns dy into dx (+ residual). Block b has rows b * run .. (b + 1) * run and writes its share of dw
// to partial[b]; residual and partial may be null. A thread owns its columns, so that no two touch
// one element of partial. Where it has eight at most they stay in registers, and the next row is on its
// way while one is summed. Grid: ceil(rows / run).
template <typename T>
__device__ void rms_norm_backward(T *dy, const T *x, const T *w, const T *residual, float *partial,
                                  u32 rows, u32 width, u32 run, float eps) {
    __shared__ float buffers[2][2][32];
    PairSum sum_pair = {buffers, 0};
    const u32 first = blockIdx.x * run;
    const u32 last = min(first + run, rows);
    const u32 own = threadIdx.x * EIGHT;
    const float per_column = 1.0f / static_cast<float>(width);
    float *dw = partial == nullptr ? nullptr : partial + static_cast<u64>(blockIdx.x) * width;
    if (width <= blockDim.x * EIGHT) {
        const u64 left = own < width ? width - own : 0;
        Eight ws = {}, sums = {};
        RowPart<T> part = {};
        if (left > 0) {
            ws.load(w + own, left);
            part.load(dy, x, residual, static_cast<u64>(first) * width + own, left);
        }
        for (u32 row = first; row < last; row++) {
            RowPart<T> next = {};
            const u64 at = static_cast<u64>(row) * width + own;
            if (left > 0 && row + 1 < last) next.load(dy, x, residual, at + width, left);
            float squares = 0.0f, projection = 0.0f;
            part.add(ws, squares, projection);
            const float2 total = sum_pair(squares, projection);
            const float inv = 1.0f / sqrtf(total.x * per_column + eps);
            part.finish(ws, inv, total.y * inv * per_column, sums);
            if (left > 0) part.g.store(dy + at, left);
            part = next;
        }
        if (dw != nullptr && left > 0) sums.store(dw + own, left);
        return;
    }
    for (u32 row = first; row < last; row++) {
        const u64 start = static_cast<u64>(row) * width;
        float squares = 0.0f, projection = 0.0f;
        for (u32 i = own; i < width; i += blockDim.x * EIGHT) {
            Eight ws;
            RowPart<T> part = {};
            ws.load(w + i, width - i);
            part.load(dy, x, nullptr, start + i, width - i);
            part.add(ws, squares, projection);
        }
        const float2 total = sum_pair(squares, projection);
        const float inv = 1.0f / sqrtf(total.x * per_column + eps);
        for (u32 i = own; i < width; i += blockDim.x * EIGHT) {
            Eight ws, sums = {};
            RowPart<T> part = {};
            ws.load(w + i, width - i);
            part.load(dy, x, residual, start + i, width - i);
            if (dw != nullptr && row > first) sums.load(dw + i, width - i);
            part.finish(ws, inv, total.y * inv * per_column, sums);
            part.g.store(dy + start + i, width - i);
            if (dw != nullptr) sums.store(dw + i, width - i);
        }
    }
}
ENTRY(rms_norm_backward,
      (T * dy, const T *x, const T *w, const T *residual, float *partial, u32 rows, u32 width, u32 run,
       float eps),
      (dy, x, w, residual, partial, rows, width, run, eps))
