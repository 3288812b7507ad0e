// Attention on an engine, for self- and cross-attention: keys and values are packed once, and blocks of queries go past
// them a few hundred keys at a time, with the softmax that needs no second look.
#pragma once
#include <algorithm>
#include <cfloat>

#include "engine.h"
#include "parallel.h"
#include "vector.h"

namespace LEVEL {

constexpr int STEP = 512;  // keys whose scores are in memory at a time
constexpr int BLOCK = 96;  // queries that meet a step's keys while these are in the second cache
constexpr int AHEAD = 16;  // queries that are fetched before they are read

struct Heads {  // of a tensor whose channels lie together
  const bf16* at;
  const long* strides;  // of the batch, rows and heads

  const bf16* operator()(long b, long i, long h) const { return at + b * strides[0] + i * strides[1] + h * strides[2]; }
};

// What becomes of rows that are padding, as keys are from `lengths` on: none are (cross-attention); they are zeros;
// they look at the keys like others, and where they see none, at all values evenly.
enum class Padding { KEYS_ONLY, ZEROS, LOOKS };

struct Attention {
  long batch, rows, keys, sets;  // sets of keys: one for each item of the batch, or one for all
  int kv_heads, group, D;        // group: query heads of a key head
  Heads q, k, v;
  const int64_t* lengths;  // of the sets; keys from there on are padding. May be null
  long before, after;      // row i sees keys from i - before to i + after
  Padding padding;
  bf16* out;
  const long* out_strides;  // of the batch and rows

  long valid(long set) const { return lengths ? std::clamp<long>(lengths[set], 0, keys) : keys; }
};

// Keys by blocks of 32 and values by 32 channels, each with its k together, for every set and head.
struct Packed {
  const Engine& e;
  long blocks;  // of 32 keys
  size_t head;  // bytes of one head's keys, and of its values
  char *k, *v;

  Packed(const Attention& a, Scratch& scratch, int threads) : e(engine()), blocks((a.keys + 31) / 32) {
    head = e.packed(a.D) * blocks;
    k = scratch.get<char>(2 * head * a.sets * a.kv_heads), v = k + head * a.sets * a.kv_heads;
    const long pieces = (blocks + 3) / 4;
    in_parallel(a.sets * a.kv_heads * pieces, threads, [&](long task) {
      const long which = task / pieces, set = which / a.kv_heads, h = which % a.kv_heads, valid = a.valid(set);
      for (long i = task % pieces * 4; i < std::min((valid + 31) / 32, task % pieces * 4 + 4); i++) {
        const int n = int(std::min(valid - 32 * i, 32L));
        e.pack_rows(a.k(set, 32 * i, h), a.k.strides[1], n, a.D, k + which * head + i * e.packed(a.D));
        for (int d = 0; d < a.D; d += COLUMNS)
          e.pack_columns(a.v(set, 32 * i, h) + d, a.v.strides[1], COLUMNS, n, 32, values(which, d) + i * e.packed(32));
      }
    });
  }

  char* values(long which, int d) const { return v + which * head + d / COLUMNS * e.packed(32 * blocks); }
};

// 2**x for x up to about 0, to 3e-6: a thousandth of what rounding to bf16 adds. 0 from -127 down; may lose a NaN.
inline f32 weight(f32 x) {
  const f32 big = all(12582912.0f);
  x = larger(all(-127.0f), x);
  const f32 t = x + big, r = x - (t - big);
  f32 p = all(9.58284e-3f);
  p = p * r + 5.590644e-2f;
  p = p * r + 2.4024099e-1f;
  p = p * r + 6.9312419e-1f;
  p = p * r + 1.0f;
  return (f32)((i32)p + ((i32)t << 23));  // t's lowest bits are the whole part of x
}

// To nearest, for numbers that are not negative.
inline void store_weight(bf16* p, f32 v) {
  const u16 half = __builtin_convertvector(((u32)v + 0x8000) >> 16, u16);
  std::memcpy(p, &half, sizeof half);
}

// What is known of a query after some of its keys.
struct Softmax {
  float top = -FLT_MAX, sum = 0;  // the largest score, times scale, and the sum of 2**(score - top)

  // scores[blocks][apart], 32 each, of the keys from `key` on become weights, zeros of the keys before `low` and from
  // `high` on. Returns what to multiply by what came of the keys before.
  float take(float* scores, long apart, int blocks, long key, long low, long high, float scale, bf16* weights) {
    f32 largest = all(-FLT_MAX);
    for (int i = 0; i < blocks; i++, key += COLUMNS)
      for (int side = 0; side < 2; side++) {
        float* at = scores + i * apart + side * LANES;
        const long first = key + side * LANES;
        if (first < low || first + LANES > high) mask(at, low - first, high - first);
        largest = larger(load(at), largest);
      }
    const float now = std::max(top, most(largest) * scale), less = weight(all(top - now))[0];
    f32 sums{}, seen{};
    for (int i = 0; i < blocks; i++)
      for (int side = 0; side < 2; side++) {
        const f32 x = load(scores + i * apart + side * LANES) * scale - now, w = weight(x);
        sums += w;
        seen += x;
        store_weight(weights + i * COLUMNS + side * LANES, w);
      }
    top = now;
    sum = std::isnan(LEVEL::sum(seen)) ? NAN : sum * less + LEVEL::sum(sums);
    return less;
  }

