/* The bundled model, its learned schedule, a picture: what examples/quickstart.rs does, in C.
 *
 *   make -C examples/c          builds the library and this
 *   examples/c/harmonica-c [picture.png [device [count]]]
 */
#include <harmonica.h>

#include <stdio.h>
#include <stdlib.h>

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, hm_last_error());
  return 1;
}

/* Told of every step on this thread; another value than 0 would cancel. */
static int32_t tell(void *user, const hm_progress *progress) {
  unsigned *told = user;
  *told += 1;
  fprintf(stderr, "\rimages %llu to %llu of %llu: step %u of %u ",
          (unsigned long long)progress->first_image + 1,
          (unsigned long long)(progress->first_image + progress->images),
          (unsigned long long)progress->count, progress->step + 1,
          progress->steps);
  return 0;
}

int main(int argc, char **argv) {
  const char *path = argc > 1 ? argv[1] : "harmonica-c.png";
  const char *device = argc > 2 ? argv[2] : "auto";
  const size_t count = argc > 3 ? strtoul(argv[3], NULL, 10) : 6;

  if (hm_abi_version() != HM_ABI_VERSION) {
    fprintf(stderr, "the library has another interface than harmonica.h\n");
    return 1;
  }

  hm_engine *engine = NULL;
  hm_model *model = NULL;
  hm_schedule *schedule = NULL;
  uint32_t *labels = NULL;
  float *values = NULL;
  unsigned told = 0;
  int result = 1;

  if (hm_engine_open(device, &engine) != HM_OK) {
    failed("device");
    goto done;
  }
  if (hm_engine_notice(engine) != NULL)
    fprintf(stderr, "%s\n", hm_engine_notice(engine));
  if (hm_model_load(engine, "bundled", 0, &model) != HM_OK) {
    failed("model");
    goto done;
  }

  hm_model_info info;
  hm_settings settings;
  hm_figures figures;
  if (hm_model_get_info(model, &info) != HM_OK ||
      hm_settings_init(model, &settings) != HM_OK ||
      hm_schedule_open(model, &settings, "learned", &schedule) != HM_OK ||
      hm_schedule_get_figures(schedule, &figures) != HM_OK) {
    failed("schedule");
    goto done;
  }
  printf("%s (%s): %u steps, %.1f %% reused, %.2f times fewer multiplications\n",
         hm_engine_device(engine), hm_engine_backend(engine), figures.steps,
         100.0 * figures.cur, figures.macs_ratio);

  const size_t length =
      count * info.channels * (size_t)info.height * info.width;
  labels = malloc(count * sizeof *labels);
  values = malloc(length * sizeof *values);
  if (labels == NULL || values == NULL) {
    fprintf(stderr, "no memory for %zu images\n", count);
    goto done;
  }
  for (size_t i = 0; i < count; i++)
    labels[i] = (uint32_t)(i % info.classes);

  if (hm_sample(model, &settings, schedule, labels, count, values, length, tell,
                &told) != HM_OK) {
    failed("\nsampling");
    goto done;
  }
  fprintf(stderr, "\n");
  if (hm_write_png(model, values, length, path) != HM_OK) {
    failed("picture");
    goto done;
  }
  printf("%s: %zu images after %u steps\n", path, count, told);
  result = 0;

done:
  free(values);
  free(labels);
  hm_schedule_free(schedule);
  hm_model_free(model);
  hm_engine_free(engine);
  return result;
}
