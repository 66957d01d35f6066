/* Everything that C can get wrong with harmonica.h and the library finds out, under the sanitizers of addresses and of
 * undefined behaviour. tests/suite/misuse.rs runs it; against a library that was built for itself:
 *
 *   make -C tests/c
 *   tests/c/misuse tests/golden/diffusers-single cpu 1000
 */
#include <harmonica.h>

#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
/* Of <sanitizer/allocator_interface.h>, which not every compiler brings. */
size_t __sanitizer_get_current_allocated_bytes(void);
#endif

static int failures = 0;
static unsigned long checks = 0;
static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER;

static void check(int holds, int line, const char *format, ...) {
  pthread_mutex_lock(&counting);
  checks++;
  if (!holds) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "misuse.c:%d: ", line);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n  last error: %s\n", hm_last_error());
    va_end(arguments);
    failures++;
  }
  pthread_mutex_unlock(&counting);
}

#define CHECK(condition) check((condition), __LINE__, "%s", #condition)

/* A call that must end so. */
#define ENDS(expected, call) ends(expected, call, __LINE__, #call)
static void ends(hm_status expected, hm_status found, int line,
                 const char *call) {
  check(found == expected, line, "%s ended with %d, expected %d", call,
        (int)found, (int)expected);
}

/* A call that must be refused for this reason. */
#define REFUSED(reason, call) refused(reason, call, __LINE__, #call)
static void refused(const char *reason, hm_status found, int line,
                    const char *call) {
  check(found == HM_INVALID_ARGUMENT && strstr(hm_last_error(), reason), line,
        "%s ended with %d, expected a refusal: %s", call, (int)found, reason);
}

/* Memory of exactly this size, so that one byte more is seen. */
static void *exactly(size_t size) {
  void *memory = malloc(size);
  if (memory == NULL) {
    fprintf(stderr, "no memory for %zu bytes\n", size);
    exit(1);
  }
  memset(memory, 0xa5, size);
  return memory;
}

static int untouched(const void *memory, size_t size) {
  const unsigned char *bytes = memory;
  for (size_t i = 0; i < size; i++)
    if (bytes[i] != 0xa5)
      return 0;
  return 1;
}

/* What every part works with. */
typedef struct place {
  const char *spec;
  const char *device;
  hm_engine *engine;
  hm_model *model;
  hm_schedule *schedule;
  hm_model_info info;
  hm_settings settings;
  /* Floats of an image. */
  size_t size;
  /* The image of class 1. */
  float *image;
} place;

static hm_status draw(const place *p, float *values, hm_progress_fn progress,
                      void *user) {
  const uint32_t label = 1;
  return hm_sample(p->model, &p->settings, p->schedule, &label, 1, values,
                   p->size, progress, user);
}

static void open_place(place *p) {
  ENDS(HM_OK, hm_engine_open(p->device, &p->engine));
  ENDS(HM_OK, hm_model_load(p->engine, p->spec, 0, &p->model));
  if (failures > 0)
    exit(1);
  ENDS(HM_OK, hm_model_get_info(p->model, &p->info));
  ENDS(HM_OK, hm_settings_init(p->model, &p->settings));
  p->settings.steps = 4;
  ENDS(HM_OK, hm_schedule_open(p->model, &p->settings, "fora:2", &p->schedule));
  p->size = (size_t)p->info.channels * p->info.height * p->info.width;
  p->image = exactly(p->size * sizeof(float));
  ENDS(HM_OK, draw(p, p->image, NULL, NULL));
}

