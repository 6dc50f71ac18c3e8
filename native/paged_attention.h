// Keys and values in their blocks, and attention over them: Kernels::append, attend and merge. Compiled once per instruction set.
#pragma once
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "vectors.h"

namespace shoal {
namespace SHOAL_ISA {
namespace {

// Queries that are attended together: as many as the registers hold.
constexpr int kQueries = SHOAL_REGISTERS == 32 ? 6 : SHOAL_LANES == 8 ? 3 : 2;

inline uint16_t to_bf16(float f) {  // to nearest even; a NaN stays one
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void append(const Pool& pool, int64_t block, int64_t slot, int64_t head, const float* k, const float* v) {
  uint8_t* base = pool.at(block, head);
  const int64_t d = pool.key_dim, dv = pool.value_dim;
  if (pool.bf16) {
    auto* keys = reinterpret_cast<uint16_t*>(base);
    uint16_t* values = keys + kTokens * d + slot * dv;
    for (int64_t i = 0; i < d; ++i) keys[i * kTokens + slot] = to_bf16(k[i]);
    for (int64_t i = 0; i < dv; ++i) values[i] = to_bf16(v[i]);
  } else {
    auto* keys = reinterpret_cast<float*>(base);
    for (int64_t i = 0; i < d; ++i) keys[i * kTokens + slot] = k[i];
    std::memcpy(keys + kTokens * d + slot * dv, v, static_cast<size_t>(dv) * 4);
  }
}

inline V cache(const float* p) { return load(p); }
inline V cache(const uint16_t* p) {
  const U bits = __builtin_convertvector(*reinterpret_cast<const H*>(p), U) << 16;
  return reinterpret_cast<const V&>(bits);
}

// What weighted values are multiplied with: one over the sum of their weights, and of the sink's, all relative to `peak`.
inline float with_sink(float peak, float total, const float* sink) {
  if (!sink) return 1.0f / total;
  const float highest = *sink > peak ? *sink : peak;
  const float shrink = std::exp(peak - highest);
  return shrink / (total * shrink + std::exp(*sink - highest));
}

constexpr int kPartsAtOnce = 2;  // vectors of a block's scores that stay in registers

// Flash attention over a run of blocks for up to kQueries queries: running maximum, sum of weights, weighted values.
template <class T, int N>
void attend_queries(const Pool& pool, int64_t head, const int32_t* table, int32_t begin, int32_t end, const Scoring& scoring,
                    const Query* queries) {
  const int64_t d = pool.key_dim, dv = pool.value_dim;
  const float scale = scoring.scale, cap = scoring.cap;
  alignas(64) float acc[N][kMostValue];
  alignas(64) float weight[N][kTokens];
  float peak[N], total[N];
  for (int t = 0; t < N; ++t) {
    peak[t] = -INFINITY, total[t] = 0;
    for (int64_t i = 0; i < dv; i += L) keep(acc[t] + i, V{});
  }
  int32_t low = end, high = begin;  // the part of [begin, end) that any of the queries sees
  for (int t = 0; t < N; ++t) {
    low = queries[t].first < low ? queries[t].first : low;
    high = queries[t].end > high ? queries[t].end : high;
  }
  low = low < begin ? begin : low, high = high > end ? end : high;
  constexpr int kParts = kTokens / L;
  I lane;
  for (int i = 0; i < L; ++i) lane[i] = i;

  for (int32_t at = low / kTokens * kTokens; at < high; at += kTokens) {
    const T* keys = reinterpret_cast<const T*>(pool.at(table[at / kTokens], head));
    const T* values = keys + kTokens * d;
    // Scores of a part of the block's tokens at a time, so that the sums stay in registers.
    for (int half = 0; half < kParts; half += kPartsAtOnce) {
      V scores[N][kPartsAtOnce];
      for (int t = 0; t < N; ++t) {
        for (int c = 0; c < kPartsAtOnce; ++c) scores[t][c] = V{};
      }
      for (int64_t i = 0; i < d; ++i) {
        V k[kPartsAtOnce];
        for (int c = 0; c < kPartsAtOnce; ++c) k[c] = cache(keys + i * kTokens + (half + c) * L);
        for (int t = 0; t < N; ++t) {
          for (int c = 0; c < kPartsAtOnce; ++c) scores[t][c] += k[c] * queries[t].q[i];
        }
      }
      for (int t = 0; t < N; ++t) {
        for (int c = 0; c < kPartsAtOnce; ++c) keep(weight[t] + (half + c) * L, scores[t][c]);
      }
    }
    for (int t = 0; t < N; ++t) {
      const int32_t from = (queries[t].first > begin ? queries[t].first : begin) - at;
      const int32_t to = (queries[t].end < end ? queries[t].end : end) - at;
      V masked[kParts], peaks = all(-INFINITY);
      for (int c = 0; c < kParts; ++c) {
        const I token = lane + c * L;
        V score = load(weight[t] + c * L) * scale;
        if (cap > 0) score = cap - 2.0f * cap / (exp_of(2.0f / cap * score) + 1.0f);  // cap * tanh(score / cap)
        masked[c] = ((token >= from) & (token < to)) ? score : all(-INFINITY);
        peaks = larger(peaks, masked[c]);
      }
      const float block_peak = max_of(peaks);
      // The query sees nothing of this block; without an earlier maximum its weights would be NaN, not 0.
      if (block_peak == -INFINITY) {
        for (int c = 0; c < kParts; ++c) keep(weight[t] + c * L, V{});
        continue;
      }
      const float new_peak = block_peak > peak[t] ? block_peak : peak[t];
      V sums{};
      for (int c = 0; c < kParts; ++c) {
        const V e = exp_of(masked[c] - new_peak);
        keep(weight[t] + c * L, e);
        sums += e;
      }
      // What was summed so far is relative to the old maximum.
      if (new_peak > peak[t]) {
        const float shrink = std::exp(peak[t] - new_peak);
        total[t] *= shrink;
        for (int64_t i = 0; i < dv; i += L) keep(acc[t] + i, load(acc[t] + i) * shrink);
        peak[t] = new_peak;
      }
      total[t] += sum_of(sums);
    }
    // Values of tokens that some query sees; for the other queries their weight is 0.
    const int64_t first = low > at ? low - at : 0, last = high - at < kTokens ? high - at : kTokens;
    for (int64_t i = 0; i < dv; i += L) {
      V sums[N];
      for (int t = 0; t < N; ++t) sums[t] = load(acc[t] + i);
      for (int64_t j = first; j < last; ++j) {
        const V v = cache(values + j * dv + i);
        for (int t = 0; t < N; ++t) sums[t] += v * weight[t][j];
      }
      for (int t = 0; t < N; ++t) keep(acc[t] + i, sums[t]);
    }
  }
  for (int t = 0; t < N; ++t) {
    if (float* out = queries[t].partial) {
      std::memcpy(out, acc[t], static_cast<size_t>(dv) * 4);
      out[dv] = peak[t], out[dv + 1] = total[t];
    } else {
      const float inverse = with_sink(peak[t], total[t], queries[t].sink);
      for (int64_t i = 0; i < dv; i += L) keep(queries[t].out + i, load(acc[t] + i) * inverse);
    }
  }
}

template <class T>
void attend_typed(const Pool& pool, int64_t head, const int32_t* table, int32_t begin, int32_t end, const Scoring& scoring,
                  const Query* queries, int count) {
  int i = 0;
  for (; i + kQueries <= count; i += kQueries) {
    attend_queries<T, kQueries>(pool, head, table, begin, end, scoring, queries + i);
  }
  if (kQueries > 3 && i + 3 <= count) attend_queries<T, 3>(pool, head, table, begin, end, scoring, queries + i), i += 3;
  for (; i + 2 <= count; i += 2) attend_queries<T, 2>(pool, head, table, begin, end, scoring, queries + i);
  if (i < count) attend_queries<T, 1>(pool, head, table, begin, end, scoring, queries + i);
}

void attend(const Pool& pool, int64_t head, const int32_t* table, int32_t begin, int32_t end,
            const Scoring& scoring, const Query* queries, int count) {
  if (pool.bf16) return attend_typed<uint16_t>(pool, head, table, begin, end, scoring, queries, count);
  attend_typed<float>(pool, head, table, begin, end, scoring, queries, count);
}

void merge(const float* partials, int64_t splits, int64_t value_dim, const float* sink, float* out) {
  const int64_t stride = value_dim + 2;
  float peak = -INFINITY, total = 0;
  for (int64_t s = 0; s < splits; ++s) peak = std::fmax(peak, partials[s * stride + value_dim]);
  for (int64_t i = 0; i < value_dim; ++i) out[i] = 0;
  for (int64_t s = 0; s < splits; ++s) {
    const float* part = partials + s * stride;
    if (part[value_dim] == -INFINITY) continue;  // a split wholly outside the window
    const float factor = std::exp(part[value_dim] - peak);
    total += part[value_dim + 1] * factor;
    for (int64_t i = 0; i < value_dim; i += L) keep(out + i, load(out + i) + load(part + i) * factor);
  }
  const float inverse = with_sink(peak, total, sink);
  for (int64_t i = 0; i < value_dim; ++i) out[i] *= inverse;
}

}  // namespace
}  // namespace SHOAL_ISA
}  // namespace shoal
