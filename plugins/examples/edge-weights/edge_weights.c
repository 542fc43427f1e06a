/* edge-weights: soft weights from Delta c, the change of a token's log-probability from the base to
 * the imitation bottleneck. Tokens that did not rise keep the weight 1; the others fade with
 * exp(-Delta c / tau). One option, tau (nats, above 0, default 0.5).
 *
 * It also shows all that a plugin in C needs. Build it with `make`. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "t3s_plugin.h"

#define STR(text) {(const uint8_t *)(text), sizeof(text) - 1}
#define QUOTED(name) #name
#define SPELT(name) QUOTED(name)

/* The name of the signal, and of its column. */
static const char NEED[] = "delta-logp";

typedef struct {
  float tau;
} EdgeWeights;

/* A text for the host, which gives it back to free_text. */
static void say(T3sText *place, const char *text) {
  size_t len = strlen(text);
  place->data = malloc(len);
  place->len = place->data ? len : 0;
  if (place->data) memcpy(place->data, text, len);
}

static void free_text(T3sText text) { free(text.data); }

/* Options come as a JSON object, here {} or {"tau": NUMBER}. */
static int32_t create(const void *context, T3sStr options, void **instance, T3sText *error) {
  (void)context;
  char text[128];
  char key[16] = "";
  double tau = 0.5;
  int end = -1;
  if (options.len >= sizeof text) {
    say(error, "the only option is tau, a number");
    return T3S_ERROR;
  }
  if (options.len > 0) memcpy(text, options.data, options.len);
  text[options.len] = 0;
  if (sscanf(text, " { \"%15[^\"]\" : %lf } %n", key, &tau, &end) == 2 && end == (int)options.len) {
    if (strcmp(key, "tau") != 0) {
      say(error, "\tunknown option; the only one is tau");
      return T3S_ERROR;
    }
  } else {
    end = -1;
    sscanf(text, " { } %n", &end);
    if (end != (int)options.len) {
      say(error, "\tthe only option is tau, a number");
      return T3S_ERROR;
    }
  }
  if (!(tau > 0.0 && tau < 1e6)) {
    say(error, "tau\tmust be above 0, nats");
    return T3S_ERROR;
  }
  EdgeWeights *made = malloc(sizeof *made);
  if (!made) {
    say(error, "out of memory");
    return T3S_ERROR;
  }
  made->tau = (float)tau;
  *instance = made;
  return T3S_OK;
}

static void destroy(void *instance) { free(instance); }

/* Every weight depends on its own token only, and falls where Delta c rises. */
static int32_t describe(const void *instance, T3sText *answer, T3sText *error) {
  (void)instance;
  (void)error;
  say(answer, "{\"needs\": [\"delta-logp\"], \"scope\": \"per-example\", "
              "\"falling\": [\"delta-logp\"]}");
  return T3S_OK;
}

static int32_t run(const void *instance, const T3sTokens *tokens, float *out, size_t n,
                   T3sText *error) {
  const EdgeWeights *self = instance;
  const T3sColumn *delta = NULL;
  for (size_t i = 0; i < tokens->n_columns; i++) {
    const T3sColumn *column = &tokens->columns[i];
    if (column->name.len == sizeof NEED - 1 && memcmp(column->name.data, NEED, sizeof NEED - 1) == 0)
      delta = column;
  }
  if (!delta) {
    say(error, "the column delta-logp was not recorded");
    return T3S_ERROR;
  }
  for (size_t i = 0; i < n; i++) {
    float d = tokens->eligible[i] ? delta->data[i * delta->stride] : 0.0f;
    if (isnan(d)) {
      say(error, "delta-logp is NaN at a token that may be trained on");
      return T3S_ERROR;
    }
    out[i] = !tokens->eligible[i] ? 0.0f : d <= 0.0f ? 1.0f : expf(-d / self->tau);
  }
  return T3S_OK;
}

static const T3sComponent COMPONENT = {
    .size = sizeof(T3sComponent),
    .kind = T3S_STRATEGY,
    .name = STR("edge-weights"),
    .summary = STR("fades tokens that rose by the bottleneck, exp(-Delta c / tau) (tau)"),
    .schema = STR("{\"type\": \"object\", \"additionalProperties\": false, \"properties\": {"
                  "\"tau\": {\"type\": \"number\", \"default\": 0.5, \"description\": "
                  "\"Nats of Delta c over which the weight falls to 1/e, above 0.\"}}}"),
    .create = create,
    .destroy = destroy,
    .describe = describe,
    .run = run,
};

static const T3sComponent *const COMPONENTS[] = {&COMPONENT};

static int32_t components(const T3sComponent *const **list, size_t *count, T3sText *error) {
  (void)error;
  *list = COMPONENTS;
  *count = sizeof COMPONENTS / sizeof COMPONENTS[0];
  return T3S_OK;
}

const T3sPlugin t3s_plugin = {
    .magic = T3S_MAGIC,
    .major = T3S_ABI_MAJOR,
    .minor = T3S_ABI_MINOR,
    .size = sizeof(T3sPlugin),
    .built_with = STR("t3s_plugin.h " SPELT(T3S_ABI_MAJOR) "." SPELT(T3S_ABI_MINOR)),
    .components = components,
    .free_text = free_text,
};
