/* A plugin with one fault, chosen by -DFAULT_...; without, a good one that keeps every token. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "t3s_plugin.h"

#define STR(text) {(const uint8_t *)(text), sizeof(text) - 1}

#ifndef NAME
#define NAME "keep"
#endif
#ifndef MAJOR
#define MAJOR T3S_ABI_MAJOR
#endif
#ifndef MINOR
#define MINOR T3S_ABI_MINOR
#endif
#ifndef FLAGS
#define FLAGS 0
#endif
#ifndef DESCRIPTION
#define DESCRIPTION "{\"needs\": [\"x\"], \"scope\": \"per-example\"}"
#endif
#ifndef KIND
#define KIND T3S_STRATEGY
#endif

static int here;

static void say(T3sText *place, const char *text) {
  place->len = strlen(text);
  place->data = malloc(place->len);
  if (place->data) memcpy(place->data, text, place->len);
}

static void free_text(T3sText text) { free(text.data); }

static int32_t create(const void *context, T3sStr options, void **instance, T3sText *error) {
  (void)context;
  if (options.len > 2) {
    say(error, "share\tmust be left out");
    return T3S_ERROR;
  }
#ifdef FAULT_SILENT
  return T3S_ERROR;
#endif
#ifdef FAULT_NO_INSTANCE
  return T3S_OK;
#endif
  *instance = &here;
  return T3S_OK;
}

static void destroy(void *instance) { (void)instance; }

static int32_t describe(const void *instance, T3sText *answer, T3sText *error) {
  (void)instance;
  (void)error;
  say(answer, DESCRIPTION);
  return T3S_OK;
}

static int32_t run(const void *instance, const T3sTokens *tokens, float *out, size_t n,
                   T3sText *error) {
  (void)instance;
  (void)error;
  for (size_t i = 0; i < n; i++) out[i] = tokens->eligible[i] ? 1.0f : 0.0f;
#ifdef FAULT_ERROR
  say(error, "the moon is in the wrong phase");
  return T3S_ERROR;
#endif
#ifdef FAULT_STATUS
  return 77;
#endif
#ifdef FAULT_NOT_UTF8
  say(error, "\xff\xfe");
  return T3S_ERROR;
#endif
#ifdef FAULT_UNWRITTEN
  if (n) memcpy(out + n - 1, &(uint32_t){0x7fc07435}, 4);
#endif
#ifdef FAULT_WEIGHT
  volatile float zero = 0.0f;
  if (n) out[n - 1] = FAULT_WEIGHT;
  (void)zero;
#endif
#ifdef FAULT_PROMPT
  for (size_t i = 0; i < n; i++) out[i] = 1.0f;
#endif
#ifdef FAULT_ABORT
  abort();
#endif
#ifdef FAULT_EXIT
  exit(3);
#endif
#ifdef FAULT_NULL_READ
  out[0] = *(volatile float *)8;
#endif
#ifdef FAULT_OUTSIDE
  /* Only the columns' end shows this one. */
  const T3sColumn *column = &tokens->columns[0];
  volatile float next = column->data[column->len];
  (void)next;
#endif
  return T3S_OK;
}

static const T3sComponent COMPONENT = {
#ifdef FAULT_SIZE
    .size = 24,
#elif MINOR == 0
    /* Version 1.0 ended before the adapters. */
    .size = offsetof(T3sComponent, adapt),
#else
    .size = sizeof(T3sComponent),
#endif
    .kind = KIND,
#ifdef FAULT_NAME_NULL
    .name = {NULL, 4},
#else
    .name = STR(NAME),
#endif
    .summary = STR("keeps every token"),
#ifdef FAULT_SCHEMA
    .schema = STR("{ not json"),
#else
    .schema = STR("{\"type\": \"object\", \"properties\": {}}"),
#endif
#ifndef FAULT_NO_CREATE
    .create = create,
#endif
    .destroy = destroy,
    .describe = describe,
#ifndef FAULT_NO_RUN
    .run = run,
#endif
};

#ifdef FAULT_NULL_COMPONENT
static const T3sComponent *const COMPONENTS[] = {NULL};
#elif defined FAULT_SAME_NAME
static const T3sComponent *const COMPONENTS[] = {&COMPONENT, &COMPONENT};
#else
static const T3sComponent *const COMPONENTS[] = {&COMPONENT};
#endif

static int32_t components(const T3sComponent *const **list, size_t *count, T3sText *error) {
  (void)error;
#ifdef FAULT_LIST
  say(error, "no list today");
  return T3S_ERROR;
#endif
#ifdef FAULT_NULL_LIST
  *list = NULL;
#else
  *list = COMPONENTS;
#endif
#ifdef FAULT_EMPTY
  *count = 0;
#else
  *count = sizeof COMPONENTS / sizeof COMPONENTS[0];
#endif
  return T3S_OK;
}

#ifdef FAULT_NO_SYMBOL
const T3sPlugin another_name = {
#else
const T3sPlugin t3s_plugin = {
#endif
#ifdef FAULT_MAGIC
    .magic = 7,
#else
    .magic = T3S_MAGIC,
#endif
    .major = MAJOR,
    .minor = MINOR,
    .flags = FLAGS,
    .size = sizeof(T3sPlugin),
    .built_with = STR("faulty.c"),
#ifndef FAULT_NULL_TABLE
    .components = components,
#endif
    .free_text = free_text,
};