static void null_everywhere(const place *p) {
  hm_engine *engine = NULL;
  hm_model *model = NULL;
  hm_schedule *schedule = NULL;
  hm_figures figures;
  hm_settings settings;
  uint32_t label = 0;
  const uint8_t table[1] = {1};
  float *values = exactly(p->size * sizeof *values);
  uint8_t *rgb = exactly(3);

  REFUSED("`device` is null", hm_engine_open(NULL, &engine));
  REFUSED("`engine` is null", hm_engine_open("cpu", NULL));
  CHECK(hm_engine_device(NULL) == NULL && hm_engine_backend(NULL) == NULL);
  CHECK(hm_engine_notice(NULL) == NULL);
  hm_engine_free(NULL);

  REFUSED("`engine` is null", hm_model_load(NULL, p->spec, 0, &model));
  REFUSED("`spec` is null", hm_model_load(p->engine, NULL, 0, &model));
  REFUSED("`model` is null", hm_model_load(p->engine, p->spec, 0, NULL));
  hm_model_info info;
  REFUSED("`model` is null", hm_model_get_info(NULL, &info));
  REFUSED("`info` is null", hm_model_get_info(p->model, NULL));
  CHECK(hm_model_class_name(NULL, 0) == NULL);
  REFUSED("`model` is null", hm_model_class_by_name(NULL, "1", &label));
  REFUSED("`name` is null", hm_model_class_by_name(p->model, NULL, &label));
  REFUSED("`label` is null", hm_model_class_by_name(p->model, "1", NULL));
  hm_model_free(NULL);

  const hm_settings *good = &p->settings;
  REFUSED("`model` is null", hm_schedule_open(NULL, good, "none", &schedule));
  REFUSED("`settings` is null",
          hm_schedule_open(p->model, NULL, "none", &schedule));
  REFUSED("`spec` is null", hm_schedule_open(p->model, good, NULL, &schedule));
  REFUSED("`schedule` is null", hm_schedule_open(p->model, good, "none", NULL));
  REFUSED("`model` is null",
          hm_schedule_from_table(NULL, table, 1, 1, &schedule));
  REFUSED("`compute` is null",
          hm_schedule_from_table(p->model, NULL, 1, 1, &schedule));
  REFUSED("`compute` is null",
          hm_schedule_from_table(p->model, NULL, 0, 0, &schedule));
  REFUSED("`schedule` is null",
          hm_schedule_from_table(p->model, table, 1, 1, NULL));
  REFUSED("`schedule` is null", hm_schedule_get_figures(NULL, &figures));
  REFUSED("`figures` is null", hm_schedule_get_figures(p->schedule, NULL));
  hm_schedule_free(NULL);

  REFUSED("`model` is null", hm_settings_init(NULL, &settings));
  REFUSED("`settings` is null", hm_settings_init(p->model, NULL));
  REFUSED("`model` is null", hm_sample(NULL, good, NULL, &label, 1, values,
                                       p->size, NULL, NULL));
  REFUSED("`settings` is null", hm_sample(p->model, NULL, NULL, &label, 1,
                                          values, p->size, NULL, NULL));
  REFUSED("`labels` is null", hm_sample(p->model, good, NULL, NULL, 1, values,
                                        p->size, NULL, NULL));
  REFUSED("`labels` is null",
          hm_sample(p->model, good, NULL, NULL, 0, values, 0, NULL, NULL));
  REFUSED("`values` is null", hm_sample(p->model, good, NULL, &label, 1, NULL,
                                        p->size, NULL, NULL));
  REFUSED("`model` is null", hm_rgb8(NULL, values, p->size, rgb, 3));
  REFUSED("`image` is null", hm_rgb8(p->model, NULL, p->size, rgb, 3));
  REFUSED("`rgb` is null", hm_rgb8(p->model, values, p->size, NULL, 3));
  REFUSED("`model` is null", hm_write_png(NULL, values, p->size, "x.png"));
  REFUSED("`values` is null", hm_write_png(p->model, NULL, p->size, "x.png"));
  REFUSED("`path` is null", hm_write_png(p->model, values, p->size, NULL));

  CHECK(engine == NULL && model == NULL && schedule == NULL && label == 0);
  CHECK(untouched(values, p->size * sizeof *values) && untouched(rgb, 3));
  free(values);
  free(rgb);
}

