// cuDNN's fused attention behind a C interface, for kernels/cuda/cudnn/shim.rs: cudnn-frontend is C++
// headers only. cuDNN is opened by `t3s_cudnn_open`; nothing of it, nor of CUDA's runtime, is linked.
//
// Every function returns 0, or 1 with a text in `message`; no exception leaves this file. Its callers
// let one thread in at a time, with the device's context current.

#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace cudnn_frontend {
// The headers look every function of cuDNN up in this library.
void *cudnn_dlhandle = nullptr;
}  // namespace cudnn_frontend

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;
using TensorPtr = std::shared_ptr<Tensor_attributes>;

// What plans are built for; `Shape` of shim.rs.
struct Shape {
    // Examples of a batch, and the rows of the longest and of all: what a batch may have at most.
    int64_t examples, longest, rows;
    int64_t heads, kv_heads, head_dim;
    int32_t causal;
    // 90 for compute capability 9.0.
    int32_t compute_capability;
};

// The tensors of both passes, numbered from 1; `Tensors` of shim.rs lists their addresses in this
// order.
enum Uid : int64_t {
    Q = 1, K, V, OUT, LSE, D_OUT, D_Q, D_K, D_V,
    // [examples] 32-bit lengths.
    LENGTHS,
    // [examples + 1] each: where an example starts, in elements of q, of k, of the log-sum-exp.
    Q_OFFSETS, K_OFFSETS, LSE_OFFSETS,
    LAST_WITH_ADDRESS = LSE_OFFSETS,
    // The same lists under another name: cuDNN's own users give it one for each use.
    KV_LENGTHS, V_OFFSETS, OUT_OFFSETS
};

namespace {

struct Plans {
    Graph forward, backward;
};

// Runs `body`; its exception becomes a text.
template <typename Body>
int guarded(char *message, size_t capacity, Body body) {
    std::string text;
    try {
        body();
        return 0;
    } catch (std::exception const &error) {
        text = error.what();
    } catch (...) {
        text = "an exception without a text";
    }
    if (capacity > 0) {
        size_t const n = std::min(text.size(), capacity - 1);
        std::memcpy(message, text.data(), n);
        message[n] = 0;
    }
    return 1;
}

// What the headers refused, or cuDNN did.
void check(char const *what, fe::error_object error) {
    if (error.is_bad()) {
        throw std::runtime_error(std::string(what) + ": " + error.get_message());
    }
}

void check(char const *what, cudnnStatus_t status) {
    if (status != CUDNN_STATUS_SUCCESS) {
        throw std::runtime_error(std::string(what) + ": " + fe::detail::get_error_string(status));
    }
}

// The tensors of one graph. Packed: the lengths of a tensor are those of a batch whose examples all
// have the most rows, and the ragged offsets say where each example really is.
class Builder {
   public:
    Builder(Graph &graph, Shape const &shape) : graph(graph), shape(shape) {
        graph.set_io_data_type(fe::DataType_t::BFLOAT16)
            .set_intermediate_data_type(fe::DataType_t::FLOAT)
            .set_compute_data_type(fe::DataType_t::FLOAT)
            .set_sm_version(shape.compute_capability);
        for (Uid uid : {LENGTHS, KV_LENGTHS}) {
            lists[uid] = list(uid, shape.examples);
        }
        for (Uid uid : {Q_OFFSETS, K_OFFSETS, V_OFFSETS, OUT_OFFSETS, LSE_OFFSETS}) {
            lists[uid] = list(uid, shape.examples + 1);
        }
    }

    TensorPtr input(Uid uid) {
        Tensor_attributes tensor;
        return graph.tensor(placed(tensor, uid).set_uid(uid));
    }

    void output(TensorPtr const &tensor, Uid uid) {
        placed(*tensor, uid).set_output(true).set_uid(uid);
    }

    // What both passes are told about the scores.
    template <typename Options>
    Options options(char const *name) {
        Options options;
        options.set_name(name)
            .set_attn_scale(1.0f / std::sqrt(static_cast<float>(shape.head_dim)))
            .set_causal_mask(shape.causal != 0)
            .set_padding_mask(true)
            .set_seq_len_q(lists[LENGTHS])
            .set_seq_len_kv(lists[KV_LENGTHS]);
        return options;
    }

   private:
    Graph &graph;
    Shape const shape;
    std::unordered_map<int64_t, TensorPtr> lists;

    TensorPtr list(Uid uid, int64_t n) {
        return graph.tensor(Tensor_attributes()
                                .set_uid(uid)
                                .set_dim({n, 1, 1, 1})
                                .set_stride({1, 1, 1, 1})
                                .set_data_type(fe::DataType_t::INT32));
    }

    static Uid offsets_of(Uid uid) {
        switch (uid) {
            case K: case D_K: return K_OFFSETS;
            case V: case D_V: return V_OFFSETS;
            case OUT: case D_OUT: return OUT_OFFSETS;
            case LSE: return LSE_OFFSETS;
            default: return Q_OFFSETS;
        }
    }

