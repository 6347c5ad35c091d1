#define _POSIX_C_SOURCE 200112L
#include "runtime.h"

#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { CPU = 1, DL_TENSOR = 7, MOST_ARGUMENTS = 64 };

static int threads = 1;

void gp_threads(int count) {
#ifdef _OPENMP
  threads = count > 0 ? count : 1;
#else
  (void)count;
#endif
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
  DLTensor tensors[MOST_ARGUMENTS];
  TVMFFIAny args[MOST_ARGUMENTS], result;
  for (int32_t c = 0; c < model->call_count; ++c) {
    const gp_call *call = &model->calls[c];
    for (int32_t k = 0; k < call->count; ++k) {
      const gp_tensor *t = &model->tensors[call->args[k]];
      DLTensor made = {place(t, weights, inputs, outputs, arena), {CPU, 0}, t->ndim, t->dtype, (int64_t *)t->shape, 0, 0};
      tensors[k] = made;
      args[k].type_index = DL_TENSOR;
      args[k].padding = 0;
      args[k].v_int64 = 0;
      args[k].v_ptr = &tensors[k];
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

typedef struct { void *sync_handle; int32_t num_task; } TVMParallelGroupEnv;
typedef int (*FTVMParallelLambda)(int task, TVMParallelGroupEnv *env, void *data);

void *TVMBackendAllocWorkspace(int device, int id, uint64_t bytes, int code, int bits) {
  void *memory = NULL;
  (void)device, (void)id, (void)code, (void)bits;
  return posix_memalign(&memory, 64, bytes ? (size_t)bytes : 1) ? NULL : memory;
}

int TVMBackendFreeWorkspace(int device, int id, void *memory) {
  (void)device, (void)id;
  free(memory);
  return 0;
}

int TVMBackendParallelLaunch(FTVMParallelLambda lambda, void *data, int tasks) {
  int count = tasks > 0 ? tasks : threads, failed = 0;
  TVMParallelGroupEnv env = {NULL, count};
  if (count == 1) return lambda(0, &env, data);
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
