/* The C interface of T3S plugins. Made from core/src/plugin/abi.rs by cbindgen; do not edit.
 * In C++, include it inside extern "C". */

#ifndef T3S_PLUGIN_H
#define T3S_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

/* A plugin defines this: `const T3sPlugin t3s_plugin = { ... };` */

/*
 The first field of every [`T3sPlugin`]: `T3SPLUG1` as bytes.
 */
#define T3S_MAGIC 3550900617458430804

/*
 A plugin loads where this is equal.
 */
#define T3S_ABI_MAJOR 1

/*
 A plugin loads where its own is not larger. 0: signals and strategies. 1: model adapters, whose
 part of the interface is not frozen yet. 2: objectives say what a weight means, and are told of
 strata and of corruptions that the data fixes.
 */
#define T3S_ABI_MINOR 2

/*
 [`T3sPlugin::flags`]: built so that a fault in it ends the host; it is refused.
 */
#define T3S_FLAG_ABORTS 1

/*
 [`T3sComponent::kind`]: observables to one score per token.
 */
#define T3S_SIGNAL 1

/*
 [`T3sComponent::kind`]: scores to one weight per token.
 */
#define T3S_STRATEGY 2

/*
 [`T3sComponent::kind`]: a model family.
 */
#define T3S_ADAPTER 3

/*
 A call did what it is for.
 */
#define T3S_OK 0

/*
 It did not; its error text says why.
 */
#define T3S_ERROR 1

/*
 A bug in the plugin was caught; its error text says where.
 */
#define T3S_PANIC 2

/*
 A text that belongs to someone else: UTF-8, not terminated.
 */
typedef struct {
  /*
   Its bytes; may be null where `len` is 0.
   */
  const uint8_t *data;
  /*
   Their number.
   */
  size_t len;
} T3sStr;

/*
 A text that a plugin has made: UTF-8. The host gives it to [`T3sPlugin::free_text`].
 */
typedef struct {
  /*
   Its bytes; null for no text.
   */
  uint8_t *data;
  /*
   Their number.
   */
  size_t len;
} T3sText;

/*
 A column: `data[i * stride + k]` is float `k` of token `i`.
 */
typedef struct {
  /*
   What `needs` calls it, e.g. `logp@base`.
   */
  T3sStr name;
  /*
   Its floats.
   */
  const float *data;
  /*
   Number of tokens.
   */
  size_t len;
  /*
   Floats from one token to the next.
   */
  size_t stride;
  /*
   Floats per token: 1, except for sketches.
   */
  size_t width;
} T3sColumn;

/*
 The tokens a component is asked about: borrowed for the time of the call.
 */
typedef struct {
  /*
   `sizeof` of this structure in the host.
   */
  size_t size;
  /*
   Number of tokens.
   */
  size_t n_tokens;
  /*
   Number of examples.
   */
  size_t n_examples;
  /*
   `[n_examples]`: the data's name of each example.
   */
  const uint64_t *example_ids;
  /*
   `[n_examples + 1]`: tokens `offsets[e]` to `offsets[e + 1] - 1` are example `e`'s.
   */
  const uint32_t *offsets;
  /*
   `[n_tokens]`: vocabulary ids.
   */
  const uint32_t *token_ids;
  /*
   `[n_tokens]`: index in the example, prompt included.
   */
  const uint32_t *positions;
  /*
   `[n_tokens]`: 1 where the token may be trained on, else 0. Columns mean nothing at a 0 and may
   be NaN there.
   */
  const uint8_t *eligible;
  /*
   `[n_columns]`
   */
  const T3sColumn *columns;
  /*
   Number of columns.
   */
  size_t n_columns;
  /*
   The run's seed. Draw with a hash of (seed, example id, position), never in sequence.
   */
  uint64_t seed;
  /*
   The optimiser's step; 0 for a recorded selection.
   */
  uint64_t step;
  /*
   `[n_tokens]`: the log-probabilities of the step under way, nats; null unless the strategy's
   `when` is `online`.
   */
  const float *current_logp;
} T3sTokens;

/*
 Whole examples, for [`T3sComponent::prepare`].
 */
typedef struct {
  /*
   `sizeof` of this structure in the host.
   */
  size_t size;
  /*
   Number of tokens.
   */
  size_t n_tokens;
  /*
   Number of examples.
   */
  size_t n_examples;
  /*
   `[n_examples]`
   */
  const uint64_t *example_ids;
  /*
   `[n_examples + 1]`
   */
  const uint32_t *offsets;
  /*
   `[n_tokens]`: the clean token ids.
   */
  const uint32_t *ids;
  /*
   `[n_tokens]`: 1 where the token may become a target, else 0.
   */
  const uint8_t *trainable;
  /*
   `[n_tokens]`: what `weighting` says, see [`T3sComponent::objective`].
   */
  const float *weights;
  /*
   The run's seed.
   */
  uint64_t seed;
  /*
   How often the run has corrupted its examples before.
   */
  uint64_t draw;
  /*
   Since 1.2: 0; or into how many equal parts the range of the mask ratio is cut, of which this
   draw takes part number `draw`.
   */
  uint64_t strata;
  /*
   Since 1.2: null, or `[n_tokens]`: what is read in place of `ids` in an example whose corruption
   the data fixes; 0xffffffff throughout any other example.
   */
  const uint32_t *noisy_ids;
} T3sExamples;

