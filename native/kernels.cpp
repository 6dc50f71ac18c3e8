#include "kernels.h"

#include <cmath>
#include <cstring>

#include "vectors.h"

namespace shoal {
namespace SHOAL_ISA {
namespace {

// dot4 subtracts this from an 8-bit weight, because ARM's dot product takes two signed operands.
#if defined(__ARM_FEATURE_DOTPROD)
constexpr int32_t kTaken = 128;
#else
constexpr int32_t kTaken = 0;
#endif

// acc[lane] += sum over 4 of w[lane][i] * x[i]; w is unsigned (4 bits after the shift, or 8 minus kTaken), x four signed bytes in an int.
template <int bits>
inline I dot4(I acc, const uint8_t* w, int32_t x, int shift) {
#if defined(__AVX512VNNI__)
  __m512i v = _mm512_loadu_si512(w);
  if (bits == 4) v = _mm512_and_si512(_mm512_srli_epi16(v, shift), _mm512_set1_epi8(15));
  return reinterpret_cast<I>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), v, _mm512_set1_epi32(x)));
#elif defined(__AVX2__)
  const __m256i xs = _mm256_set1_epi32(x), v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  const __m256i a = reinterpret_cast<__m256i>(acc);
  if (bits == 4) {
    const __m256i q = _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi8(15));
    return reinterpret_cast<I>(_mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(q, xs), _mm256_set1_epi16(1))));
  }
  // Pairs of 8-bit products overflow 16 bits: widen first.
  const __m256i even = _mm256_and_si256(v, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(v, 8);
  const __m256i xe = _mm256_srai_epi16(_mm256_slli_epi16(xs, 8), 8), xo = _mm256_srai_epi16(xs, 8);
  return reinterpret_cast<I>(_mm256_add_epi32(a, _mm256_add_epi32(_mm256_madd_epi16(even, xe), _mm256_madd_epi16(odd, xo))));
#elif defined(__ARM_FEATURE_DOTPROD)
  uint8x16_t v = vld1q_u8(w);
  if (bits == 4) v = shift ? vshrq_n_u8(v, 4) : vandq_u8(v, vdupq_n_u8(15));
  if (bits == 8) v = veorq_u8(v, vdupq_n_u8(128));
  const int8x16_t xs = vreinterpretq_s8_s32(vdupq_n_s32(x));
  return reinterpret_cast<I>(vdotq_s32(reinterpret_cast<int32x4_t>(acc), vreinterpretq_s8_u8(v), xs));
#else
  int8_t s[4];
  std::memcpy(s, &x, 4);
  for (int lane = 0; lane < L; ++lane) {
    int32_t total = 0;
    for (int i = 0; i < 4; ++i) total += (bits == 4 ? (w[lane * 4 + i] >> shift) & 15 : w[lane * 4 + i]) * s[i];
    acc[lane] += total;
  }
  return acc;
#endif
}

// The same for four-bit codes whose weights are in a table of 16 signed bytes. Where the dot product takes unsigned weights, the table has
// kRaised added to each.
#if defined(__AVX512VNNI__)
constexpr int32_t kRaised = 128;
struct Table {
  __m512i values;
  explicit Table(const int8_t* t)
      : values(_mm512_xor_si512(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t))), _mm512_set1_epi8(-128))) {}
};
inline I dot4_table(I acc, const uint8_t* w, int32_t x, int shift, const Table& table) {
  const __m512i codes = _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(w), shift), _mm512_set1_epi8(15));
  return reinterpret_cast<I>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), _mm512_shuffle_epi8(table.values, codes), _mm512_set1_epi32(x)));
}
#else
constexpr int32_t kRaised = 0;
#if defined(__AVX2__)
struct Table {
  __m256i values;
  explicit Table(const int8_t* t) : values(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)))) {}
};
inline I dot4_table(I acc, const uint8_t* w, int32_t x, int shift, const Table& table) {
  const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  const __m256i v = _mm256_shuffle_epi8(table.values, _mm256_and_si256(_mm256_srli_epi16(packed, shift), _mm256_set1_epi8(15)));
  // Neither the table nor x has -128, so that pairs of products fit 16 bits.
  const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(_mm256_set1_epi32(x), v));
  return reinterpret_cast<I>(_mm256_add_epi32(reinterpret_cast<__m256i>(acc), _mm256_madd_epi16(products, _mm256_set1_epi16(1))));
}
#elif defined(__ARM_FEATURE_DOTPROD)
struct Table {
  int8x16_t values;
  explicit Table(const int8_t* t) : values(vld1q_s8(t)) {}
};
inline I dot4_table(I acc, const uint8_t* w, int32_t x, int shift, const Table& table) {
  const uint8x16_t packed = vld1q_u8(w);
  const int8x16_t v = vqtbl1q_s8(table.values, shift ? vshrq_n_u8(packed, 4) : vandq_u8(packed, vdupq_n_u8(15)));
  return reinterpret_cast<I>(vdotq_s32(reinterpret_cast<int32x4_t>(acc), v, vreinterpretq_s8_s32(vdupq_n_s32(x))));
}
#else
struct Table {
  const int8_t* values;
  explicit Table(const int8_t* t) : values(t) {}
};
inline I dot4_table(I acc, const uint8_t* w, int32_t x, int shift, const Table& table) {
  int8_t s[4];
  std::memcpy(s, &x, 4);
  for (int lane = 0; lane < L; ++lane) {
    int32_t total = 0;
    for (int i = 0; i < 4; ++i) total += table.values[(w[lane * 4 + i] >> shift) & 15] * s[i];
    acc[lane] += total;
  }
  return acc;
}
#endif
#endif

