/* What a compiled network needs to run: tables that say which kernel reads and writes what, and one
   function that walks them. No library but libc and libm; threads where compiled with OpenMP. */
#ifndef GP_RUNTIME_H
#define GP_RUNTIME_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { GP_WEIGHT, GP_INPUT, GP_OUTPUT, GP_ARENA };

/* The most tensors that one kernel takes: gp_run keeps them on its stack. Buffers are numbered in uint16_t. */
enum { GP_MOST_ARGUMENTS = 256 };

/* The layout of a tensor as kernels get it: a DLTensor (DLPack 1.0, dmlc/dlpack). */
typedef struct { uint8_t code, bits; uint16_t lanes; } DLDataType; /* code 0 int, 1 uint, 2 float, 6 bool */
typedef struct { int32_t device_type, device_id; } DLDevice;
typedef struct {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} DLTensor;

/* An argument of a kernel: a TVMFFIAny (apache/tvm-ffi, c_api.h) that holds a DLTensor pointer. */
typedef struct {
  int32_t type_index;
  uint32_t padding;
  union { int64_t v_int64; double v_float64; void *v_ptr; } v;
} TVMFFIAny;

typedef struct {
  int32_t place;        /* GP_WEIGHT ... */
  size_t at;            /* GP_WEIGHT, GP_ARENA: byte offset; GP_INPUT, GP_OUTPUT: which one */
  size_t bytes;
  DLDataType dtype;
  int32_t ndim;
  const int64_t *shape;
} gp_tensor;

typedef int32_t (*gp_kernel)(void *self, void *args, int32_t count, void *result);

typedef struct {
  gp_kernel kernel; /* NULL: copy the first argument to the second */
  int32_t count;
  const uint16_t *args; /* indices into tensors */
} gp_call;

typedef struct {
  const gp_tensor *tensors;
  const gp_call *calls;
  int32_t call_count;
  const gp_tensor *inputs, *outputs;
  int32_t input_count, output_count;
  size_t weights_bytes, arena_bytes;
  uint32_t weight_sum; /* gp_checksum of weights.bin */
} gp_model;

/* Run once. weights: the weights_bytes of weights.bin; arena: arena_bytes of scratch.
   inputs[k], outputs[k]: dense row-major arrays of the model's k-th input and output. All of these are aligned to 64.
   Kernels ask malloc for workspace_bytes of model.json beside it at most, on each thread; the stack holds
   GP_MOST_ARGUMENTS tensors.
   0, -1 when memory ran out, or -2 where a call has more than GP_MOST_ARGUMENTS tensors. Reentrant: calls with different arenas may run side by side. */
int gp_run(const gp_model *model, const void *weights, const void *const *inputs, void *const *outputs, void *arena);

/* The CRC-32 (IEEE 802.3) of what was loaded, to compare with weight_sum. */
uint32_t gp_checksum(const void *data, size_t bytes);

/* Threads that a run uses, 1 at first; without OpenMP, and without a parallel-for of one's own, it stays 1. */
void gp_threads(int count);

/* A parallel-for of one's own (a thread pool, an RTOS), for so many threads: it calls task(k, data) for every k below
   count, in any order and side by side, returns when all have returned, 0 where all gave 0. pool is handed on. NULL: none.
   Not while anything runs. */
typedef int (*gp_task)(int k, void *data);
typedef int (*gp_parallel_for)(int count, gp_task task, void *data, void *pool);
void gp_parallel(gp_parallel_for launch, void *pool, int threads);

#ifdef __cplusplus
}
#endif
#endif
