/* A CUDA driver without a device: it checks what it is asked to launch, notes it on standard error, and runs nothing.

   What the functions refuse follows the CUDA driver API's pages on cuLaunchKernelEx and cuTensorMapEncodeTiled, with the
   limits of compute capability 9.0. */

#include <cuda.h>
#include <stdint.h>
#include <stdio.h>

#define SHARED_BYTES (227 << 10) /* of a block */
#define THREADS 1024

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_INVALID_VALUE ? "the stub driver refuses this" : "error of the stub driver";
  return CUDA_SUCCESS;
}

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int *version) {
  *version = 12080;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = SHARED_BYTES; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 228 << 10; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
  default: *value = 1;
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)8;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { return cuCtxGetCurrent(context); }

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = (CUmodule)16;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)24;
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? THREADS : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
  *clusters = 1;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)data = pointer;
  return CUDA_SUCCESS;
}

static CUresult said(const char *what, const char *problem) {
  fprintf(stderr, "stub driver: %s: %s\n", what, problem ? problem : "ok");
  return problem ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
  const char *problem = NULL;
  unsigned threads = config->blockDimX * config->blockDimY * config->blockDimZ;
  if (!config->gridDimX || !config->gridDimY || !config->gridDimZ) problem = "an empty grid";
  if (config->gridDimX > INT32_MAX || config->gridDimY > UINT16_MAX || config->gridDimZ > UINT16_MAX)
    problem = "a grid too large";
  if (!threads || threads > THREADS) problem = "too many threads";
  if (config->sharedMemBytes > SHARED_BYTES) problem = "too much shared memory";
  return said("launch", problem);
}

static unsigned bytes_of(CUtensorMapDataType type) {
  switch (type) {
  case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
  case CU_TENSOR_MAP_DATA_TYPE_UINT16:
  case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
  case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
  case CU_TENSOR_MAP_DATA_TYPE_UINT64:
  case CU_TENSOR_MAP_DATA_TYPE_INT64:
  case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
  default: return 4;
  }
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *base,
                                const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  const char *problem = NULL;
  unsigned inner = box[0] * bytes_of(type);
  if (rank < 1 || rank > 5) return said("descriptor", "a rank that is not 1 to 5");
  if ((uintptr_t)base % 16) problem = "a base that is no multiple of 16 bytes";
  if (inner % 16) problem = "rows of a box that are no multiple of 16 bytes";
  if (swizzle == CU_TENSOR_MAP_SWIZZLE_32B && inner > 32) problem = "rows of a box wider than the swizzle";
  if (swizzle == CU_TENSOR_MAP_SWIZZLE_64B && inner > 64) problem = "rows of a box wider than the swizzle";
  if (swizzle == CU_TENSOR_MAP_SWIZZLE_128B && inner > 128) problem = "rows of a box wider than the swizzle";
  for (unsigned i = 0; i < rank; i++) {
    if (!sizes[i] || sizes[i] > 1ull << 32) problem = "a size that is not 1 to 2^32";
    if (!box[i] || box[i] > 256) problem = "a box that is not 1 to 256 wide";
    if (i + 1 < rank && (!strides[i] || strides[i] % 16 || strides[i] >= 1ull << 40))
      problem = "a stride that is no multiple of 16 bytes";
  }
  return said("descriptor", problem);
}