inline void finish(V acc, const float* bias, bool add, float* out) {
  if (bias) acc += load(bias);
  if (add) acc += load(out);
  keep(out, acc);
}

// The output rows [lane, lane + L) of a panel, for R rows of x. Weights are stored as described in matrix.h: for each block of 32 inputs,
// groups of 4 consecutive inputs of every output row of the panel, so that one load and one dot4 advance L output rows by 4 inputs. With
// 4 bits a byte holds two weights, of inputs i and i + 16 of the block; `low` and `high` are the matching inputs.
template <int R, int bits, Offset offset, bool has_table = false>
void gemm_quantised(const Matrix& w, int64_t p, int64_t lane, const Activations& x, int64_t row, const float* bias, bool add,
                    float* out, int64_t stride) {
  const int64_t blocks = w.blocks();
  const uint8_t* data = w.panel(p) + lane * 4;
  const uint16_t *scales = w.scales(p) + lane, *offsets = offset != Offset::None ? w.offsets(p) + lane : nullptr;
  const Table table(w.table);
  const int8_t* q[R];
  const float* scale[R];
  const int32_t* sum[R];
  V acc[R];
  for (int r = 0; r < R; ++r) {
    const int64_t from = x.index ? x.index[row + r] : row + r;
    q[r] = x.q + from * w.k, scale[r] = x.scale + from * blocks, sum[r] = x.sum + from * blocks;
    acc[r] = V{};
  }
  const int32_t zero = has_table ? kRaised : w.zero - (bits == 8 ? kTaken : 0);
  for (int64_t b = 0; b < blocks; ++b) {
    if (row == 0) {  // the first rows wait for memory: prefetch well ahead, into the next panels too (+15 to 25 % on Zen 4)
      constexpr int64_t size = bits == 4 ? 256 : 512;
      for (int64_t i = 0; i < size; i += 64) __builtin_prefetch(data + b * size + 8192 + i, 0, 2);
    }
    I dots[R];
    if (offset == Offset::Zero) {
      const I zeros = __builtin_convertvector(halves(offsets + b * kPanel), I);
      for (int r = 0; r < R; ++r) dots[r] = -(zeros * sum[r][b]);
    } else {
      for (int r = 0; r < R; ++r) dots[r] = I{} - zero * sum[r][b];
    }
    if (bits == 4) {
      for (int g = 0; g < 4; ++g) {
        for (int r = 0; r < R; ++r) {
          int32_t low, high;
          std::memcpy(&low, q[r] + b * 32 + g * 4, 4), std::memcpy(&high, q[r] + b * 32 + 16 + g * 4, 4);
          if (has_table) {
            dots[r] = dot4_table(dots[r], data + b * 256 + g * 64, low, 0, table);
            dots[r] = dot4_table(dots[r], data + b * 256 + g * 64, high, 4, table);
          } else {
            dots[r] = dot4<4>(dots[r], data + b * 256 + g * 64, low, 0);
            dots[r] = dot4<4>(dots[r], data + b * 256 + g * 64, high, 4);
          }
        }
      }
    } else {
      for (int g = 0; g < 8; ++g) {
        for (int r = 0; r < R; ++r) {
          int32_t four;
          std::memcpy(&four, q[r] + b * 32 + g * 4, 4);
          dots[r] = dot4<8>(dots[r], data + b * 512 + g * 64, four, 0);
        }
      }
    }
    const V s = halves(scales + b * kPanel);
    for (int r = 0; r < R; ++r) acc[r] += __builtin_convertvector(dots[r], V) * (s * scale[r][b]);
    if (offset == Offset::Minimum) {
      const V m = halves(offsets + b * kPanel);
      for (int r = 0; r < R; ++r) acc[r] += m * (scale[r][b] * static_cast<float>(sum[r][b]));
    }
  }
  for (int r = 0; r < R; ++r) finish(has_table ? acc[r] * w.unit : acc[r], bias, add, out + (row + r) * stride);
}

