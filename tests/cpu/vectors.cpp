// A function of csrc/cpu/vector.h, named by the first argument, on fp32 numbers from standard input; fp32 to its output.
#include "cpu/vector.h"

#include <cstdio>

using namespace LEVEL;

int main(int, char** words) {
  const char* name = words[1];
  const auto is = [name](const char* other) { return !std::strcmp(name, other); };
  float v[LANES];
  while (std::fread(v, sizeof v, 1, stdin)) {
    f32 x = load(v);
    bf16 rounded[LANES];
    if (is("bf16")) {
      store(rounded, x), x = load(rounded);
    } else if (is("sum") || is("most")) {
      x = all(is("sum") ? sum(x) : most(x));
    } else {
      x = is("exp2")      ? exp2(x)
          : is("exp")     ? exp(x)
          : is("silu")    ? silu(x)
          : is("gelu")    ? gelu(x)
          : is("nearest") ? nearest(x)
                          : sine_squared(x);
    }
    store(v, x);
    std::fwrite(v, sizeof v, 1, stdout);
  }
}
