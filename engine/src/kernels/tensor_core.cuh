// Products of small bfloat16 matrices on tensor cores (compute capability 8.0), and the copies that
// feed them. A warp works as one; the layouts of fragments are those of the PTX manual (mma.m16n8k16):
// with g = lane / 4 and t = lane % 4, a lane has of
//   A (16 x 16)  rows g, g + 8 (registers 0, 1), columns 2 t, 2 t + 1; the same eight columns on (2, 3)
//   B (16 x 8)   rows 2 t, 2 t + 1 of column g; the same eight rows on
//   C (16 x 8)   columns 2 t, 2 t + 1 of row g (0, 1) and of row g + 8 (2, 3)
#pragma once

#include "device.cuh"

// Four 8 x 8 matrices from shared memory: lane 8 i + r gives the address of row r of matrix i, aligned
// to 16 bytes. Each lane gets columns 2 t, 2 t + 1 of row g of each; rows 2 t, 2 t + 1 of column g with
// TRANSPOSED.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(u32 out[4], const bf16 *row) {
#ifdef T3S_EMULATED
    emulated::load_matrices(out, row, TRANSPOSED);
#else
    const u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(address)
                     : "memory");
    }
#endif
}

// c += a b.
__device__ __forceinline__ void multiply_add(float c[4], const u32 a[4], u32 b0, u32 b1) {
#ifdef T3S_EMULATED
    emulated::multiply_add(c, a, b0, b1);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Starts copying 16 bytes to shared memory; both addresses are aligned to them.
__device__ __forceinline__ void start_copy(bf16 *to, const bf16 *from) {
#ifdef T3S_EMULATED
    emulated::start_copy(to, from);
#else
    const u32 address = static_cast<u32>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#endif
}

// Waits for all copies that this thread has started; others see them after a barrier.
__device__ __forceinline__ void wait_for_copies() {
#ifdef T3S_EMULATED
    emulated::wait_for_copies();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