static void absurd_numbers(const place *p) {
  uint32_t label = 1;
  hm_schedule *schedule = NULL;
  float *values = exactly(p->size * sizeof *values);
  const hm_settings *good = &p->settings;

  const size_t counts[] = {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 4, 2, 0};
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
    ENDS(HM_INVALID_ARGUMENT, hm_sample(p->model, good, NULL, &label, counts[i],
                                        values, p->size, NULL, NULL));
  const size_t lengths[] = {SIZE_MAX, SIZE_MAX / 4, p->size + 1, p->size - 1, 0};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    REFUSED("expected exactly", hm_sample(p->model, good, NULL, &label, 1,
                                          values, lengths[i], NULL, NULL));
    uint8_t *rgb = exactly(1);
    ENDS(HM_INVALID_ARGUMENT,
         hm_rgb8(p->model, values, lengths[i], rgb, lengths[i]));
    ENDS(HM_INVALID_ARGUMENT,
         hm_rgb8(p->model, values, p->size, rgb, lengths[i]));
    ENDS(HM_INVALID_ARGUMENT,
         hm_write_png(p->model, values, lengths[i], "x.png"));
    CHECK(untouched(rgb, 1));
    free(rgb);
  }
  /* No image at all is refused as such. */
  REFUSED("image", hm_sample(p->model, good, NULL, &label, 0, values, 0, NULL,
                             NULL));
  const uint32_t labels[] = {p->info.classes + 1, UINT32_MAX};
  for (size_t i = 0; i < 2; i++)
    REFUSED("there is no class", hm_sample(p->model, good, NULL, &labels[i], 1,
                                           values, p->size, NULL, NULL));
  CHECK(hm_model_class_name(p->model, UINT32_MAX) == NULL);

  const uint32_t steps[] = {0, 1001, UINT32_MAX};
  for (size_t i = 0; i < 3; i++) {
    hm_settings bad = *good;
    bad.steps = steps[i];
    ENDS(HM_INVALID_ARGUMENT, hm_sample(p->model, &bad, NULL, &label, 1, values,
                                        p->size, NULL, NULL));
    ENDS(HM_INVALID_ARGUMENT,
         hm_schedule_open(p->model, &bad, "fora:2", &schedule));
    uint8_t table[4] = {1, 1, 1, 1};
    ENDS(HM_SCHEDULE, hm_schedule_from_table(p->model, table, 4, steps[i],
                                             &schedule));
  }
  uint8_t one = 1;
  ENDS(HM_INVALID_ARGUMENT,
       hm_schedule_from_table(p->model, &one, SIZE_MAX, 4, &schedule));
  const double numbers[] = {-1.0, -1e308, 0.0 / 0.0, 1.0 / 0.0};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    hm_settings bad = *good;
    bad.guidance = numbers[i];
    ENDS(HM_INVALID_ARGUMENT, hm_sample(p->model, &bad, NULL, &label, 1, values,
                                        p->size, NULL, NULL));
    bad = *good;
    bad.eta = numbers[i];
    ENDS(HM_INVALID_ARGUMENT, hm_sample(p->model, &bad, NULL, &label, 1, values,
                                        p->size, NULL, NULL));
  }
  for (int field = 0; field < 3; field++) {
    hm_settings bad = *good;
    *(field == 0   ? &bad.solver
      : field == 1 ? &bad.guidance_channels
                   : &bad.clip_x0) = UINT32_MAX;
    REFUSED("4294967295", hm_sample(p->model, &bad, NULL, &label, 1, values,
                                    p->size, NULL, NULL));
  }
  /* Bytes that nobody set, as of a struct that hm_settings_init never saw. */
  hm_settings garbage;
  memset(&garbage, 0xa5, sizeof garbage);
  ENDS(HM_INVALID_ARGUMENT, hm_sample(p->model, &garbage, NULL, &label, 1,
                                      values, p->size, NULL, NULL));
  CHECK(untouched(values, p->size * sizeof *values) && schedule == NULL);

  /* More at a time than there are is what there is. */
  hm_settings most = *good;
  most.batch = UINT32_MAX;
  ENDS(HM_OK, hm_sample(p->model, &most, p->schedule, &label, 1, values,
                        p->size, NULL, NULL));
  CHECK(memcmp(values, p->image, p->size * sizeof *values) == 0);
  free(values);

  hm_model *model = NULL;
  const char *specs[] = {"", "/", "/dev/null", "random:DiT-XL/2@99999999999999",
                         "random:", "no/such", "%s%n%s%n"};
  for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
    ENDS(HM_MODEL, hm_model_load(p->engine, specs[i], UINT32_MAX, &model));
  CHECK(model == NULL);
}

