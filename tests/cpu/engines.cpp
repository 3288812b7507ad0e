// One engine of csrc/cpu, ENGINE of bf16 or ENGINE8 of 8 bits from SOURCE, on many sizes. Each array ends where its memory
// does, what lies between rows is not a number, and integers have to come out exactly; the sanitizers see the rest.
#include SOURCE

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>
#ifdef __AMX_TILE__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

std::mt19937 random_bits(1);

[[maybe_unused]] float normal() { return std::normal_distribution<float>()(random_bits); }
int whole(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }

[[maybe_unused]] bf16 rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return {uint16_t((bits + 0x8000) >> 16)};
}

[[maybe_unused]] double exact(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

template <typename... Sizes>
void fail(const char* what, const char* format, Sizes... sizes) {
  std::printf("%s at ", what), std::printf(format, sizes...), std::printf("\n");
  std::exit(1);
}

#ifdef ENGINE
const bf16 NOTHING = {0x7fc0};  // NaN

// Rows of length K, `stride` from one to the next.
std::vector<bf16> rows_of(long count, long K, long stride, bool integers) {
  std::vector<bf16> v((count - 1) * stride + K, NOTHING);
  for (long r = 0; r < count; r++)
    for (long k = 0; k < K; k++) v[r * stride + k] = rounded(integers ? float(whole(-8, 8)) : normal());
  return v;
}

// c = sum over t and k of a[(r * stride + t * tap) + k] * w_t[j][k]; `transposed`: w_t[k][j], of which K - missing are.
void check(int rows, int K, int taps, int columns, int missing, bool transposed, bool integers) {
  const Engine& e = ENGINE;
  const long stride = K + 16, tap = 2 * stride, valid = K - missing;  // two rows from tap to tap, as a dilation of 2
  const int packed = (K + K_STEP - 1) / K_STEP * K_STEP;
  const std::vector<bf16> a = rows_of(rows + 2 * (taps - 1), K, stride, integers);
  std::vector<std::vector<bf16>> w;
  std::vector<char> b(taps * e.packed(packed), 1);
  const long apart = transposed ? columns + 3 : packed + 5;
  for (int t = 0; t < taps; t++) {
    w.push_back(transposed ? rows_of(valid, columns, apart, integers) : rows_of(columns, packed, apart, integers));
    if (transposed)
      e.pack_columns(w[t].data(), apart, columns, int(valid), packed, b.data() + t * e.packed(packed));
    else
      e.pack_rows(w[t].data(), apart, columns, packed, b.data() + t * e.packed(packed));
  }
  std::vector<float> c(rows * COLUMNS, std::numeric_limits<float>::quiet_NaN());
  e.tile(a.data(), stride, tap, taps, K, b.data(), c.data(), rows);
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < COLUMNS; j++) {
      double sum = 0, sizes = 0;
      for (int t = 0; t < taps && j < columns; t++)
        for (int k = 0; k < (transposed ? valid : K); k++) {
          const double product =
              exact(a[r * stride + t * tap + k]) * exact(transposed ? w[t][k * apart + j] : w[t][j * apart + k]);
          sum += product, sizes += std::abs(product);
        }
      const double allowed = integers ? 0 : sizes * taps * K * 0x1p-24;  // fp32 sums in any order
      if (!(std::abs(c[r * COLUMNS + j] - sum) <= allowed))
        fail("wrong sum", "row %d column %d: %d rows, K %d, %d taps, %d columns, transposed %d: %g for %g", r, j, rows, K,
             taps, columns, transposed, c[r * COLUMNS + j], sum);
    }
}

void check_all() {
  const Engine& e = ENGINE;
  for (int rows = 1; rows <= e.rows; rows++) check(rows, 64, 1, 32, 0, false, true);
  for (int K : {32, 96, 544}) {
    check(e.rows, K, 7, 32, 0, false, true);
    check(e.rows - 1, K, 3, 32, 0, true, true);
    check(1, K, 2, 32, 0, false, false);
    check(e.rows, K, 1, 32, 0, true, false);
  }
  for (int columns : {1, 15, 16, 17, 31})
    for (bool transposed : {false, true}) check(e.rows, 32, 2, columns, 0, transposed, true);
  for (int missing : {1, 7, 31}) check(e.rows, 64, 1, 32, missing, true, true);
  for (int K = e.step; K < 100; K += e.step) check(e.rows, K, 1, 32, 0, false, true);
}
#endif

#ifdef ENGINE8
void check(int rows, int K, int columns) {
  const Engine8& e = ENGINE8;
  const long stride = K + 16, apart = K + 5;
  std::vector<int8_t> a((rows - 1) * stride + K), w((columns - 1) * apart + K), b(e.packed(K));
  const bool most = whole(0, 1);  // sums as large as they get
  for (auto& x : w) x = int8_t(most ? -128 : whole(-128, 127));
  for (auto& x : a) x = int8_t(most ? whole(-128, -127) : whole(-128, 127));
  std::vector<int32_t> c(rows * COLUMNS, 12345);
  e.pack_rows(w.data(), apart, columns, K, b.data());
  e.tile(a.data(), stride, K, b.data(), c.data(), rows);
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < COLUMNS; j++) {
      int32_t sum = 0;
      for (int k = 0; k < K; k++) sum += a[r * stride + k] * ((j < columns ? w[j * apart + k] : 0) + e.offset);
      if (c[r * COLUMNS + j] != sum)
        fail("wrong sum", "row %d column %d: %d rows, K %d, %d columns: %d for %d", r, j, rows, K, columns,
             c[r * COLUMNS + j], sum);
    }
}

void check_all() {
  const Engine8& e = ENGINE8;
  for (int rows = 1; rows <= e.rows; rows++) check(rows, 128, 32);
  for (int K : {64, 576, 2048})
    for (int i = 0; i < 3; i++) check(e.rows, K, 32), check(1, K, 32);
  for (int columns : {1, 15, 16, 17, 31}) check(e.rows, 64, columns);
}
#endif

}  // namespace

int main() {
#ifdef __AMX_TILE__  // Linux gives tiles to programs that ask, as csrc/cpu/machine.cpp does
  if (syscall(SYS_arch_prctl, 0x1023, 18)) fail("no tiles", "ARCH_REQ_XCOMP_PERM %d", 18);
#endif
  check_all();
#ifdef COUNTED  // tile instructions of two full tiles, 10 steps of k each, which one configuration is enough for
  amx_rest();
#ifdef ENGINE
  const std::vector<bf16> a(32 * 320), w(32 * 320);
  std::vector<char> b(ENGINE.packed(320));
  std::vector<float> c(32 * 32);
  amx::configured = amx::loads = amx::products = amx::stores = 0;
  for (int i = 0; i < 2; i++) ENGINE.tile(a.data(), 320, 0, 1, 320, b.data(), c.data(), 32);
#else
  const std::vector<int8_t> a(32 * 640);
  std::vector<int8_t> b(ENGINE8.packed(640));
  std::vector<int32_t> c(32 * 32);
  amx::configured = amx::loads = amx::products = amx::stores = 0;
  for (int i = 0; i < 2; i++) ENGINE8.tile(a.data(), 640, 640, b.data(), c.data(), 32);
#endif
  if (amx::configured != 1 || amx::loads != 80 || amx::products != 80 || amx::stores != 8)
    fail("wrong counts", "%ld configurations, %ld loads, %ld products, %ld stores", amx::configured, amx::loads,
         amx::products, amx::stores);
  amx_rest();
  if (amx::config.palette != 0) fail("tiles that are kept", "%d", amx::config.palette);
#endif
}
