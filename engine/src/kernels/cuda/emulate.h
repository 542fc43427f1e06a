// CUDA's execution model on one CPU thread, for tests: the kernels' arithmetic, indexing, barriers and
// launch parameters run where there is no GPU. No speed, no memory model, no hardware limits.
//
// Each thread of a block is a fibre. A barrier hands over to the next fibre; the block goes on when
// every thread has arrived. Fibres run in ascending or descending order,
// so a missing barrier shows as a result that depends on the order. Shared memory starts as NaN. A
// barrier that not every thread reaches is an error.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulated::dynamic_shared.data())

struct uint3 {
    unsigned x, y, z;
};

struct float2 {
    float x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline uint3 threadIdx, blockIdx, blockDim, gridDim;

// One load of 16 bytes, which the GPU refuses elsewhere than at a multiple of 16.
inline uint4 load_16_bytes(const void *from) {
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
        std::fprintf(stderr, "a load of 16 bytes that is not aligned to them\n");
        std::abort();
    }
    uint4 value;
    std::memcpy(&value, from, 16);
    return value;
}
inline void store_16_bytes(void *to, uint4 value) {
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0) {
        std::fprintf(stderr, "a store of 16 bytes that is not aligned to them\n");
        std::abort();
    }
    std::memcpy(to, &value, 16);
}

// bfloat16 by its bits, rounded to nearest even.
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline unsigned int __float_as_uint(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}
inline float __uint_as_float(unsigned int bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    uint32_t bits = __float_as_uint(f);
    if (f != f) return {0x7fff};
    bits += 0x7fff + ((bits >> 16) & 1);
    return {static_cast<uint16_t>(bits >> 16)};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
// Never contracted to a fused multiply-add: the target of this library has none.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __expf(float x) { return std::exp(x); }
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }

namespace emulated {

enum class State { Ready, AtBlock, AtWarp, Done };

#ifdef __x86_64__
// A stack pointer; everything else stands on the stack.
typedef void *Context;

// Saves what a call has to preserve, and goes on where `to` was left. Fifty times as fast as
// swapcontext, which asks the system for its signal mask.
extern "C" void emulated_switch(Context *from, Context to);
asm(".text\n"
    "emulated_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\n"
    "mov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\n"
    "ret\n");
inline void switch_to(Context &from, Context &to) { emulated_switch(&from, to); }
inline void prepare(Context &context, char *stack, size_t size, void (*entry)()) {
    // Six registers, the address to return to, and one word so that `entry` finds the stack aligned.
    void **top = reinterpret_cast<void **>((reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t(15));
    top[-2] = reinterpret_cast<void *>(entry);
    context = top - 8;
}
#else
typedef ucontext_t Context;
inline void switch_to(Context &from, Context &to) { swapcontext(&from, &to); }
inline void prepare(Context &context, char *stack, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

struct Fibre {
    Context context;
    State state;
    unsigned shuffles;
};

inline std::vector<Fibre> fibres;
inline std::vector<std::vector<char>> stacks;
inline Context scheduler;
inline unsigned current;
inline std::vector<char> dynamic_shared;
inline double lanes[2][1024];
// What the lanes of a warp hand to a tensor core: an address, or a fragment of both factors.
struct Given {
    const void *row;
    uint32_t a[4], b[2];
};
inline Given given[2][1024];
// Copies that a thread has started and not yet waited for.
struct Copy {
    void *to;
    const void *from;
};
inline std::vector<Copy> copies[1024];
inline std::function<void()> body;

inline void enter() {
    body();
    fibres[current].state = State::Done;
    switch_to(fibres[current].context, scheduler);
}

inline void wait(State state) {
    fibres[current].state = state;
    switch_to(fibres[current].context, scheduler);
}

// Runs each lane that is ready to its next barrier; says whether any was.
inline bool run_warp(unsigned first, bool reversed) {
    bool ran = false;
    for (unsigned k = 0; k < 32; k++) {
        const unsigned i = first + (reversed ? 31 - k : k);
        if (fibres[i].state != State::Ready) continue;
        current = i;
        threadIdx = {i, 0, 0};
        ran = true;
        switch_to(scheduler, fibres[i].context);
    }
    unsigned waiting = 0;
    for (unsigned i = first; i < first + 32; i++) waiting += fibres[i].state == State::AtWarp;
    if (waiting == 32) {
        for (unsigned i = first; i < first + 32; i++) fibres[i].state = State::Ready;
    }
    return ran;
}

// Runs one block to its end; an error text, or null.
inline const char *run_block(unsigned threads, bool reversed) {
    const size_t stack = 128 * 1024;
    if (fibres.size() < threads) {
        fibres.resize(threads);
        while (stacks.size() < threads) stacks.emplace_back(stack);
    }
    for (unsigned i = 0; i < threads; i++) {
        prepare(fibres[i].context, stacks[i].data(), stack, enter);
        fibres[i].state = State::Ready;
        fibres[i].shuffles = 0;
        copies[i].clear();
    }
    // One warp after the other as far as it gets, so that warps are as far apart as barriers allow.
    const unsigned warps = threads / 32;
    for (;;) {
        bool progress = false;
        for (unsigned k = 0; k < warps; k++) {
            const unsigned warp = 32 * (reversed ? warps - 1 - k : k);
            while (run_warp(warp, reversed)) progress = true;
        }
        unsigned done = 0, at_block = 0;
        for (unsigned i = 0; i < threads; i++) {
            done += fibres[i].state == State::Done;
            at_block += fibres[i].state == State::AtBlock;
        }
        if (done == threads) return nullptr;
        if (at_block == threads) {
            for (unsigned i = 0; i < threads; i++) fibres[i].state = State::Ready;
            progress = true;
        }
        if (!progress) return "a barrier that not every thread of its block or warp reaches";
    }
}

// What the thread `from` hands over.
template <typename T> T shuffle(T value, unsigned from) {
    Fibre &fibre = fibres[current];
    // Two buffers in turn: no lane can be two shuffles ahead of another.
    double *buffer = lanes[fibre.shuffles++ % 2];
    buffer[current] = static_cast<double>(value);
    wait(State::AtWarp);
    return static_cast<T>(buffer[from]);
}

// ldmatrix.x4: lane 8 i + r has the address of row r of the i-th matrix of 8 x 8 16-bit numbers. Each
// lane gets two neighbours of one row of each matrix, or of one column where `transposed`.
inline void load_matrices(uint32_t out[4], const void *row, bool transposed) {
    Fibre &fibre = fibres[current];
    Given *buffer = given[fibre.shuffles++ % 2];
    buffer[current].row = row;
    wait(State::AtWarp);
    const unsigned lane = current % 32, warp = current - lane;
    for (unsigned i = 0; i < 4; i++) {
        uint16_t pair[2];
        for (unsigned j = 0; j < 2; j++) {
            const unsigned along = 2 * (lane % 4) + j, across = lane / 4;
            const unsigned r = transposed ? along : across, c = transposed ? across : along;
            const void *start = buffer[warp + 8 * i + r].row;
            if (reinterpret_cast<uintptr_t>(start) % 16 != 0) {
                std::fprintf(stderr, "ldmatrix: a row that is not aligned to 16 bytes\n");
                std::abort();
            }
            std::memcpy(&pair[j], static_cast<const char *>(start) + 2 * c, 2);
        }
        out[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
}

// mma.m16n8k16, row by column, bfloat16 into float: c += a b, by the fragments' layout in the PTX manual.
inline void multiply_add(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    Fibre &fibre = fibres[current];
    Given *buffer = given[fibre.shuffles++ % 2];
    std::memcpy(buffer[current].a, a, sizeof(buffer[current].a));
    buffer[current].b[0] = b0;
    buffer[current].b[1] = b1;
    wait(State::AtWarp);
    const unsigned lane = current % 32, warp = current - lane;
    const auto half = [](uint32_t pair, unsigned k) {
        return __bfloat162float({static_cast<uint16_t>(pair >> 16 * (k % 2))});
    };
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4, above = i / 2, column = 2 * (lane % 4) + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            const unsigned t = k % 8 / 2, upper = k / 8;
            const uint32_t x = buffer[warp + 4 * row + t].a[2 * upper + above];
            const uint32_t y = buffer[warp + 4 * column + t].b[upper];
            c[i] += half(x, k) * half(y, k);
        }
    }
}

// cp.async: nothing is there before the thread has waited for it.
inline void start_copy(void *to, const void *from) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0) {
        std::fprintf(stderr, "cp.async: an address that is not aligned to 16 bytes\n");
        std::abort();
    }
    copies[current].push_back({to, from});
}
inline void wait_for_copies() {
    for (const Copy &copy : copies[current]) std::memcpy(copy.to, copy.from, 16);
    copies[current].clear();
}

struct Kernel {
    std::function<void(void **)> call;
    size_t arguments;
};

inline std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> map;
    return map;
}