static void no_text(const place *p) {
  const char *texts[] = {"\xe9", "\xc3", "cpu\xff", "\xed\xa0\x80", "\xc0\x80"};
  hm_engine *engine = NULL;
  hm_model *model = NULL;
  hm_schedule *schedule = NULL;
  uint32_t label = 0;
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    REFUSED("`device` is no UTF-8", hm_engine_open(texts[i], &engine));
    REFUSED("`spec` is no UTF-8",
            hm_model_load(p->engine, texts[i], 0, &model));
    REFUSED("`name` is no UTF-8",
            hm_model_class_by_name(p->model, texts[i], &label));
    REFUSED("`spec` is no UTF-8",
            hm_schedule_open(p->model, &p->settings, texts[i], &schedule));
    REFUSED("`path` is no UTF-8",
            hm_write_png(p->model, p->image, p->size, texts[i]));
  }
  CHECK(engine == NULL && model == NULL && schedule == NULL);
  ENDS(HM_IO, hm_write_png(p->model, p->image, p->size, "/dev/null/x.png"));

  /* A text of a megabyte is read to its end, and told of whole. */
  const size_t length = 1 << 20;
  char *longest = exactly(length + 1);
  memset(longest, 'x', length);
  longest[length] = 0;
  ENDS(HM_DEVICE, hm_engine_open(longest, &engine));
  CHECK(strlen(hm_last_error()) > length);
  ENDS(HM_MODEL, hm_model_load(p->engine, longest, 0, &model));
  free(longest);
}

static void pointers_between(const place *p) {
  char *memory = exactly(p->size * sizeof(float) + 64);
  uint32_t label = 1;
  const char *reason = "is not aligned";
  REFUSED(reason, hm_engine_open("cpu", (hm_engine **)(void *)(memory + 1)));
  REFUSED(reason, hm_model_load(p->engine, p->spec, 0,
                                (hm_model **)(void *)(memory + 4)));
  REFUSED(reason, hm_model_get_info(p->model,
                                    (hm_model_info *)(void *)(memory + 4)));
  REFUSED(reason,
          hm_settings_init(p->model, (hm_settings *)(void *)(memory + 4)));
  REFUSED(reason, hm_sample(p->model, &p->settings, NULL, &label, 1,
                            (float *)(void *)(memory + 2), p->size, NULL,
                            NULL));
  REFUSED(reason, hm_sample(p->model, &p->settings, NULL,
                            (uint32_t *)(void *)(memory + 1), 1,
                            (float *)(void *)memory, p->size, NULL, NULL));
  REFUSED(reason, hm_rgb8(p->model, (float *)(void *)(memory + 3), p->size,
                          (uint8_t *)memory, 3));
  CHECK(untouched(memory, p->size * sizeof(float) + 64));
  free(memory);
}