template <int R>
void gemm_float(const Matrix& w, int64_t p, int64_t lane, const Activations& x, int64_t row, const float* bias, bool add,
                float* out, int64_t stride) {
  const float* data = reinterpret_cast<const float*>(w.panel(p)) + lane;
  const float* in[R];
  V acc[R];
  for (int r = 0; r < R; ++r) in[r] = x.x + (x.index ? x.index[row + r] : row + r) * w.k, acc[r] = V{};
  for (int64_t k = 0; k < w.k; ++k) {
    const V column = load(data + k * kPanel);
    for (int r = 0; r < R; ++r) acc[r] += column * in[r][k];
  }
  for (int r = 0; r < R; ++r) finish(acc[r], bias, add, out + (row + r) * stride);
}

template <int R>
void gemm_rows(const Matrix& w, int64_t p, const Activations& x, int64_t row, const float* bias, bool add, float* out,
               int64_t stride) {
  for (int64_t lane = 0; lane < kPanel; lane += L) {
    const float* b = bias ? bias + lane : nullptr;
    if (w.kind == Kind::F32) {
      gemm_float<R>(w, p, lane, x, row, b, add, out + lane, stride);
    } else if (w.kind == Kind::Q8) {
      if (w.offset == Offset::Minimum) {
        gemm_quantised<R, 8, Offset::Minimum>(w, p, lane, x, row, b, add, out + lane, stride);
      } else {
        gemm_quantised<R, 8, Offset::None>(w, p, lane, x, row, b, add, out + lane, stride);
      }
    } else if (w.has_table) {
      gemm_quantised<R, 4, Offset::None, true>(w, p, lane, x, row, b, add, out + lane, stride);
    } else if (w.offset == Offset::Minimum) {
      gemm_quantised<R, 4, Offset::Minimum>(w, p, lane, x, row, b, add, out + lane, stride);
    } else if (w.offset == Offset::Zero) {
      gemm_quantised<R, 4, Offset::Zero>(w, p, lane, x, row, b, add, out + lane, stride);
    } else {
      gemm_quantised<R, 4, Offset::None>(w, p, lane, x, row, b, add, out + lane, stride);
    }
  }
}

// Rows of x that are multiplied together, and queries that are attended together: as many as the registers hold.
#if defined(__AVX512F__)
constexpr int kRows = 8, kQueries = 6;
#elif defined(__AVX2__)
constexpr int kRows = 4, kQueries = 3;
#else
constexpr int kRows = 2, kQueries = 2;
#endif

void gemm(const Matrix& w, int64_t p, const Activations& x, int64_t first, int64_t end, const float* bias, bool add,
          float* out, int64_t stride) {
  int64_t row = first;
  for (; row + kRows <= end; row += kRows) gemm_rows<kRows>(w, p, x, row, bias, add, out, stride);
  switch (end - row) {  // an expert's rows are few, and of any number
#if defined(__AVX512F__)
    case 7: return gemm_rows<7>(w, p, x, row, bias, add, out, stride);
    case 6: return gemm_rows<6>(w, p, x, row, bias, add, out, stride);
    case 5: return gemm_rows<5>(w, p, x, row, bias, add, out, stride);
    case 4: return gemm_rows<4>(w, p, x, row, bias, add, out, stride);
#endif
#if defined(__AVX2__)
    case 3: return gemm_rows<3>(w, p, x, row, bias, add, out, stride);
    case 2: return gemm_rows<2>(w, p, x, row, bias, add, out, stride);
#endif
    case 1: return gemm_rows<1>(w, p, x, row, bias, add, out, stride);
    default: return;
  }
}

