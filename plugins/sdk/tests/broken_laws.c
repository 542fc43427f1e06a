/* One strategy per law, or per way to end a process, each lawful but for its name's fault; and one
 * with an option that must be given. Each needs x and keeps the tokens of which it is above 0. With
 * -DONLY only that last one. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "t3s_plugin.h"

typedef enum {
  NOTHING,
  ANSWERS,
  NEEDS,
  WRITTEN,
  NOT_FINITE,
  ABOVE_ONE,
  BELOW_ZERO,
  MASK,
  DETERMINISTIC,
  INELIGIBLE,
  PERMUTATION,
  PADDING,
  SPLITTING,
  BUDGET,
  MONOTONE,
  MISSING,
  NAN_TAKEN,
  DEGENERATE,
  EMPTY,
  READS_AFTER,
  READS_BEFORE,
  WRITES_COLUMN,
  ABORTS,
  EXITS,
  LATER,
} Fault;

typedef struct {
  Fault fault;
  const char *name;
  const char *description;
  uint32_t asked;
  uint32_t described;
} Strategy;

#define PLAIN "{\"needs\": [\"x\"], \"scope\": \"per-example\"}"
#define GLOBAL "{\"needs\": [\"x\"], \"scope\": \"global\"}"

static Strategy STRATEGIES[] = {
    {NOTHING, "lawful", "{\"needs\": [\"x\"], \"scope\": \"per-example\", \"rising\": [\"x\"]}", 0, 0},
    {ANSWERS, "answers", PLAIN, 0, 0},
    {NEEDS, "needs", PLAIN, 0, 0},
    {WRITTEN, "written", PLAIN, 0, 0},
    {NOT_FINITE, "not-finite", PLAIN, 0, 0},
    {ABOVE_ONE, "above-one", PLAIN, 0, 0},
    {BELOW_ZERO, "below-zero", PLAIN, 0, 0},
    {MASK, "mask", PLAIN, 0, 0},
    {DETERMINISTIC, "deterministic", PLAIN, 0, 0},
    {INELIGIBLE, "ineligible", PLAIN, 0, 0},
    {PERMUTATION, "permutation", GLOBAL, 0, 0},
    {PADDING, "padding", GLOBAL, 0, 0},
    {SPLITTING, "splitting", PLAIN, 0, 0},
    {BUDGET, "budget", "{\"needs\": [\"x\"], \"scope\": \"per-example\", \"keeps\": 0.5}", 0, 0},
    {MONOTONE, "monotone", "{\"needs\": [\"x\"], \"scope\": \"per-example\", \"falling\": [\"x\"]}",
     0, 0},
    {MISSING, "missing", PLAIN, 0, 0},
    {NAN_TAKEN, "nan", PLAIN, 0, 0},
    {DEGENERATE, "degenerate", PLAIN, 0, 0},
    {EMPTY, "empty", PLAIN, 0, 0},
    {READS_AFTER, "reads-after", PLAIN, 0, 0},
    {READS_BEFORE, "reads-before", PLAIN, 0, 0},
    {WRITES_COLUMN, "writes-column", PLAIN, 0, 0},
    {ABORTS, "aborts", PLAIN, 0, 0},
    {EXITS, "exits", PLAIN, 0, 0},
    {LATER, "later", PLAIN, 0, 0},
    {NOTHING, "needy", PLAIN, 0, 0},
};
enum { COUNT = sizeof STRATEGIES / sizeof STRATEGIES[0] };

static void say(T3sText *place, const char *text) {
  place->len = strlen(text);
  place->data = malloc(place->len);
  if (place->data) memcpy(place->data, text, place->len);
}

static void free_text(T3sText text) { free(text.data); }

static int32_t refuse(T3sText *error, const char *text) {
  say(error, text);
  return T3S_ERROR;
}

static int32_t create(const void *context, T3sStr options, void **instance, T3sText *error) {
  const Strategy *strategy = context;
  int needy = strcmp(strategy->name, "needy") == 0;
  const char *wanted = needy ? "{\"share\":0.5}" : "{}";
  if (options.len != strlen(wanted) || memcmp(options.data, wanted, options.len) != 0)
    return refuse(error, needy ? "share\tmust be 0.5" : "no options");
  *instance = (void *)context;
  return T3S_OK;
}

static void destroy(void *instance) { (void)instance; }

static int32_t describe(const void *instance, T3sText *answer, T3sText *error) {
  (void)error;
  Strategy *strategy = (Strategy *)instance;
  /* Two instances say the one, the next two the other. */
  int more = strategy->fault == NEEDS && strategy->described++ / 2 % 2 == 1;
  say(answer, more ? "{\"needs\": [\"x\", \"y\"], \"scope\": \"per-example\"}" : strategy->description);
  return T3S_OK;
}

/* What it is wrong to read stays in the program. */
static volatile float sink;

