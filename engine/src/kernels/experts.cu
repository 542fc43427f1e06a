// `experts.rs` on the GPU with plain multiply-adds: f32, and sizes that experts_mma.cu does not take. A
// block has a tile of a result, each of its threads four by four elements of it.
#include "experts.cuh"

namespace experts {

// Columns of a tile; as many as it has rows.
static const u32 TILE = EXPERT_ROWS;
static const u32 THREADS = 256;
// Rows, and columns, of threads; elements that each has along both.
static const u32 SIDE = 16, PER = TILE / SIDE;
// How far a tile goes along what is summed over.
static const u32 STEP = 16;

typedef float Operand[STEP][TILE + 1];

// Copies elements (i, k), i < n, k < inner, of a matrix whose rows lie along k where ALONG, along i
// otherwise, `stride` apart; zeros elsewhere.
template <bool ALONG, typename T>
__device__ void load(Operand tile, const T *from, u64 stride, u32 n, u32 inner) {
    for (u32 at = threadIdx.x; at < TILE * STEP; at += THREADS) {
        const u32 i = ALONG ? at / STEP : at % TILE, k = ALONG ? at % STEP : at / TILE;
        const u64 element = ALONG ? i * stride + k : k * stride + i;
        tile[k][i] = i < n && k < inner ? to_float(from[element]) : 0.0f;
    }
}

// A tile of a b: `rows` by `columns` of it exist. Each operand lies along what is summed over (`inner`) or
// across it.
template <bool A_ALONG, bool B_ALONG, typename T>
__device__ void multiply(const T *a, u64 a_stride, u32 rows, const T *b, u64 b_stride, u32 columns, u32 inner,
                         float acc[PER][PER]) {
    __shared__ Operand a_tile, b_tile;
    const u32 row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    for (u32 k = 0; k < inner; k += STEP) {
        // The tiles before are read to their end.
        __syncthreads();
        load<A_ALONG>(a_tile, a + (A_ALONG ? k : k * a_stride), a_stride, rows, inner - k);
        load<B_ALONG>(b_tile, b + (B_ALONG ? k : k * b_stride), b_stride, columns, inner - k);
        __syncthreads();
#pragma unroll
        for (u32 at = 0; at < STEP; at++) {
            float x[PER], y[PER];
#pragma unroll
            for (u32 i = 0; i < PER; i++) {
                x[i] = a_tile[at][row + SIDE * i];
                y[i] = b_tile[at][column + SIDE * i];
            }
#pragma unroll
            for (u32 i = 0; i < PER; i++) {
#pragma unroll
                for (u32 j = 0; j < PER; j++) acc[i][j] += x[i] * y[j];
            }
        }
    }
}

// to (+)= scale acc.
template <typename U>
__device__ void store(U *to, u64 stride, u32 rows, u32 columns, const float acc[PER][PER], u32 add, float scale) {
    for (u32 i = 0; i < PER; i++) {
        const u32 row = threadIdx.x / SIDE + SIDE * i;
        for (u32 j = 0; j < PER; j++) {
            const u32 column = threadIdx.x % SIDE + SIDE * j;
            if (row >= rows || column >= columns) continue;
            U &at = to[row * stride + column];
            at = from_float<U>((add != 0 ? to_float(at) : 0.0f) + scale * acc[i][j]);
        }
    }
}

// The rows of a tile of pairs, times a matrix of their expert.
template <bool W_ALONG, typename T>
__device__ void grouped(const T *x, const u64 *weights, const ExpertTile *tiles, T *y, u32 inner, u32 columns,
                        u32 add, float scale) {
    const Corner corner = corner_of(blockIdx.x, columns, 1, TILE);
    const ExpertTile tile = tiles[corner.row];
    if (tile.n == 0) return;
    const T *w = reinterpret_cast<const T *>(weights[tile.expert]);
    const u64 stride = W_ALONG ? inner : columns;
    const u64 start = tile.start;
    float acc[PER][PER] = {};
    multiply<true, W_ALONG>(x + start * inner, inner, tile.n, w + corner.column * (W_ALONG ? stride : 1), stride,
                            columns - corner.column, inner, acc);
    store(y + start * columns + corner.column, columns, tile.n, columns - corner.column, acc, add, scale);
}

} // namespace experts

// y[p] (+)= scale W_e x[p] for the pairs p of expert e; weights[e] = where W_e is, [columns, inner].
// Grid: tiles of pairs times tiles of columns.
template <typename T>
__device__ void experts_forward(const T *x, const u64 *weights, const ExpertTile *tiles, T *y, u32 inner,
                                u32 columns, u32 add, float scale) {
    experts::grouped<true>(x, weights, tiles, y, inner, columns, add, scale);
}
ENTRY(experts_forward,
      (const T *x, const u64 *weights, const ExpertTile *tiles, T *y, u32 inner, u32 columns, u32 add, float scale),
      (x, weights, tiles, y, inner, columns, add, scale))

// The same with W_e^T: weights[e] = where W_e is, [inner, columns].
template <typename T>
__device__ void experts_backward_input(const T *x, const u64 *weights, const ExpertTile *tiles, T *y, u32 inner,
                                       u32 columns, u32 add, float scale) {
    experts::grouped<false>(x, weights, tiles, y, inner, columns, add, scale);
}
ENTRY(experts_backward_input,
      (const T *x, const u64 *weights, const ExpertTile *tiles, T *y, u32 inner, u32 columns, u32 add, float scale),
      (x, weights, tiles, y, inner, columns, add, scale))

// slot_e (+)= scale dy^T x over the pairs of expert e; slots[e] = where slot_e is, [rows, columns], or null.
// Grid: tiles of a slot, experts.
template <typename T>
__device__ void experts_backward_weight(const T *dy, const T *x, const u32 *offsets, const u64 *slots, u32 rows,
                                        u32 columns, u32 add, float scale) {
    float *slot = reinterpret_cast<float *>(slots[blockIdx.y]);
    const u64 first = offsets[blockIdx.y];
    const u32 pairs = offsets[blockIdx.y + 1] - offsets[blockIdx.y];
    if (slot == nullptr || (add != 0 && pairs == 0)) return;
    const Corner corner = corner_of(blockIdx.x, columns, experts::TILE, experts::TILE);
    const u32 left = rows - corner.row, across = columns - corner.column;
    float acc[experts::PER][experts::PER] = {};
    experts::multiply<false, false>(dy + first * rows + corner.row, rows, left, x + first * columns + corner.column,
                                    columns, across, pairs, acc);
    slot += static_cast<u64>(corner.row) * columns + corner.column;
    experts::store(slot, columns, left, across, acc, add, scale);
}
ENTRY(experts_backward_weight,
      (const T *dy, const T *x, const u32 *offsets, const u64 *slots, u32 rows, u32 columns, u32 add, float scale),
      (dy, x, offsets, slots, rows, columns, add, scale))

// Copies matrices of n floats behind one another as bfloat16, and says where each is then. Grid: (n / 8
// threads, experts).
extern "C" __global__ void round_experts(const u64 *from, bf16 *to, u64 *addresses, u64 n) {
    bf16 *own = to + blockIdx.y * n;
    const u64 i = first_of_eight();
    if (i == 0) addresses[blockIdx.y] = reinterpret_cast<u64>(own);
    if (i >= n) return;
    Eight v;
    v.load(reinterpret_cast<const float *>(from[blockIdx.y]) + i, n - i);
    v.store(own + i, n - i);
}
REGISTERED(round_experts)