/*
 What the model reads and what each row is trained on: buffers of the host, filled by
 [`T3sComponent::prepare`].
 */
typedef struct {
  /*
   `sizeof` of this structure in the host.
   */
  size_t size;
  /*
   Rows there is room for.
   */
  size_t capacity;
  /*
   To be set: rows written.
   */
  size_t n_rows;
  /*
   `[capacity]`: token ids the model reads.
   */
  uint32_t *input_ids;
  /*
   `[capacity]`: rotary positions.
   */
  uint32_t *positions;
  /*
   `[capacity]`: index of the token that the row predicts, or 0xffffffff.
   */
  uint32_t *target_pos;
  /*
   `[capacity]`: weight of the row's loss.
   */
  float *weights;
  /*
   `[n_examples + 1]`: rows of each example.
   */
  uint32_t *offsets;
} T3sRows;

/*
 One component. The functions may be called from several threads at once, also on one instance.
 */
typedef struct {
  /*
   `sizeof` of this structure in the plugin.
   */
  size_t size;
  /*
   `T3S_SIGNAL`, `T3S_STRATEGY` or `T3S_ADAPTER`.
   */
  uint32_t kind;
  /*
   0.
   */
  uint32_t reserved;
  /*
   The name in plans, kebab-case.
   */
  T3sStr name;
  /*
   One line for `t3s list`.
   */
  T3sStr summary;
  /*
   JSON schema of the options: `{"type": "object", "properties": {...}}`.
   */
  T3sStr schema;
  /*
   Handed to `create` as it is; for plugins whose components share a function.
   */
  const void *context;
  /*
   Makes an instance from its options, a JSON object. An error text of the form
   `option<TAB>message` names the option at fault.
   */
  int32_t (*create)(const void *context, T3sStr options, void **instance, T3sText *error);
  /*
   Takes an instance back.
   */
  void (*destroy)(void *instance);
  /*
   What an instance reads and promises, as JSON. Signal: `{"needs": ["logp@base"]}`. Strategy:
   `needs`, and as far as they hold `when` (`recorded` or `online`), `scope` (`per-example` or
   `global`), `keeps`, `removes` (shares of the eligible tokens), `rising`, `falling` (lists of
   columns). Not called for adapters.
   */
  int32_t (*describe)(const void *instance, T3sText *answer, T3sText *error);
  /*
   Writes one number per token into `out` (`[n]`, `n` = `n_tokens`). A strategy's weight lies in
   0..=1 and is 0 where the token is not eligible. Not called for adapters.
   */
  int32_t (*run)(const void *instance, const T3sTokens *tokens, float *out, size_t n, T3sText *error);
  /*
   Adapters, since 1.1: answers a request, both JSON. `{"ask": "claims", "config": {...}}`:
   `true` or `false`. `{"ask": "decoder", "config": {...}}`: a decoder's geometry and tensor
   names. `{"ask": "decode", "options": {...}}`: `{"kind": "left-to-right"}`. Since 1.2
   `{"ask": "options", "config": {...}}`: the options that the config decides,
   `{"objective": {...}, "decode": {...}}`.
   */
  int32_t (*adapt)(const void *instance, T3sStr request, T3sText *answer, T3sText *error);
  /*
   Adapters, since 1.1: makes the training objective from its options, and says as JSON which
   rows see which, e.g. `{"kind": "causal"}`; and, since 1.2, what the weight of a token means:
   `"weighting": "loss"`, as where nothing is said, what its loss is multiplied by;
   `"weighting": "forced-mask"`, the chance that it is masked whatever the random mask says.
   */
  int32_t (*objective)(const void *instance,
                       T3sStr options,
                       void **objective,
                       T3sText *attention,
                       T3sText *error);
  /*
   Adapters, since 1.1: corrupts, aligns and weights examples.
   */
  int32_t (*prepare)(const void *objective,
                     const T3sExamples *examples,
                     T3sRows *rows,
                     T3sText *error);
  /*
   Adapters, since 1.1: takes an objective back.
   */
  void (*destroy_objective)(void *objective);
} T3sComponent;

/*
 What a plugin exports under the name `t3s_plugin`. The first four fields never move.
 */
typedef struct {
  /*
   `T3S_MAGIC`.
   */
  uint64_t magic;
  /*
   `T3S_ABI_MAJOR` of the header it was built with.
   */
  uint32_t major;
  /*
   `T3S_ABI_MINOR` of the header it was built with.
   */
  uint32_t minor;
  /*
   `T3S_FLAG_...`
   */
  uint32_t flags;
  /*
   0.
   */
  uint32_t reserved;
  /*
   `sizeof` of this structure in the plugin.
   */
  size_t size;
  /*
   What built it, for people, e.g. `t3s-plugin 0.1.0`.
   */
  T3sStr built_with;
  /*
   Gives the components: `count` pointers that stay valid for as long as the program runs.
   */
  int32_t (*components)(const T3sComponent *const **components, size_t *count, T3sText *error);
  /*
   Takes a text back that one of the plugin's functions has made; ignores null.
   */
  void (*free_text)(T3sText text);
} T3sPlugin;

#endif  /* T3S_PLUGIN_H */