/* Results end where there is room, to the byte: what lies beyond belongs to another allocation. */
static void room_to_the_byte(const place *p) {
  const uint32_t labels[] = {0, 1, p->info.classes};
  const size_t length = 3 * p->size, pixels = 3u * p->info.height * p->info.width;
  float *values = exactly(length * sizeof *values);
  hm_settings settings = p->settings;
  settings.batch = 2;
  ENDS(HM_OK, hm_sample(p->model, &settings, p->schedule, labels, 3, values,
                        length, NULL, NULL));
  /* A sanitized build aborts on a byte beyond; this sees a value that is missing. */
  CHECK(!untouched(&values[length - 1], sizeof *values));
  for (size_t missing = 1; missing <= 2; missing++) {
    float *few = exactly((length - missing) * sizeof *few);
    REFUSED("expected exactly",
            hm_sample(p->model, &settings, NULL, labels, 3, few,
                      length - missing, NULL, NULL));
    CHECK(untouched(few, (length - missing) * sizeof *few));
    free(few);
    uint8_t *rgb = exactly(pixels - missing);
    REFUSED("expected exactly", hm_rgb8(p->model, p->image, p->size, rgb,
                                        pixels - missing));
    CHECK(untouched(rgb, pixels - missing));
    free(rgb);
  }
  uint8_t *rgb = exactly(pixels + 16);
  ENDS(HM_OK, hm_rgb8(p->model, p->image, p->size, rgb, pixels));
  CHECK(untouched(rgb + pixels, 16));
  ENDS(HM_INVALID_ARGUMENT,
       hm_rgb8(p->model, p->image, p->size - 1, rgb, pixels));
  free(rgb);

  hm_model_info info[2];
  memset(info, 0xa5, sizeof info);
  ENDS(HM_OK, hm_model_get_info(p->model, &info[0]));
  CHECK(untouched(&info[1], sizeof info[1]) &&
        info[0].classes == p->info.classes);
  hm_figures figures[2];
  memset(figures, 0xa5, sizeof figures);
  ENDS(HM_OK, hm_schedule_get_figures(p->schedule, &figures[0]));
  CHECK(untouched(&figures[1], sizeof figures[1]) && figures[0].steps == 4);
  hm_settings both[2];
  memset(both, 0xa5, sizeof both);
  ENDS(HM_OK, hm_settings_init(p->model, &both[0]));
  CHECK(untouched(&both[1], sizeof both[1]));

  /* A table is read to its end and not beyond. */
  const size_t entries = 4 * (size_t)p->info.branches;
  uint8_t *table = exactly(entries);
  hm_schedule *schedule = NULL;
  ENDS(HM_SCHEDULE,
       hm_schedule_from_table(p->model, table, entries - 1, 4, &schedule));
  ENDS(HM_OK, hm_schedule_from_table(p->model, table, entries, 4, &schedule));
  free(table);
  ENDS(HM_OK, hm_schedule_get_figures(schedule, &figures[0]));
  CHECK(figures[0].cur == 0.0);
  hm_schedule_free(schedule);
  free(values);
}

