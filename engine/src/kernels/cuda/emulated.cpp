// All kernels, compiled for the CPU by the tests.
#include "../adamw.cu"
#include "../attention.cu"
#include "../attention_mma.cu"
#include "../cross_entropy.cu"
#include "../decode.cu"
#include "../embedding.cu"
#include "../experts.cu"
#include "../experts_mma.cu"
#include "../gradients.cu"
#include "../normal.cu"
#include "../residual.cu"
#include "../rms_norm.cu"
#include "../rotary.cu"
#include "../routing.cu"
#include "../sample.cu"
#include "../swiglu.cu"

extern "C" __attribute__((visibility("default"))) const char *emulated_launch(const char *name, const unsigned *grid, unsigned threads,
                                       unsigned shared, void **args, size_t n_args, int reversed) {
    return emulated::launch(name, grid, threads, shared, args, n_args, reversed != 0);
}
