// `experts.rs` on tensor cores: bfloat16, sizes that are multiples of eight, tensors aligned to 16 bytes.
// The arguments and grids are those of experts.cu, but for the columns of a tile.
//
// A block is four warps. While they multiply one step of both operands the next one is on its way to the
// other half of shared memory.
#include "experts.cuh"
#include "tensor_core.cuh"

namespace experts_mma {

static const u32 TILE = EXPERT_ROWS;
static const u32 THREADS = 128;
// How far a step goes along what is summed over.
static const u32 STEP = 32;
// Neighbours that are copied at once; also what keeps the rows of a matrix in different banks.
static const u32 PIECE = 8;

// What a warp has of a tile of WIDTH columns: two warps stand side by side where it is wide.
template <u32 WIDTH> struct Share {
    static const u32 ACROSS = WIDTH >= 128 ? 2 : 1, DOWN = THREADS / 32 / ACROSS;
    // Fragments of 16 rows, and of eight columns.
    static const u32 ROWS = TILE / DOWN / 16, COLUMNS = WIDTH / ACROSS / 8;
    static __device__ __forceinline__ u32 row() { return threadIdx.x / 32 / ACROSS * (16 * ROWS); }
    static __device__ __forceinline__ u32 column() { return threadIdx.x / 32 % ACROSS * (8 * COLUMNS); }
};

// N rows or columns of an operand and one step of them in shared memory: rows lie along what is summed
// over where ALONG, across it otherwise.
template <bool ALONG, u32 N> struct Operand {
    static const u32 ROWS = ALONG ? N : STEP, WIDTH = ALONG ? STEP : N;
    // Elements between two rows.
    static const u32 STRIDE = WIDTH + PIECE;

    // Starts copying what exists, n rows or columns and `inner` of the step; zeros elsewhere. Others see
    // neither before a barrier.
    static __device__ __forceinline__ void load(bf16 *tile, const bf16 *from, u64 stride, u32 n, u32 inner) {
        const u32 rows = ALONG ? n : inner, width = ALONG ? inner : n;
#pragma unroll
        for (u32 i = threadIdx.x; i < ROWS * WIDTH / PIECE; i += THREADS) {
            const u32 r = i / (WIDTH / PIECE), c = i % (WIDTH / PIECE) * PIECE;
            bf16 *to = tile + r * STRIDE + c;
            if (r < rows && c < width) {
                start_copy(to, from + r * stride + c);
            } else {
                store_16_bytes(to, {0, 0, 0, 0});
            }
        }
    }
    // Where the operand continues k further along.
    static __device__ __forceinline__ const bf16 *at(const bf16 *from, u64 stride, u32 k) {
        return from + (ALONG ? k : k * stride);
    }
    // Fragments of 16 by 16: `i` on from this operand's first, k along. Of A the upper and lower halves
    // come first, of B the halves along.
    static __device__ __forceinline__ void fragment(u32 out[4], const bf16 *tile, u32 i, u32 k, bool is_a) {
        const u32 lane = threadIdx.x % 32, own = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
        i += own * ALONG + (is_a ? low : high);
        k += own * !ALONG + (is_a ? high : low);
        load_matrices<!ALONG>(out, tile + (ALONG ? i * STRIDE + k : k * STRIDE + i));
    }
};

// A tile of a b: `rows` by `columns` of it exist.
template <bool A_ALONG, bool B_ALONG, u32 WIDTH>
__device__ __forceinline__ void multiply(const bf16 *a, u64 a_stride, u32 rows, const bf16 *b, u64 b_stride,
                                         u32 columns, u32 inner,
                                         float acc[Share<WIDTH>::ROWS][Share<WIDTH>::COLUMNS][4]) {
    typedef Operand<A_ALONG, TILE> A;
    typedef Operand<B_ALONG, WIDTH> B;
    typedef Share<WIDTH> Own;
    // Of a step; larger than what lies across takes.
    constexpr u32 A_ROOM = TILE * (STEP + PIECE), ROOM = A_ROOM + WIDTH * (STEP + PIECE);
    static_assert(A::ROWS * A::STRIDE <= A_ROOM && A_ROOM + B::ROWS * B::STRIDE <= ROOM, "a step fits");
    DYNAMIC_SHARED(bf16, shared);
    const auto load = [&](u32 half, u32 k) {
        A::load(shared + half * ROOM, A::at(a, a_stride, k), a_stride, rows, inner - k);
        B::load(shared + half * ROOM + A_ROOM, B::at(b, b_stride, k), b_stride, columns, inner - k);
    };
    u32 half = 0;
    if (inner > 0) load(half, 0);
    for (u32 k = 0; k < inner; k += STEP) {
        wait_for_copies();
        // This step is here, and everybody is done with the one before.
        __syncthreads();
        if (k + STEP < inner) load(1 - half, k + STEP);
        const bf16 *a_tile = shared + half * ROOM, *b_tile = a_tile + A_ROOM;
#pragma unroll
        for (u32 at = 0; at < STEP; at += 16) {
            u32 x[Own::ROWS][4];
#pragma unroll
            for (u32 i = 0; i < Own::ROWS; i++) A::fragment(x[i], a_tile, Own::row() + 16 * i, at, true);
#pragma unroll
            for (u32 j = 0; j < Own::COLUMNS; j += 2) {
                u32 y[4];
                B::fragment(y, b_tile, Own::column() + 8 * j, at, false);
#pragma unroll
                for (u32 i = 0; i < Own::ROWS; i++) {
                    multiply_add(acc[i][j], x[i], y[0], y[1]);
                    multiply_add(acc[i][j + 1], x[i], y[2], y[3]);
                }
            }
        }
        half = 1 - half;
    }
}

// to (+)= scale v, two neighbours.
__device__ __forceinline__ void put(bf16 *to, const float v[2], u32 add, float scale) {
    u32 *word = reinterpret_cast<u32 *>(to);
    float before[2] = {0.0f, 0.0f};
    if (add != 0) unpack(*word, before);
    *word = pack(before[0] + scale * v[0], before[1] + scale * v[1]);
}
__device__ __forceinline__ void put(float *to, const float v[2], u32 add, float scale) {
    float2 *both = reinterpret_cast<float2 *>(to);
    float2 before = {0.0f, 0.0f};
    if (add != 0) before = *both;
    *both = {before.x + scale * v[0], before.y + scale * v[1]};
}

template <u32 WIDTH, typename U>
__device__ __forceinline__ void store(U *to, u64 stride, u32 rows, u32 columns,
                                      const float acc[Share<WIDTH>::ROWS][Share<WIDTH>::COLUMNS][4], u32 add,
                                      float scale) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 i = 0; i < Share<WIDTH>::ROWS; i++) {
#pragma unroll
        for (u32 lower = 0; lower < 2; lower++) {
            const u32 row = Share<WIDTH>::row() + 16 * i + 8 * lower + lane / 4;
            if (row >= rows) continue;
#pragma unroll
            for (u32 j = 0; j < Share<WIDTH>::COLUMNS; j++) {
                const u32 column = Share<WIDTH>::column() + 8 * j + lane % 4 * 2;
                if (column < columns) put(to + row * stride + column, acc[i][j] + 2 * lower, add, scale);
            }
        }
    }
}