static void freed_and_mistaken(const place *p) {
  hm_engine *engine = NULL;
  hm_model *model = NULL;
  hm_schedule *schedule = NULL;
  hm_model_info info;
  hm_figures figures;
  const uint32_t label = 1;
  const char *reason = "is no open handle";
  float *values = exactly(p->size * sizeof *values);
  ENDS(HM_OK, hm_engine_open(p->device, &engine));
  ENDS(HM_OK, hm_model_load(engine, p->spec, 0, &model));
  ENDS(HM_OK, hm_schedule_open(model, &p->settings, "fora:2", &schedule));

  /* The engine first, then the model, then its schedule: each goes on without what it came from. */
  hm_engine_free(engine);
  ENDS(HM_OK, hm_sample(model, &p->settings, schedule, &label, 1, values,
                        p->size, NULL, NULL));
  CHECK(memcmp(values, p->image, p->size * sizeof *values) == 0);
  REFUSED(reason, hm_model_load(engine, p->spec, 0, &model));
  CHECK(hm_engine_device(engine) == NULL && hm_engine_backend(engine) == NULL &&
        hm_engine_notice(engine) == NULL);
  CHECK(strstr(hm_last_error(), reason) != NULL);
  hm_model_free(model);
  ENDS(HM_OK, hm_schedule_get_figures(schedule, &figures));
  ENDS(HM_OK, hm_sample(p->model, &p->settings, schedule, &label, 1, values,
                        p->size, NULL, NULL));
  REFUSED(reason, hm_model_get_info(model, &info));
  REFUSED(reason, hm_sample(model, &p->settings, schedule, &label, 1, values,
                            p->size, NULL, NULL));
  REFUSED(reason, hm_settings_init(model, &(hm_settings){0}));
  REFUSED(reason, hm_rgb8(model, values, p->size, (uint8_t *)values, 3));
  REFUSED(reason, hm_write_png(model, values, p->size, "x.png"));
  CHECK(hm_model_class_name(model, 0) == NULL);
  hm_schedule_free(schedule);
  REFUSED(reason, hm_schedule_get_figures(schedule, &figures));
  REFUSED(reason, hm_sample(p->model, &p->settings, schedule, &label, 1, values,
                            p->size, NULL, NULL));

  /* Twice and thrice: nothing, although others were opened since. */
  hm_engine *later = NULL;
  ENDS(HM_OK, hm_engine_open("cpu", &later));
  for (int again = 0; again < 3; again++) {
    hm_engine_free(engine);
    hm_model_free(model);
    hm_schedule_free(schedule);
  }
  CHECK(later != engine && hm_engine_device(later) != NULL);

  /* One type for another, and addresses that were never handles. */
  REFUSED(reason, hm_model_get_info((hm_model *)(void *)later, &info));
  REFUSED(reason, hm_model_load((hm_engine *)(void *)p->model, p->spec, 0,
                                &model));
  REFUSED(reason,
          hm_schedule_get_figures((hm_schedule *)(void *)p->model, &figures));
  REFUSED(reason, hm_model_get_info((hm_model *)(void *)&info, &info));
  REFUSED(reason, hm_model_get_info((hm_model *)UINTPTR_MAX, &info));
  hm_model_free((hm_model *)(void *)later);
  hm_schedule_free((hm_schedule *)(void *)&info);
  CHECK(hm_engine_device(later) != NULL);
  hm_engine_free(later);
  free(values);
}

static void errors_and_their_texts(const place *p) {
  hm_engine *engine = NULL;
  hm_model_info info;
  ENDS(HM_DEVICE, hm_engine_open("abacus", &engine));
  const char *text = hm_last_error();
  char *copy = strdup(text);
  /* What succeeds leaves the text where it was. */
  ENDS(HM_OK, hm_model_get_info(p->model, &info));
  CHECK(hm_engine_device(p->engine) != NULL);
  hm_model_free(NULL);
  CHECK(hm_last_error() == text && strcmp(text, copy) == 0);
  CHECK(strstr(text, "abacus") != NULL);
  ENDS(HM_INVALID_ARGUMENT, hm_model_get_info(NULL, NULL));
  CHECK(strcmp(hm_last_error(), copy) != 0);
  free(copy);
  CHECK(hm_abi_version() == HM_ABI_VERSION);
  CHECK(strlen(hm_version()) > 0);
  /* Strings of a handle stay while it does. */
  const char *device = hm_engine_device(p->engine);
  hm_engine *other = NULL;
  ENDS(HM_OK, hm_engine_open("cpu", &other));
  hm_engine_free(other);
  CHECK(hm_engine_device(p->engine) == device && strlen(device) > 0);
}

typedef struct told {
  place *place;
  hm_model *freed;
  int depth;
  int calls;
  int cancel_at;
} told;