static int32_t run(const void *instance, const T3sTokens *tokens, float *out, size_t n,
                   T3sText *error) {
  Strategy *strategy = (Strategy *)instance;
  Fault fault = strategy->fault;
  uint32_t asked = strategy->asked++;
  const float *x = NULL;
  for (size_t i = 0; i < tokens->n_columns; i++)
    if (tokens->columns[i].name.len == 1 && tokens->columns[i].name.data[0] == 'x')
      x = tokens->columns[i].data;
  if (!x && fault != MISSING) return refuse(error, "x is not there");
  size_t kept = 0, eligible = 0, busy = 0;
  for (size_t e = 0; e < tokens->n_examples; e++) {
    size_t before = eligible;
    for (size_t i = tokens->offsets[e]; i < tokens->offsets[e + 1]; i++) eligible += tokens->eligible[i];
    busy += eligible > before;
  }
  for (size_t i = 0; i < n; i++) {
    float value = x ? x[i] : 0.0f;
    if (tokens->eligible[i] && isnan(value)) {
      if (fault != NAN_TAKEN) return refuse(error, "x is NaN");
      value = 0.0f;
    }
    if (fault == INELIGIBLE && isinf(value)) return refuse(error, "x is infinite");
    out[i] = tokens->eligible[i] && value > 0.0f ? 1.0f : 0.0f;
    kept += out[i] > 0.0f;
  }
  int has = kept > 0;
  for (size_t i = 0; i < n; i++) {
    int one = out[i] > 0.0f;
    switch (fault) {
      case NOT_FINITE: if (one) out[i] = NAN; break;
      case ABOVE_ONE: if (one) out[i] = 1.5f; break;
      case BELOW_ZERO: if (one) out[i] = -0.5f; break;
      case MASK: if (!tokens->eligible[i]) out[i] = 1.0f; break;
      case DETERMINISTIC: if (asked % 2 == 1) out[i] = 0.0f; break;
      case PERMUTATION: if (i >= tokens->offsets[1]) out[i] = 0.0f; break;
      case PADDING: if (n - eligible > 3) out[i] = 0.0f; break;
      case SPLITTING: if (busy > 1) out[i] = 0.0f; break;
      case WRITTEN: if (one) memcpy(out + i, &(uint32_t){0x7fc07435}, 4); break;
      default: break;
    }
  }
  switch (fault) {
    case ANSWERS: if (n > 7) return refuse(error, "more than 7 tokens"); break;
    /* The spread of a single number is 0. */
    case DEGENERATE: if (n == 1 && has) out[0] = 0.0f / sink; break;
    /* The last token of an example that has none. */
    case EMPTY: for (size_t e = 0; e < tokens->n_examples; e++)
        if (n > 0) sink = x[tokens->offsets[e + 1] - 1] * 0.0f;
        else out[0] = 0.0f;
      break;
    case READS_AFTER: if (n > 2) sink = x[n] * 0.0f; break;
    case READS_BEFORE: if (n > 2) sink = x[-1] * 0.0f; break;
    case WRITES_COLUMN: if (n > 2) ((float *)x)[1] = 0.0f; break;
    case ABORTS: if (eligible > 2) abort(); break;
    case EXITS: if (kept > 1) exit(0); break;
    case LATER: if (asked == 300) abort(); break;
    default: break;
  }
  return T3S_OK;
}

static T3sComponent COMPONENTS[COUNT];
static const T3sComponent *POINTERS[COUNT];

static T3sStr str(const char *text) { return (T3sStr){(const uint8_t *)text, strlen(text)}; }

static int32_t components(const T3sComponent *const **list, size_t *count, T3sText *error) {
  (void)error;
#ifdef ONLY
  size_t first = COUNT - 1; /* needy */
#else
  size_t first = 0;
#endif
  for (size_t i = 0; i < COUNT; i++) {
    int needy = strcmp(STRATEGIES[i].name, "needy") == 0;
    COMPONENTS[i] = (T3sComponent){
        .size = sizeof(T3sComponent),
        .kind = T3S_STRATEGY,
        .name = str(STRATEGIES[i].name),
        .summary = str("keeps tokens of which x is above 0"),
        .schema = str(needy ? "{\"type\": \"object\", \"required\": [\"share\"], \"properties\": "
                              "{\"share\": {\"type\": \"number\", \"description\": \"0.5\"}}}"
                            : "{\"type\": \"object\", \"properties\": {}}"),
        .context = &STRATEGIES[i],
        .create = create,
        .destroy = destroy,
        .describe = describe,
        .run = run,
    };
    POINTERS[i] = &COMPONENTS[i];
  }
  *list = POINTERS + first;
  *count = COUNT - first;
  return T3S_OK;
}

const T3sPlugin t3s_plugin = {
    .magic = T3S_MAGIC,
    .major = T3S_ABI_MAJOR,
    .minor = T3S_ABI_MINOR,
    .size = sizeof(T3sPlugin),
    .built_with = {(const uint8_t *)"broken_laws.c", 13},
    .components = components,
    .free_text = free_text,
};