template <bool W_ALONG, u32 WIDTH>
__device__ void grouped(const bf16 *x, const u64 *weights, const ExpertTile *tiles, bf16 *y, u32 inner,
                        u32 columns, u32 add, float scale) {
    const Corner corner = corner_of(blockIdx.x, columns, 1, WIDTH);
    const ExpertTile tile = tiles[corner.row];
    if (tile.n == 0) return;
    const bf16 *w = reinterpret_cast<const bf16 *>(weights[tile.expert]);
    const u64 stride = W_ALONG ? inner : columns;
    const u64 start = tile.start;
    float acc[Share<WIDTH>::ROWS][Share<WIDTH>::COLUMNS][4] = {};
    multiply<true, W_ALONG, WIDTH>(x + start * inner, inner, tile.n, w + corner.column * (W_ALONG ? stride : 1),
                                   stride, columns - corner.column, inner, acc);
    store<WIDTH>(y + start * columns + corner.column, columns, tile.n, columns - corner.column, acc, add, scale);
}

template <u32 WIDTH>
__device__ void forward(const bf16 *x, const u64 *weights, const ExpertTile *tiles, bf16 *y, u32 inner,
                        u32 columns, u32 add, float scale) {
    grouped<true, WIDTH>(x, weights, tiles, y, inner, columns, add, scale);
}

