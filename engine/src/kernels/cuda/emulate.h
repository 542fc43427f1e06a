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

inline uint3 threadIdx, blockIdx, blockDim, gridDim;

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

template <typename T> T shuffle_xor(T value, int offset) {
    Fibre &fibre = fibres[current];
    // Two buffers in turn: no lane can be two shuffles ahead of another.
    double *buffer = lanes[fibre.shuffles++ % 2];
    buffer[current] = static_cast<double>(value);
    wait(State::AtWarp);
    return static_cast<T>(buffer[current ^ static_cast<unsigned>(offset)]);
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
    return emulated::shuffle_xor(value, offset);
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