    // Rows of all heads, one after the other.
    Tensor_attributes &placed(Tensor_attributes &tensor, Uid uid) {
        bool const of_keys = uid == K || uid == V || uid == D_K || uid == D_V;
        int64_t const heads = of_keys ? shape.kv_heads : shape.heads;
        int64_t const width = uid == LSE ? 1 : shape.head_dim;
        tensor.set_dim({shape.examples, heads, shape.longest, width})
            .set_stride({shape.longest * heads * width, width, heads * width, 1})
            .set_ragged_offset(lists[offsets_of(uid)]);
        if (uid == LSE) {
            tensor.set_data_type(fe::DataType_t::FLOAT);
        }
        return tensor;
    }
};

void describe_forward(Graph &graph, Shape const &shape) {
    Builder tensors(graph, shape);
    auto options = tensors.options<fe::graph::SDPA_attributes>("forward");
    // One of the two ways in which cuDNN spells the forward pass, for every pattern.
    options.set_generate_stats(true).set_implementation(fe::AttentionImplementation_t::COMPOSITE);
    auto q = tensors.input(Q), k = tensors.input(K), v = tensors.input(V);
    auto [out, lse] = graph.sdpa(q, k, v, options);
    tensors.output(out, OUT);
    tensors.output(lse, LSE);
}

void describe_backward(Graph &graph, Shape const &shape) {
    Builder tensors(graph, shape);
    auto options = tensors.options<fe::graph::SDPA_backward_attributes>("backward");
    // The sums of the queries' gradients in one order, and room for the rows there are instead of
    // `examples * longest`.
    options.set_deterministic_algorithm(true)
        .set_max_total_seq_len_q(shape.rows)
        .set_max_total_seq_len_kv(shape.rows);
    auto q = tensors.input(Q), k = tensors.input(K), v = tensors.input(V);
    auto out = tensors.input(OUT), d_out = tensors.input(D_OUT), lse = tensors.input(LSE);
    auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, d_out, lse, options);
    tensors.output(dq, D_Q);
    tensors.output(dk, D_K);
    tensors.output(dv, D_V);
}

// The first plan of cuDNN's heuristics that it can build; returns the bytes it works in.
uint64_t build(char const *what, Graph &graph, cudnnHandle_t handle) {
    check(what, graph.build(handle, {fe::HeurMode_t::A}));
    int64_t bytes = 0;
    check(what, graph.get_workspace_size(bytes));
    return static_cast<uint64_t>(bytes);
}

void execute(char const *what, Graph const &graph, cudnnHandle_t handle, uint64_t const *addresses,
             uint64_t workspace) {
    std::unordered_map<int64_t, void *> tensors;
    for (int64_t uid = Q; uid <= LAST_WITH_ADDRESS; uid++) {
        tensors.emplace(uid, reinterpret_cast<void *>(addresses[uid - Q]));
    }
    tensors.emplace(KV_LENGTHS, tensors[LENGTHS]);
    tensors.emplace(V_OFFSETS, tensors[K_OFFSETS]);
    tensors.emplace(OUT_OFFSETS, tensors[Q_OFFSETS]);
    check(what, graph.execute(handle, tensors, reinterpret_cast<void *>(workspace)));
}

}  // namespace

extern "C" {

// Opens cuDNN and tells its version, 91900 for 9.19.0.
int t3s_cudnn_open(uint64_t *version, char *message, size_t capacity) {
    return guarded(message, capacity, [&] {
        if (fe::cudnn_dlhandle == nullptr) {
            fe::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW);
        }
        if (fe::cudnn_dlhandle == nullptr) {
            char const *error = dlerror();
            throw std::runtime_error(error != nullptr ? error : "libcudnn.so.9 does not open");
        }
        *version = fe::detail::get_backend_version();
    });
}

// A handle for the current context; cuDNN is open.
int t3s_cudnn_handle(void **handle, char *message, size_t capacity) {
    return guarded(message, capacity, [&] {
        cudnnHandle_t made = nullptr;
        check("cudnnCreate", fe::detail::create_handle(&made));
        *handle = made;
    });
}

// What the handle builds and starts from now on is ordered by `stream`.
int t3s_cudnn_set_stream(void *handle, void *stream, char *message, size_t capacity) {
    return guarded(message, capacity, [&] {
        check("cudnnSetStream", fe::detail::set_stream(static_cast<cudnnHandle_t>(handle),
                                                       static_cast<cudaStream_t>(stream)));
    });
}

// Both passes' graphs as far as they can be checked without a device; cuDNN is open.
int t3s_cudnn_validate(Shape const *shape, char *message, size_t capacity) {
    return guarded(message, capacity, [&] {
        auto plans = std::make_unique<Plans>();
        describe_forward(plans->forward, *shape);
        check("forward", plans->forward.validate());
        describe_backward(plans->backward, *shape);
        check("backward", plans->backward.validate());
    });
}

// Plans of both passes, and the bytes that each works in.
int t3s_cudnn_build(void *handle, Shape const *shape, void **plans, uint64_t *workspaces,
                    char *message, size_t capacity) {
    return guarded(message, capacity, [&] {
        auto made = std::make_unique<Plans>();
        describe_forward(made->forward, *shape);
        workspaces[0] = build("forward", made->forward, static_cast<cudnnHandle_t>(handle));
        describe_backward(made->backward, *shape);
        workspaces[1] = build("backward", made->backward, static_cast<cudnnHandle_t>(handle));
        *plans = made.release();
    });
}

// Starts a pass. `addresses` has one for each tensor; those of the other pass may be 0.
int t3s_cudnn_execute(void *handle, void *plans, int32_t backward, uint64_t const *addresses,
                      uint64_t workspace, char *message, size_t capacity) {
    return guarded(message, capacity, [&] {
        auto const *made = static_cast<Plans const *>(plans);
        execute(backward ? "backward" : "forward", backward ? made->backward : made->forward,
                static_cast<cudnnHandle_t>(handle), addresses, workspace);
    });
}

}  // extern "C"