void quantise(const float* x, int64_t k, int8_t* q, float* scale, int32_t* sum) {
  for (int64_t b = 0; b < k / kBlock; ++b, x += kBlock, q += kBlock) {
    V peaks{};
    for (int i = 0; i < kBlock; i += L) {
      const V v = load(x + i);
      peaks = larger(peaks, larger(v, -v));
    }
    const float peak = max_of(peaks);
    const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
    scale[b] = peak / 127.0f;
    I total{};
    for (int i = 0; i < kBlock; i += L) {
      // Adding 1.5 * 2^23 rounds to nearest even.
      const I v = __builtin_convertvector((load(x + i) * inverse + 12582912.0f) - 12582912.0f, I);
      total += v;
#if defined(__AVX512F__)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(v)));
#else
      for (int lane = 0; lane < L; ++lane) q[i + lane] = static_cast<int8_t>(v[lane]);
#endif
    }
    int32_t all_of = 0;
    for (int lane = 0; lane < L; ++lane) all_of += total[lane];
    sum[b] = all_of;
  }
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  V squares{};
  int64_t i = 0;
  for (; i + L <= n; i += L) squares += load(x + i) * load(x + i);
  float total = sum_of(squares);
  for (; i < n; ++i) total += x[i] * x[i];
  const float inverse = 1.0f / std::sqrt(total / static_cast<float>(n) + eps);
  for (i = 0; i + L <= n; i += L) keep(out + i, load(x + i) * inverse * load(weight + i));
  for (; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* out) {
  const auto total = [n](auto&& at) {
    V sums{};
    int64_t i = 0;
    for (; i + L <= n; i += L) sums += at(i);
    float all = sum_of(sums);
    for (; i < n; ++i) all += at(i)[0];
    return all;
  };
  // A tail shorter than a vector is read value by value, into the first lane.
  const auto value = [n, x](int64_t i) { return i + L <= n ? load(x + i) : V{} + x[i]; };
  const float mean = total(value) / static_cast<float>(n);
  const float variance = total([&](int64_t i) { return (value(i) - mean) * (value(i) - mean); }) / static_cast<float>(n);
  const float inverse = 1.0f / std::sqrt(variance + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - mean) * inverse * weight[i] + (bias ? bias[i] : 0.0f);
}

inline V sigmoid_of(V x) { return 1.0f / (exp_of(-x) + 1.0f); }

template <class F>
void gated(float* gate, const float* up, int64_t n, F&& f) {
  for (int64_t i = 0; i < n; i += L) keep(gate + i, f(load(gate + i), load(up + i)));
}

void activate(Activation kind, float* gate, const float* up, int64_t n) {
  switch (kind) {
    case Activation::Silu:
      return gated(gate, up, n, [](V g, V u) { return g / (exp_of(-g) + 1.0f) * u; });
    case Activation::Gelu:  // 0.5 * (1 + tanh(y)) is the sigmoid of 2 * y
      return gated(gate, up, n, [](V g, V u) { return g * sigmoid_of(1.5957691216f * (g + 0.044715f * g * g * g)) * u; });
    case Activation::Clamped:
      return gated(gate, up, n, [](V g, V u) {
        g = g > 7.0f ? all(7.0f) : g;
        u = u > 7.0f ? all(7.0f) : u < -7.0f ? all(-7.0f) : u;
        return (u + 1.0f) * (g * sigmoid_of(g * 1.702f));
      });
  }
}

void rope(float* head, const float* cos, const float* sin, int64_t rotated) {
  const int64_t half = rotated / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cos[i] - b * sin[i];
    head[half + i] = b * cos[i] + a * sin[i];
  }
}

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

void weigh(const float* part, const float* weights, const int32_t* index, int64_t count, double* sums) {
  // Added to a double, this leaves no bits below the grid; the product of two floats is exact in a double.
  constexpr double kRound = 1.5 * static_cast<double>(int64_t{1} << (52 - kGrid));
  for (int64_t i = 0; i < count; ++i) {
    const double weight = weights[i];
    double* sum = sums + index[i] * kPanel;
    for (int64_t lane = 0; lane < kPanel; ++lane) sum[lane] += (weight * static_cast<double>(part[i * kPanel + lane]) + kRound) - kRound;
  }
}

int64_t argmax(const float* x, int64_t n) {  // the first among equals
  V best = all(-INFINITY);
  int64_t i = 0;
  for (; i + L <= n; i += L) best = larger(best, load(x + i));
  float peak = max_of(best);
  for (; i < n; ++i) peak = x[i] > peak ? x[i] : peak;
  for (i = 0; i < n; ++i) {
    if (x[i] == peak) return i;
  }
  return 0;
}

#define SHOAL_TEXT(x) #x
#define SHOAL_NAME(x) SHOAL_TEXT(x)

}  // namespace

const Kernels& kernels() {
  static const Kernels table{SHOAL_NAME(SHOAL_ISA), kQueries, gemm,   quantise, rms_norm, layer_norm,
                             activate,              rope,     append, attend,   merge,    weigh, argmax};
  return table;
}

}  // namespace SHOAL_ISA
}  // namespace shoal