template <u32 WIDTH>
__device__ void backward_input(const bf16 *x, const u64 *weights, const ExpertTile *tiles, bf16 *y, u32 inner,
                               u32 columns, u32 add, float scale) {
    grouped<false, WIDTH>(x, weights, tiles, y, inner, columns, add, scale);
}

template <u32 WIDTH>
__device__ void backward_weight(const bf16 *dy, const bf16 *x, const u32 *offsets, const u64 *slots, u32 rows,
                                u32 columns, u32 add, float scale) {
    float *slot = reinterpret_cast<float *>(slots[blockIdx.y]);
    const u64 first = offsets[blockIdx.y];
    const u32 pairs = offsets[blockIdx.y + 1] - offsets[blockIdx.y];
    if (slot == nullptr || (add != 0 && pairs == 0)) return;
    const Corner corner = corner_of(blockIdx.x, columns, TILE, WIDTH);
    const u32 left = rows - corner.row, across = columns - corner.column;
    float acc[Share<WIDTH>::ROWS][Share<WIDTH>::COLUMNS][4] = {};
    multiply<false, false, WIDTH>(dy + first * rows + corner.row, rows, left, x + first * columns + corner.column,
                                  columns, across, pairs, acc);
    slot += static_cast<u64>(corner.row) * columns + corner.column;
    store<WIDTH>(slot, columns, left, across, acc, add, scale);
}

} // namespace experts_mma

// `experts_mma_NAME_WIDTH_bf16` with tiles of WIDTH columns: narrow ones are for what adapters multiply by.
#define EXPERTS_WIDTH(NAME, WIDTH, PARAMETERS, ARGUMENTS)                                              \
    template <typename T> __device__ void experts_mma_##NAME##_##WIDTH PARAMETERS {                    \
        experts_mma::NAME<WIDTH> ARGUMENTS;                                                            \
    }                                                                                                  \
    ENTRY_OF(experts_mma_##NAME##_##WIDTH, bf16, bf16, PARAMETERS, ARGUMENTS)
#define EXPERTS_WIDTHS(NAME, PARAMETERS, ARGUMENTS)                                                    \
    EXPERTS_WIDTH(NAME, 32, PARAMETERS, ARGUMENTS)                                                     \
    EXPERTS_WIDTH(NAME, 128, PARAMETERS, ARGUMENTS)

EXPERTS_WIDTHS(forward,
               (const T *x, const u64 *weights, const ExpertTile *tiles, T *y, u32 inner, u32 columns, u32 add,
                float scale),
               (x, weights, tiles, y, inner, columns, add, scale))
EXPERTS_WIDTHS(backward_input,
               (const T *x, const u64 *weights, const ExpertTile *tiles, T *y, u32 inner, u32 columns, u32 add,
                float scale),
               (x, weights, tiles, y, inner, columns, add, scale))
EXPERTS_WIDTHS(backward_weight,
               (const T *dy, const T *x, const u32 *offsets, const u64 *slots, u32 rows, u32 columns, u32 add,
                float scale),
               (dy, x, offsets, slots, rows, columns, add, scale))
