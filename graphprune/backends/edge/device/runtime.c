#include "runtime.h"

#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { CPU = 1, DL_TENSOR = 7 };

static int threads = 1;
static gp_parallel_for launch = NULL;
static void *pool = NULL;

void gp_threads(int count) {
#ifndef _OPENMP
  if (!launch) count = 1;
#endif
  threads = count > 0 ? count : 1;
}

void gp_parallel(gp_parallel_for own, void *handed_on, int count) {
  launch = own, pool = handed_on;
  gp_threads(count);
}

uint32_t gp_checksum(const void *data, size_t bytes) {
  const unsigned char *at = data;
  uint32_t table[256], sum = 0xffffffffu;
  for (uint32_t k = 0; k < 256; ++k) {
    table[k] = k;
    for (int bit = 0; bit < 8; ++bit) table[k] = (table[k] >> 1) ^ (table[k] & 1 ? 0xedb88320u : 0);
  }
  for (size_t k = 0; k < bytes; ++k) sum = (sum >> 8) ^ table[(sum ^ at[k]) & 255];
  return ~sum;
}

static void *place(const gp_tensor *t, const void *weights, const void *const *inputs, void *const *outputs,
                   void *arena) {
  switch (t->place) {
    case GP_WEIGHT: return (char *)weights + t->at;
    case GP_INPUT: return (void *)inputs[t->at];
    case GP_OUTPUT: return outputs[t->at];
    default: return (char *)arena + t->at;
  }
}

int gp_run(const gp_model *model, const void *weights, const void *const *inputs, void *const *outputs, void *arena) {
  DLTensor tensors[GP_MOST_ARGUMENTS];
  TVMFFIAny args[GP_MOST_ARGUMENTS], result;
  for (int32_t c = 0; c < model->call_count; ++c) {
    const gp_call *call = &model->calls[c];
    if (call->count < 0 || call->count > GP_MOST_ARGUMENTS) return -2;
    for (int32_t k = 0; k < call->count; ++k) {
      const gp_tensor *t = &model->tensors[call->args[k]];
      memset(&tensors[k], 0, sizeof tensors[k]);
      tensors[k].data = place(t, weights, inputs, outputs, arena);
      tensors[k].device.device_type = CPU;
      tensors[k].ndim = t->ndim;
      tensors[k].dtype = t->dtype;
      tensors[k].shape = (int64_t *)t->shape;
      args[k].type_index = DL_TENSOR;
      args[k].padding = 0;
      args[k].v.v_int64 = 0;
      args[k].v.v_ptr = &tensors[k];
    }
    memset(&result, 0, sizeof result);
    if (!call->kernel)
      memcpy(tensors[1].data, tensors[0].data, model->tensors[call->args[1]].bytes);
    else if (call->kernel(NULL, args, call->count, &result))
      return -1;
  }
  return 0;
}

/* ---- what kernels call back (tvm/runtime/c_backend_api.h) ---- */

void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits);
int TVMBackendFreeWorkspace(int device, int id, void *memory);

typedef struct { void *sync_handle; int32_t num_task; } TVMParallelGroupEnv;
typedef int (*FTVMParallelLambda)(int task, TVMParallelGroupEnv *env, void *data);

void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  if (bytes > SIZE_MAX - sizeof(void *) - 63) return NULL;
  char *found = malloc((size_t)bytes + sizeof(void *) + 63);
  if (!found) return NULL;
  void **memory = (void **)(((uintptr_t)found + sizeof(void *) + 63) & ~(uintptr_t)63);
  memory[-1] = found; /* what free takes */
  return memory;
}

int TVMBackendFreeWorkspace(int device, int id, void *memory) {
  (void)device, (void)id;
  if (memory) free(((void **)memory)[-1]);
  return 0;
}

typedef struct { FTVMParallelLambda lambda; TVMParallelGroupEnv env; void *data; } parallel;

static int one_task(int task, void *data) {
  parallel *all = data;
  return all->lambda(task, &all->env, all->data);
}

int TVMBackendParallelLaunch(FTVMParallelLambda lambda, void *data, int tasks) {
  int count = tasks > 0 ? tasks : threads, failed = 0;
  TVMParallelGroupEnv env = {NULL, count};
  if (count == 1) return lambda(0, &env, data);
  if (launch) {
    parallel all = {lambda, env, data};
    return launch(count, one_task, &all, pool);
  }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(| : failed)
#endif
  for (int task = 0; task < count; ++task) failed |= lambda(task, &env, data);
  return failed;
}

/* Machine code reaches them through these, which it declares weak. */
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = TVMBackendAllocWorkspace;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = TVMBackendFreeWorkspace;
int (*__TVMBackendParallelLaunch)(FTVMParallelLambda, void *, int) = TVMBackendParallelLaunch;