  static void mask(float* scores, long low, long high) {
    for (long i = 0; i < LANES; i++)
      if (i < low || i >= high) scores[i] = -INFINITY;
  }
};

// norm(x, u) makes of a query x the D numbers that are multiplied.
template <typename Norm>
void attend(const Attention& a, int threads, const Norm& norm) {
  static thread_local Scratch packed;
  const Packed keys(a, packed, threads);
  const Engine& e = keys.e;
  const long together = std::max(1, BLOCK / a.group);  // rows whose queries of one key head are a block
  const long most_queries = together * a.group, blocks = (a.rows + together - 1) / together;
  const float scale = 1.44269504f / std::sqrt(float(a.D));
  in_parallel(a.batch * a.kv_heads * blocks, threads, [&](long task) {
    static thread_local Scratch q_scratch, score_scratch, weight_scratch, sum_scratch, softmax_scratch;
    const long block = task % blocks, h = task / blocks % a.kv_heads, b = task / blocks / a.kv_heads;
    const long set = a.sets > 1 ? b : 0, which = set * a.kv_heads + h, valid = a.valid(set);
    const long begin = block * together, end = std::min(begin + together, a.rows);
    const long looking = a.padding == Padding::ZEROS ? std::clamp(valid, begin, end) : end;
    const int count = int(looking - begin) * a.group, D = a.D;
    const long q_stride = D + COLUMNS, weight_stride = STEP + COLUMNS;
    bf16* q = q_scratch.get<bf16>(most_queries * q_stride);
    float* scores = score_scratch.get<float>(MOST_ROWS * STEP);
    bf16* weights = weight_scratch.get<bf16>(MOST_ROWS * weight_stride);
    float* sums = sum_scratch.get<float>(most_queries * D);
    Softmax* softmax = softmax_scratch.get<Softmax>(most_queries);
    const auto row_of = [&](int r) { return begin + r / a.group; };
    const auto query = [&](int r) { return a.q(b, row_of(r), h * a.group + r % a.group); };
    const auto output = [&](int r) {
      return a.out + b * a.out_strides[0] + row_of(r) * a.out_strides[1] + (h * a.group + r % a.group) * D;
    };
    for (int r = -AHEAD; r < count; r++) {  // rows are pages apart, where no CPU fetches ahead by itself
      for (int d = 0; r + AHEAD < count && d < D; d += 64 / sizeof(bf16)) {
        __builtin_prefetch(query(r + AHEAD) + d);
        __builtin_prefetch(output(r + AHEAD) + d, 1);
      }
      if (r >= 0) norm(query(r), q + r * q_stride);
    }
    std::fill_n(softmax, most_queries, Softmax());
    std::fill_n(sums, most_queries * D, 0.0f);
    // keys that the rows from `first` to `last` see
    const auto low = [&](long first) { return std::max(0L, first - a.before); };
    const auto high = [&](long last) { return std::min(valid, last + a.after + 1); };
    for (long step = low(begin) / 32; 32 * step < high(looking - 1); step += STEP / 32)
      for (int r = 0; r < count; r += e.rows) {
        const int rows = std::min(e.rows, count - r);
        const long first = std::max(step, low(row_of(r)) / 32);
        const long last = std::min(step + STEP / 32, (high(row_of(r + rows - 1)) + 31) / 32);
        if (first >= last) continue;
        const int n = int(last - first);
        for (int i = 0; i < n; i++)
          e.tile(q + r * q_stride, q_stride, 0, 1, D, keys.k + which * keys.head + (first + i) * e.packed(D),
                 scores + i * rows * COLUMNS, rows);
        float less[MOST_ROWS];
        for (int i = 0; i < rows; i++)
          less[i] = softmax[r + i].take(scores + i * COLUMNS, rows * COLUMNS, n, 32 * first, low(row_of(r + i)),
                                        high(row_of(r + i)), scale, weights + i * weight_stride);
        alignas(64) float c[MOST_ROWS * COLUMNS];
        for (int d = 0; d < D; d += COLUMNS) {
          e.tile(weights, weight_stride, 0, 1, 32 * n, keys.values(which, d) + first * e.packed(32), c, rows);
          for (int i = 0; i < rows; i++)
            for (int j = 0; j < COLUMNS; j += LANES) {
              float* at = sums + (r + i) * D + d + j;
              store(at, load(at) * less[i] + load(c + i * COLUMNS + j));
            }
        }
      }
    for (int r = 0; r < (end - begin) * a.group; r++) {
      const bool blind = softmax[r].sum == 0;
      const float inverse = 1.0f / (blind ? float(a.keys) : softmax[r].sum);
      for (int d = 0; d < D; d += LANES) {
        f32 total = load(sums + r * D + d);
        if (blind && a.padding == Padding::LOOKS)
          for (long i = 0; i < a.keys; i++) total += load(a.v(set, i, h) + d);
        store(output(r) + d, total * inverse);
      }
    }
  });
}

}  // namespace LEVEL
