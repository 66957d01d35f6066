/* harmonica: Diffusion Transformers with learned feature caching, on any vendor's GPU.
 *
 * Generated from src/capi; a test keeps the two together.
 *
 * A model is loaded onto an engine; settings and a schedule say how to sample; hm_sample does it on the calling thread and
 * tells a callback of every step. examples/c/main.c is a whole program.
 *
 * Errors: every function that can fail returns an hm_status; the text of the last failure on a thread is hm_last_error().
 * A fault inside the library is HM_INTERNAL: nothing is thrown or aborted. After a failure nothing was written through the
 * pointers that were handed in, but by hm_sample.
 *
 * Threads: any function may be called on any thread, and a handle may be used by several threads at once, and freed while
 * they use it: what it stands for goes with the last call. Callbacks run on the thread that called hm_sample. Polling from
 * few threads is cheaper than from many: a GPU keeps buffers for each. The child of a fork() must not call the library.
 *
 * Ownership: what comes out of a ** argument is freed by the _free function of its type, in any order: a model outlives its
 * engine, a schedule its model. Strings belong to the handle that told them and go with it; all text is UTF-8.
 *
 * Misuse: handles are numbers, not addresses. One that was freed or is of another type is refused as an invalid argument, and
 * freed a second time it changes nothing. So is null where it is not allowed, and a pointer that is not aligned. What
 * cannot be found out, and is undefined: other pointers that do not lead to what a function expects, and lengths beyond
 * what lies there.
 */
#ifndef HARMONICA_H
#define HARMONICA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What HM_ABI_VERSION of a header must be to fit this library; rises when a signature or struct changes. */
#define HM_ABI_VERSION 1

/* hm_settings.solver: DDIM with hm_settings.eta. */
#define HM_SOLVER_DDIM 0

/* hm_settings.solver: ancestral DDPM. */
#define HM_SOLVER_DDPM 1

/* hm_settings.solver: DPM-Solver++ (2M). */
#define HM_SOLVER_DPM2M 2

/* hm_settings.solver: DPM-Solver++ (3M). */
#define HM_SOLVER_DPM3M 3

/* hm_settings.solver: DPM-Solver++ (2M) SDE, with fresh noise at every step. */
#define HM_SOLVER_DPM2M_SDE 4

/* hm_settings.solver: SA-Solver, with fresh noise in the middle of a run. */
#define HM_SOLVER_SA 5

/* hm_settings.solver: Euler's method. */
#define HM_SOLVER_EULER 6

/* hm_settings.guidance_channels: the first three, as the public DiT release. */
#define HM_GUIDE_THREE 0

/* hm_settings.guidance_channels: all. */
#define HM_GUIDE_ALL 1

/* How a call ended. */
typedef int32_t hm_status;
enum {
  /* Done. */
  HM_OK = 0,
  /* The callback asked for it. */
  HM_CANCELLED = 1,
  /* A null pointer, a number out of range, text that is not UTF-8. */
  HM_INVALID_ARGUMENT = 2,
  /* No such device, or it failed. */
  HM_DEVICE = 3,
  /* The model could not be loaded. */
  HM_MODEL = 4,
  /* The schedule could not be read, or does not fit. */
  HM_SCHEDULE = 5,
  /* Sampling failed. */
  HM_SAMPLING = 6,
  /* A file could not be written. */
  HM_IO = 7,
  /* A fault of the library. */
  HM_INTERNAL = 8,
};

/* A device to run models on. */
typedef struct hm_engine hm_engine;

/* A loaded model. */
typedef struct hm_model hm_model;

/* A schedule that fits a model and a number of steps. */
typedef struct hm_schedule hm_schedule;

/* What a model draws. */
typedef struct hm_model_info {
  /* Channels of an image: 3 are RGB in [-1, 1], 4 latents. */
  uint32_t channels;
  uint32_t height;
  uint32_t width;
  uint32_t classes;
  uint32_t blocks;
  /* Columns of a schedule: the branches of every block, in turn; of a DiT attention and MLP. */
  uint32_t branches;
  /* Weights of the network. */
  uint64_t parameters;
} hm_model_info;

/* What a schedule costs and saves, for one image and one half of the guidance batch. One that decides while a run goes on
 * (fb, db, di, tea, easy) counts as computing everything. */
typedef struct hm_figures {
  uint32_t steps;
  uint32_t branches;
  /* Share of branch evaluations that are reused. */
  double cur;
  /* Multiply-accumulates without reuse over those with it. */
  double macs_ratio;
  uint64_t macs;
  uint64_t macs_full;
  /* Bytes of cached features at most. */
  uint64_t cache_bytes;
} hm_figures;

/* How to sample. Fill with hm_settings_init, then change what is to be changed. */
typedef struct hm_settings {
  /* Denoising steps, 1 to 1000. */
  uint32_t steps;
  /* Images at a time; 0: what fits in 1 GiB, at most 16. */
  uint32_t batch;
  uint32_t solver;
  uint32_t guidance_channels;
  /* Whether the predicted clean image is clipped to [-1, 1] at every step. */
  uint32_t clip_x0;
  /* DDIM's eta: 0 deterministic, 1 as noisy as DDPM. */
  double eta;
  /* Classifier-free guidance scale; 1 is none. */
  double guidance;
  /* Seed of the noise. */
  uint64_t seed;
} hm_settings;