template <typename... A, size_t... I>
std::function<void(void **)> unpack(void (*f)(A...), std::index_sequence<I...>) {
    return [f](void **args) { f(*static_cast<A *>(args[I])...); };
}

struct Entry {
    template <typename... A> Entry(const char *name, void (*f)(A...)) {
        kernels()[name] = {unpack(f, std::index_sequence_for<A...>()), sizeof...(A)};
    }
};

} // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::State::AtBlock); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulated::wait(emulated::State::AtWarp); }
template <typename T> T __shfl_xor_sync(unsigned, T value, int offset) {
    return emulated::shuffle(value, emulated::current ^ static_cast<unsigned>(offset));
}
template <typename T> T __shfl_up_sync(unsigned, T value, unsigned offset) {
    const unsigned own = emulated::current;
    return emulated::shuffle(value, own % 32 < offset ? own : own - offset);
}

// Runs every block of a grid, in ascending or descending order; null, or what went wrong.
namespace emulated {
inline const char *launch(const char *name, const unsigned *grid, unsigned threads, unsigned shared,
                          void **args, size_t n_args, bool reversed) {
    auto found = kernels().find(name);
    if (found == kernels().end()) return "no such kernel";
    if (found->second.arguments != n_args) return "another number of arguments than the kernel has";
    if (threads == 0 || threads > 1024 || threads % 32 != 0) return "threads are no whole warps";
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return "an empty grid";
    if (grid[1] > 65535 || grid[2] > 65535) return "a grid that is too high";
    blockDim = {threads, 1, 1};
    gridDim = {grid[0], grid[1], grid[2]};
    body = [&] { found->second.call(args); };
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned k = 0; k < blocks; k++) {
        unsigned b = reversed ? blocks - 1 - k : k;
        blockIdx = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
        dynamic_shared.assign(shared + 16, static_cast<char>(0xff));
        if (const char *error = run_block(threads, reversed)) return error;
    }
    return nullptr;
}
} // namespace emulated
