// A CUDA driver for tests: no GPU, one context a device, and a log of what is called, in the file $LIBCUDA_LOG names.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static thread_local void* context = nullptr;

template <typename... Values>
static int log_call(const char* format, Values... values) {
  if (FILE* log = fopen(getenv("LIBCUDA_LOG"), "a")) fprintf(log, format, values...), fclose(log);
  return 0;
}

extern "C" {
int cuInit(unsigned) { return log_call("init\n"); }
int cuDriverGetVersion(int* version) {
  *version = atoi(getenv("LIBCUDA_VERSION"));
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** found, int device) {
  *found = (void*)(intptr_t)(100 + device);
  return 0;
}
int cuCtxGetCurrent(void** found) {
  *found = context;
  return 0;
}
int cuCtxSetCurrent(void* given) {
  context = given;
  return log_call("context %d\n", int((intptr_t)given));
}
int cuModuleLoadData(void** module, const void* image) {
  *module = (void*)7;
  if (!memcmp(image, "bad", 3)) return 200;
  return log_call("load %02x%02x in %d\n", ((unsigned char*)image)[0], ((unsigned char*)image)[1], int((intptr_t)context));
}
int cuModuleGetFunction(void** function, void*, const char* name) {
  *function = (void*)9;
  return log_call("function %s\n", name);
}
int cuFuncSetAttribute(void*, int attribute, int value) { return log_call("attribute %d %d\n", attribute, value); }
// The test's kernel takes (pointer, int32, int64, fp32).
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned b, unsigned c,
                   unsigned shared, void* stream, void** values, void**) {
  if (x == 666) return 719;
  return log_call("launch %d in %d: %u %u %u, %u %u %u, %u, stream %d, %llx %d %lld %g\n", int((intptr_t)function),
                  int((intptr_t)context), x, y, z, threads, b, c, shared, int((intptr_t)stream),
                  *(unsigned long long*)values[0], *(int*)values[1], *(long long*)values[2], *(float*)values[3]);
}
int cuGetErrorName(int code, const char** text) {
  *text = code == 200 ? "CUDA_ERROR_INVALID_IMAGE" : "CUDA_ERROR_LAUNCH_FAILED";
  return 0;
}
int cuGetErrorString(int, const char** text) {
  *text = "something is wrong";
  return 0;
}
}