/* One denoising step that was issued; a GPU may still be working on it. */
typedef struct hm_progress {
  /* The first image of the batch that is being denoised. */
  uint64_t first_image;
  /* Images of that batch. */
  uint64_t images;
  /* Images of the whole call. */
  uint64_t count;
  /* The step, from 0. */
  uint32_t step;
  uint32_t steps;
} hm_progress;

/* Told of every step; anything but 0 cancels the call. May call any function, and free any handle. Must return: longjmp and
 * exceptions out of it are undefined. */
typedef int32_t (*hm_progress_fn)(void *user, const hm_progress *progress);

/* HM_ABI_VERSION of the library. */
uint32_t hm_abi_version(void);

/* The library's version, such as "0.1.0". */
const char *hm_version(void);

/* The text of the last failure on this thread, empty if there was none. Valid until the next failure on this thread, and no
 * longer than the thread. */
const char *hm_last_error(void);

/* Opens a device: "auto", "cpu", "vulkan", "metal", "dx12", "gl", or an index as harmonica devices lists them.
 * Expects:
 * device is a string; engine may be written to. */
hm_status hm_engine_open(const char *device, hm_engine **engine);

/* The adapter's name. Null for a null engine. */
const char *hm_engine_device(const hm_engine *engine);

/* "vulkan", "metal", "dx12", "gl" or "cpu". Null for a null engine. */
const char *hm_engine_backend(const hm_engine *engine);

/* A line for the user where "auto" found no GPU, otherwise null. */
const char *hm_engine_notice(const hm_engine *engine);

/* Frees an engine; null is nothing. Its models go on, and the device is closed with the last of them. */
void hm_engine_free(hm_engine *engine);

/* Loads a model onto an engine's device: a .pt or .safetensors file, a diffusers folder, "bundled", or
 * "random:DiT-S/2@256". heads is the number of attention heads where a bare .pt cannot tell, otherwise 0.
 * Expects:
 * spec is a string, model may be written to. */
hm_status hm_model_load(const hm_engine *engine, const char *spec, uint32_t heads, hm_model **model);

/* What the model draws.
 * Expects:
 * info may be written to. */
hm_status hm_model_get_info(const hm_model *model, hm_model_info *info);

/* The name of a class; null where it has none. */
const char *hm_model_class_name(const hm_model *model, uint32_t label);

/* A class by its name, in any case, or its number as text.
 * Expects:
 * name is a string, label may be written to. */
hm_status hm_model_class_by_name(const hm_model *model, const char *name, uint32_t *label);

/* Unloads a model; null is nothing. */
void hm_model_free(hm_model *model);

/* A schedule for a model and settings: a .schedule.json file or a folder of them, a policy as harmonica sample --schedule takes
 * it, such as none or fora:2, or learned[:SPEED]: of those that come with the bundled model the one of that MACs ratio.
 * Policies that need a calibration look for it in the folder harmonica-calibrations where the program runs.
 * Expects:
 * settings points to settings, spec is a string, schedule may be written to. */
hm_status hm_schedule_open(const hm_model *model, const hm_settings *settings, const char *spec, hm_schedule **schedule);

/* A schedule from a table: steps rows of branches bytes, non-zero for compute. The first row must compute everything.
 * Expects:
 * compute points to length bytes, schedule may be written to. */
hm_status hm_schedule_from_table(const hm_model *model, const uint8_t *compute, size_t length, uint32_t steps, hm_schedule **schedule);

/* What the schedule costs and saves.
 * Expects:
 * figures may be written to. */
hm_status hm_schedule_get_figures(const hm_schedule *schedule, hm_figures *figures);

/* Frees a schedule; null is nothing. */
void hm_schedule_free(hm_schedule *schedule);

/* The usual settings of a model: 20 DDIM steps, guidance as the model says or 1.5, seed 0.
 * Expects:
 * settings may be written to. */
hm_status hm_settings_init(const hm_model *model, hm_settings *settings);

/* Samples count images, one for each label, on the calling thread.
 * values takes them as [count, channels, height, width]; length is exactly that many floats. Label
 * classes is the null label. Without a schedule everything is computed. progress may be null. After
 * a failure or cancellation values holds the batches that were finished before it.
 * Expects:
 * settings points to settings, labels to count labels, values to length floats that only this call touches while
 * it runs; progress may be called with user. */
hm_status hm_sample(const hm_model *model, const hm_settings *settings, const hm_schedule *schedule, const uint32_t *labels, size_t count, float *values, size_t length, hm_progress_fn progress, void *user);

/* One image [channels, height, width] as height · width RGB pixels of 3 bytes. Latents become a rough preview.
 * Expects:
 * image points to length floats, rgb to rgb_length bytes that only this call touches. */
hm_status hm_rgb8(const hm_model *model, const float *image, size_t length, uint8_t *rgb, size_t rgb_length);

/* Writes images [n, channels, height, width] as one PNG, side by side and below each other.
 * Expects:
 * values points to length floats, path is a string. */
hm_status hm_write_png(const hm_model *model, const float *values, size_t length, const char *path);

#ifdef __cplusplus
}
#endif

#endif