static int32_t cancel(void *user, const hm_progress *progress) {
  told *t = user;
  check(progress->step < progress->steps, __LINE__, "a step beyond the run");
  return ++t->calls == t->cancel_at ? INT32_MIN : 0;
}

/* Draws within the drawing, with everything that belongs to it, and leaves an error behind. */
static int32_t enter_again(void *user, const hm_progress *progress) {
  told *t = user;
  const place *p = t->place;
  t->calls++;
  if (t->depth == 2 || progress->step != 1)
    return 0;
  told deeper = {.place = t->place, .depth = t->depth + 1};
  float *values = exactly(p->size * sizeof *values);
  ENDS(HM_OK, draw(p, values, enter_again, &deeper));
  CHECK(memcmp(values, p->image, p->size * sizeof *values) == 0);
  told cancelled = {.place = t->place, .cancel_at = 1};
  ENDS(HM_CANCELLED, draw(p, values, cancel, &cancelled));
  REFUSED("`model` is null", hm_model_get_info(NULL, NULL));
  hm_schedule *schedule = NULL;
  ENDS(HM_OK, hm_schedule_open(p->model, &p->settings, "none", &schedule));
  hm_schedule_free(schedule);
  CHECK(deeper.calls == (int)progress->steps);
  free(values);
  return 0;
}

/* Frees what the call uses, and changes what it was given. */
static int32_t pull_the_rug(void *user, const hm_progress *progress) {
  told *t = user;
  t->calls++;
  hm_model_free(t->freed);
  memset(&t->place->settings, 0xa5, sizeof t->place->settings);
  check(progress->steps == 4, __LINE__, "%u steps", progress->steps);
  return 0;
}

static void callbacks(place *p) {
  float *values = exactly(p->size * sizeof *values);
  for (int at = 1; at <= 4; at++) {
    told t = {.place = p, .cancel_at = at};
    ENDS(HM_CANCELLED, draw(p, values, cancel, &t));
    CHECK(t.calls == at && untouched(values, p->size * sizeof *values));
    CHECK(strcmp(hm_last_error(), "cancelled") == 0);
  }
  told t = {.place = p};
  ENDS(HM_OK, draw(p, values, enter_again, &t));
  CHECK(t.calls == 4);
  CHECK(memcmp(values, p->image, p->size * sizeof *values) == 0);

  place other = *p;
  hm_engine *engine = NULL;
  ENDS(HM_OK, hm_engine_open(p->device, &engine));
  ENDS(HM_OK, hm_model_load(engine, p->spec, 0, &other.model));
  hm_engine_free(engine);
  memset(values, 0xa5, p->size * sizeof *values);
  told rug = {.place = &other, .freed = other.model};
  ENDS(HM_OK, draw(&other, values, pull_the_rug, &rug));
  CHECK(rug.calls == 4);
  CHECK(memcmp(values, p->image, p->size * sizeof *values) == 0);
  free(values);
}

#define THREADS 4

static void *draw_elsewhere(void *argument) {
  const place *p = argument;
  CHECK(strcmp(hm_last_error(), "") == 0);
  float *values = exactly(p->size * sizeof *values);
  for (int round = 0; round < 3; round++) {
    ENDS(HM_OK, draw(p, values, NULL, NULL));
    CHECK(memcmp(values, p->image, p->size * sizeof *values) == 0);
    ENDS(HM_INVALID_ARGUMENT, hm_model_get_info(NULL, NULL));
  }
  free(values);
  return NULL;
}

/* Frees, on a thread that opened nothing, what others draw with. */
static void *free_elsewhere(void *argument) {
  place *p = argument;
  usleep(2000);
  hm_schedule_free(p->schedule);
  hm_model_free(p->model);
  hm_engine_free(p->engine);
  return NULL;
}

