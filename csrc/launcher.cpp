// acefast._cuda: the kernels of csrc/, compiled ahead of time, and the few driver calls that launch one.
//
// Knows neither torch nor the CUDA runtime. The driver is opened at the first call, never at import, so that the module
// imports on a machine without one. Addresses, handles and streams travel as integers.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>

namespace py = pybind11;
using Handle = uintptr_t;

struct Image {
  const char *name, *fingerprint, *begin, *end;  // a source, what identifies its text, and its fatbin
};
extern const Image images[];  // these come from the file that setup.py writes
extern const int image_count, cuda_version, arch_count, archs[];

namespace {

constexpr int MAX_DYNAMIC_SHARED = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int MOST_ARGUMENTS = 64;

struct Driver {
  int (*init)(unsigned);
  int (*version)(int*);
  int (*device)(int*, int);
  int (*retain)(void**, int);
  int (*current)(void**);
  int (*make_current)(void*);
  int (*load)(void**, const void*);
  int (*function)(void**, void*, const char*);
  int (*attribute)(void*, int, int);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
  int (*error_name)(int, const char**);
  int (*error_text)(int, const char**);
};

void* library() {
  static void* const opened = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  return opened;
}

template <typename F>
void find(F& function, const char* name) {
  function = reinterpret_cast<F>(dlsym(library(), name));
  if (!function) throw std::runtime_error(std::string("the CUDA driver has no ") + name);
}

void check(const Driver& d, int result, const char* call) {
  if (!result) return;
  const char *name = "unknown error", *text = "";
  d.error_name(result, &name), d.error_text(result, &text);
  throw std::runtime_error(std::string(name) + ", " + text + " (" + call + ")");
}

const Driver& driver() {
  static const Driver found = [] {
    if (!library()) throw std::runtime_error("there is no CUDA driver: libcuda.so.1 is not found");
    Driver d;
    find(d.init, "cuInit"), find(d.version, "cuDriverGetVersion"), find(d.device, "cuDeviceGet");
    find(d.retain, "cuDevicePrimaryCtxRetain"), find(d.current, "cuCtxGetCurrent");
    find(d.make_current, "cuCtxSetCurrent"), find(d.load, "cuModuleLoadData");
    find(d.function, "cuModuleGetFunction"), find(d.attribute, "cuFuncSetAttribute");
    find(d.launch, "cuLaunchKernel"), find(d.error_name, "cuGetErrorName"), find(d.error_text, "cuGetErrorString");
    check(d, d.init(0), "cuInit");
    return d;
  }();
  return found;
}

// Makes the context that torch has on `device` the thread's own: a thread that has not yet used a GPU has none.
void enter(int device) {
  static std::map<int, void*> contexts;  // under the GIL
  const Driver& d = driver();
  void*& context = contexts[device];
  if (!context) {
    int ordinal;
    check(d, d.device(&ordinal, device), "cuDeviceGet");
    check(d, d.retain(&context, ordinal), "cuDevicePrimaryCtxRetain");
  }
  void* current = nullptr;
  check(d, d.current(&current), "cuCtxGetCurrent");
  if (current != context) check(d, d.make_current(context), "cuCtxSetCurrent");
}

int driver_version() {
  int (*version)(int*) = nullptr;
  int found = 0;
  if (library()) find(version, "cuDriverGetVersion"), version(&found);
  return found;
}

py::bytes image(const std::string& name) {
  for (int i = 0; i < image_count; i++)
    if (name == images[i].name) return py::bytes(images[i].begin, images[i].end - images[i].begin);
  throw py::key_error(name);
}

Handle load(int device, const std::string& image) {
  enter(device);
  void* module;
  check(driver(), driver().load(&module, image.data()), "cuModuleLoadData");
  return Handle(module);
}

Handle function(Handle module, const std::string& entry, int shared) {
  const Driver& d = driver();
  void* found;
  check(d, d.function(&found, reinterpret_cast<void*>(module), entry.c_str()), "cuModuleGetFunction");
  check(d, d.attribute(found, MAX_DYNAMIC_SHARED, shared), "cuFuncSetAttribute");
  return Handle(found);
}

void launch(int device, Handle function, std::tuple<unsigned, unsigned, unsigned> grid, unsigned threads,
            unsigned shared, Handle stream, const std::string& types, const py::sequence& values) {
  if (types.size() != values.size() || types.size() > MOST_ARGUMENTS) throw py::value_error("arguments and types");
  uint64_t packed[MOST_ARGUMENTS] = {};
  void* addresses[MOST_ARGUMENTS];
  for (size_t i = 0; i < types.size(); i++) {
    const py::object value = values[i];
    addresses[i] = &packed[i];
    if (types[i] == 'p') {
      packed[i] = value.cast<uint64_t>();
    } else if (types[i] == 'l') {
      packed[i] = uint64_t(value.cast<int64_t>());
    } else if (types[i] == 'i') {
      const int32_t number = value.cast<int32_t>();
      memcpy(addresses[i], &number, 4);
    } else if (types[i] == 'f') {
      const float number = value.cast<float>();
      memcpy(addresses[i], &number, 4);
    } else {
      throw py::value_error("a type is one of p, i, l, f");
    }
  }
  enter(device);
  const Driver& d = driver();
  const auto [x, y, z] = grid;
  int result;
  {
    py::gil_scoped_release others;  // it waits while the stream's queue is full
    result = d.launch(reinterpret_cast<void*>(function), x, y, z, threads, 1, 1, shared,
                      reinterpret_cast<void*>(stream), addresses, nullptr);
  }
  check(d, result, "cuLaunchKernel");
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  py::dict sources;
  for (int i = 0; i < image_count; i++) sources[images[i].name] = images[i].fingerprint;
  py::tuple built_for(arch_count);
  for (int i = 0; i < arch_count; i++) built_for[i] = archs[i];
  m.attr("sources") = sources;
  m.attr("archs") = built_for;
  m.attr("cuda_version") = cuda_version;
  m.def("driver_version", &driver_version, "The CUDA version of the driver, 13000 for 13.0; 0 without a driver.");
  m.def("image", &image, "The fatbin of a source.");
  m.def("load", &load, "Load a fatbin or cubin on a device; returns the module.");
  m.def("function", &function, "An entry point of a module, allowed that much dynamic shared memory.");
  m.def("launch", &launch, "Launch a function; values as types has them: p pointer, i int32, l int64, f fp32.");
}
