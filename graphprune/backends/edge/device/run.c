/* run FOLDER [-n REPEATS] [-t THREADS] INPUT.bin... : read the inputs (raw, row-major), write output0.bin, ...
   to FOLDER, print the median time of REPEATS runs. weights.bin is read from beside the program. */
#define _POSIX_C_SOURCE 200112L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "model.h"

static void *memory(size_t bytes) {
  void *found = NULL;
  if (posix_memalign(&found, 64, bytes ? bytes : 64)) {
    fprintf(stderr, "out of memory: %zu bytes\n", bytes);
    exit(1);
  }
  return found;
}

static void *read_file(const char *path, size_t bytes) {
  struct stat found;
  FILE *file = fopen(path, "rb");
  void *data = memory(bytes);
  if (file && (fstat(fileno(file), &found) || !S_ISREG(found.st_mode))) {
    fprintf(stderr, "%s: not a regular file\n", path);
    exit(1);
  }
  if (!file || fread(data, 1, bytes, file) != bytes || fgetc(file) != EOF) {
    fprintf(stderr, "%s: cannot be read, or is not %zu bytes long\n", path, bytes);
    exit(1);
  }
  fclose(file);
  return data;
}

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Where this program is, with a slash at the end; empty where nothing tells. Started through the PATH its name has
   no slash. */
static void own_folder(char *path, size_t size, const char *name) {
  ssize_t length = readlink("/proc/self/exe", path, size - 1);
  path[length > 0 ? length : 0] = 0;
  if (length <= 0) snprintf(path, size, "%s", name);
  char *slash = strrchr(path, '/');
  path[slash ? slash - path + 1 : 0] = 0;
}

static void run(const void *weights, const void *const *inputs, void *const *outputs, void *arena) {
  int failed = gp_run(&model, weights, inputs, outputs, arena);
  if (failed) {
    fprintf(stderr, failed == -1 ? "out of memory\n" : "a kernel with more tensors than the runtime takes\n");
    exit(1);
  }
}

int main(int argc, char **argv) {
  int repeats = 0, given = 0;
  char folder[4096], path[4352];
  const void **inputs = memory(sizeof *inputs * (size_t)model.input_count);
  void **outputs = memory(sizeof *outputs * (size_t)model.output_count);
  if (argc < 2) {
    fprintf(stderr, "usage: %s FOLDER [-n REPEATS] [-t THREADS] INPUT.bin...\n", argv[0]);
    return 2;
  }
  for (int k = 2; k < argc; ++k) {
    if (!strcmp(argv[k], "-n") && k + 1 < argc)
      repeats = atoi(argv[++k]);
    else if (!strcmp(argv[k], "-t") && k + 1 < argc)
      gp_threads(atoi(argv[++k]));
    else if (given < model.input_count)
      inputs[given] = read_file(argv[k], model.inputs[given].bytes), ++given;
    else
      ++given;
  }
  if (given != model.input_count) {
    fprintf(stderr, "%d inputs given, the model takes %d\n", given, (int)model.input_count);
    return 2;
  }
  own_folder(folder, sizeof folder, argv[0]);
  snprintf(path, sizeof path, "%sweights.bin", folder);
  void *weights = read_file(path, model.weights_bytes);
  if (gp_checksum(weights, model.weights_bytes) != model.weight_sum) {
    fprintf(stderr, "%s: damaged, or of another model\n", path);
    return 1;
  }
  void *arena = memory(model.arena_bytes);
  for (int32_t k = 0; k < model.output_count; ++k) outputs[k] = memory(model.outputs[k].bytes);
  run(weights, inputs, outputs, arena);
  for (int32_t k = 0; k < model.output_count; ++k) {
    snprintf(path, sizeof path, "%s/output%d.bin", argv[1], (int)k);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(outputs[k], 1, model.outputs[k].bytes, file) != model.outputs[k].bytes || fclose(file)) {
      fprintf(stderr, "%s: cannot be written\n", path);
      return 1;
    }
  }
  if (repeats > 0) {
    double *times = memory(sizeof *times * (size_t)repeats);
    for (int k = 0; k < repeats; ++k) {
      double start = now_ms();
      run(weights, inputs, outputs, arena);
      times[k] = now_ms() - start;
    }
    qsort(times, (size_t)repeats, sizeof *times, ascending);
    printf("median %.3f ms, quartiles %.3f and %.3f, %d runs\n", times[repeats / 2], times[repeats / 4],
           times[repeats * 3 / 4], repeats);
    free(times);
  }
  for (int32_t k = 0; k < model.input_count; ++k) free((void *)inputs[k]);
  for (int32_t k = 0; k < model.output_count; ++k) free(outputs[k]);
  free(inputs), free(outputs), free(weights), free(arena);
  return 0;
}