/* Draws until the model is gone: every call is whole or refused. */
static void *draw_until_gone(void *argument) {
  const place *p = argument;
  float *values = exactly(p->size * sizeof *values);
  hm_status status = HM_OK;
  while (status == HM_OK) {
    status = draw(p, values, NULL, NULL);
    if (status == HM_OK)
      CHECK(memcmp(values, p->image, p->size * sizeof *values) == 0);
  }
  refused("is no open handle", status, __LINE__, "draw");
  free(values);
  return NULL;
}

static void threads(const place *p) {
  pthread_t thread[THREADS + 1];
  for (int i = 0; i < THREADS; i++)
    pthread_create(&thread[i], NULL, draw_elsewhere, (void *)p);
  for (int i = 0; i < THREADS; i++)
    pthread_join(thread[i], NULL);

  place shared = *p;
  ENDS(HM_OK, hm_engine_open(p->device, &shared.engine));
  ENDS(HM_OK, hm_model_load(shared.engine, p->spec, 0, &shared.model));
  ENDS(HM_OK, hm_schedule_open(shared.model, &p->settings, "fora:2",
                               &shared.schedule));
  for (int i = 0; i < THREADS; i++)
    pthread_create(&thread[i], NULL, draw_until_gone, &shared);
  pthread_create(&thread[THREADS], NULL, free_elsewhere, &shared);
  for (int i = 0; i <= THREADS; i++)
    pthread_join(thread[i], NULL);
}

/* Bytes that are allocated where a sanitizer counts them, otherwise those of the process. */
static size_t memory_now(void) {
#if defined(__SANITIZE_ADDRESS__)
  return __sanitizer_get_current_allocated_bytes();
#else
  long all = 0, resident = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (file == NULL || fscanf(file, "%ld %ld", &all, &resident) != 2) {
    fprintf(stderr, "/proc/self/statm cannot be read\n");
    exit(1);
  }
  fclose(file);
  return (size_t)resident * (size_t)sysconf(_SC_PAGESIZE);
#endif
}

static void again_and_again(const place *p, int cycles) {
  size_t early = 0;
  const int settled = cycles / 10;
  for (int cycle = 0; cycle < cycles; cycle++) {
    hm_engine *engine = NULL;
    hm_model *model = NULL;
    hm_schedule *schedule = NULL;
    ENDS(HM_OK, hm_engine_open(p->device, &engine));
    ENDS(HM_OK, hm_model_load(engine, p->spec, 0, &model));
    ENDS(HM_OK, hm_schedule_open(model, &p->settings, "fora:2", &schedule));
    ENDS(HM_INVALID_ARGUMENT, hm_model_get_info(NULL, NULL));
    /* Each of the six orders of freeing in turn. */
    for (int i = 0; i < 3; i++) {
      const int turn = cycle % 2 ? 2 - i : i;
      switch ((turn + cycle / 2) % 3) {
      case 0:
        hm_engine_free(engine);
        break;
      case 1:
        hm_model_free(model);
        break;
      default:
        hm_schedule_free(schedule);
      }
    }
    if (cycle == settled)
      early = memory_now();
  }
  const size_t late = memory_now();
  printf("%d times opened and freed: %.2f MB, then %.2f MB\n", cycles,
         (double)early / 1e6, (double)late / 1e6);
  check(late < early + early / 20, __LINE__, "memory grew by %zu bytes",
        late - early);
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: misuse MODEL DEVICE CYCLES\n");
    return 2;
  }
  place p = {.spec = argv[1], .device = argv[2]};
  open_place(&p);
  null_everywhere(&p);
  absurd_numbers(&p);
  no_text(&p);
  pointers_between(&p);
  room_to_the_byte(&p);
  freed_and_mistaken(&p);
  errors_and_their_texts(&p);
  callbacks(&p);
  threads(&p);
  again_and_again(&p, atoi(argv[3]));
  free(p.image);
  hm_schedule_free(p.schedule);
  hm_model_free(p.model);
  hm_engine_free(p.engine);
  printf("%lu checks, %d failures\n", checks, failures);
  return failures > 0;
}
