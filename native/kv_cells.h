// Keys and values as they are stored in a block of 32 tokens: how a token is put there, and how scores and weighted sums are made of it.
// Compiled once per instruction set.
#pragma once
#include <cmath>
#include <cstring>

#include "dots.h"
#include "kernels.h"
#include "vectors.h"

namespace shoal {
namespace SHOAL_ISA {
namespace {

inline uint16_t to_bf16(float f) {  // to nearest even; a NaN stays one
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline uint16_t away_from_zero(float f) {  // to bf16
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return static_cast<uint16_t>((bits + 0xffff) >> 16);
}

inline V cells(const float* p) { return load(p); }
inline V cells(const uint16_t* p) {
  const U bits = __builtin_convertvector(*reinterpret_cast<const H*>(p), U) << 16;
  return reinterpret_cast<const V&>(bits);
}

constexpr int kPartsAtOnce = 2;  // vectors of a block's scores, or of a head's values, that stay in registers
constexpr int kParts = kTokens / L;

// Fetches into the second-level cache, or the first, what a block further on has where this one is being read: blocks are scattered, so no
// processor guesses where the next one is. The first level takes fewer lines at once.
template <bool first_level>
inline void ahead(const uint8_t* next, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(next + i, 0, first_level ? 3 : 2);
}

// Floats or bf16, and N queries that share them.
template <class T, int N>
class PlainCells {
 public:
  PlainCells(const Pool& pool, const Query* queries) : d_(pool.key_dim), dv_(pool.value_dim), queries_(queries) {}

  static void append(const Pool& pool, uint8_t* block, int64_t slot, const float* k, const float* v) {
    T* keys = reinterpret_cast<T*>(block);
    T* values = keys + kTokens * pool.key_dim + slot * pool.value_dim;
    for (int64_t i = 0; i < pool.key_dim; ++i) put(keys + i * kTokens + slot, k[i]);
    for (int64_t i = 0; i < pool.value_dim; ++i) put(values + i, v[i]);
  }

  // scores[query] = its products with the keys of all tokens of the block.
  void score(const uint8_t* block, const uint8_t* next, float (*scores)[kTokens]) const {
    const T* keys = reinterpret_cast<const T*>(block);
    for (int half = 0; half < kParts; half += kPartsAtOnce) {
      V sums[N][kPartsAtOnce];
      for (int t = 0; t < N; ++t) {
        for (int c = 0; c < kPartsAtOnce; ++c) sums[t][c] = V{};
      }
      for (int64_t i = 0; i < d_; ++i) {
        V k[kPartsAtOnce];
        if (half == 0) ahead<false>(next + i * kTokens * sizeof(T), kTokens * sizeof(T));
        for (int c = 0; c < kPartsAtOnce; ++c) k[c] = cells(keys + i * kTokens + (half + c) * L);
        for (int t = 0; t < N; ++t) {
          for (int c = 0; c < kPartsAtOnce; ++c) sums[t][c] += k[c] * queries_[t].q[i];
        }
      }
      for (int t = 0; t < N; ++t) {
        for (int c = 0; c < kPartsAtOnce; ++c) keep(scores[t] + (half + c) * L, sums[t][c]);
      }
    }
  }

  // sums[query] += the values of the block's tokens [first, last), each times its weight.
  void add(const uint8_t* block, const uint8_t* next, const float (*weight)[kTokens], int64_t first, int64_t last,
           float (*sums)[kMostValue]) const {
    const T* values = reinterpret_cast<const T*>(block) + kTokens * d_;
    const T* fetched = reinterpret_cast<const T*>(next) + kTokens * d_;
    int64_t i = 0;
    for (; i + kPartsAtOnce * L <= dv_; i += kPartsAtOnce * L) add_part<kPartsAtOnce>(values, fetched, i, weight, first, last, sums);
    for (; i < dv_; i += L) add_part<1>(values, fetched, i, weight, first, last, sums);
  }

 private:
  template <int P>
  void add_part(const T* values, const T* fetched, int64_t i, const float (*weight)[kTokens], int64_t first, int64_t last,
                float (*sums)[kMostValue]) const {
    V held[N][P];
    for (int t = 0; t < N; ++t) {
      for (int c = 0; c < P; ++c) held[t][c] = load(sums[t] + i + c * L);
    }
    for (int64_t j = first; j < last; ++j) {
      V v[P];
      for (int c = 0; c < P; ++c) v[c] = cells(values + j * dv_ + i + c * L);
      if (i == 0) ahead<false>(reinterpret_cast<const uint8_t*>(fetched + j * dv_), dv_ * sizeof(T));
      for (int t = 0; t < N; ++t) {
        for (int c = 0; c < P; ++c) held[t][c] += v[c] * weight[t][j];
      }
    }
    for (int t = 0; t < N; ++t) {
      for (int c = 0; c < P; ++c) keep(sums[t] + i + c * L, held[t][c]);
    }
  }

  static void put(float* to, float x) { *to = x; }
  static void put(uint16_t* to, float x) { *to = to_bf16(x); }

  int64_t d_, dv_;
  const Query* queries_;
};

// What 32 numbers are rounded with: their largest, and the largest of their negatives; both NaN if one is not finite.
struct Extent {
  float high, low;
};

inline Extent extent(const float* x, int64_t n) {
  V high{}, low{}, bad{};
  for (int64_t i = 0; i < n; i += L) {
    const V v = load(x + i);
    high = larger(high, v), low = larger(low, -v), bad += v - v;
  }
  const float nan = sum_of(bad);  // or 0
  return {max_of(high) + nan, max_of(low) + nan};
}

constexpr float kLeastPeak = 1e-30f;  // numbers below it are stored as zeros: the inverse of their scale would not be finite

// 8 bits: -127 to 127 times the scale. 4 bits: -8 to 7 times it, where -8 is the number that is farthest from zero. Returns bf16.
template <int bits>
uint16_t scale_of(const Extent& of) {
  const float peak = of.high > of.low ? of.high : of.low;
  if (!(peak < INFINITY)) return 0x7fc0;  // NaN
  if (peak < kLeastPeak) return 0;
  return away_from_zero(bits == 8 ? peak / 127.0f : (of.high >= of.low ? -of.high : of.low) / 8.0f);
}

// x / scale to the nearest whole number, ties to even; zeros if the scale is zero or NaN. n is a multiple of 16.
inline void round_to(const float* x, int64_t n, float scale, int32_t* out) {
  const bool any = scale < 0 || scale > 0;
  for (int64_t i = 0; i < n; i += L) {
    const V whole = any ? (load(x + i) / scale + 12582912.0f) - 12582912.0f : V{};
    *reinterpret_cast<Iu*>(out + i) = __builtin_convertvector(whole, I);
  }
}

// L numbers of two tokens, of 8 bits, for a product with two weights.
#if SHOAL_LANES == 16
using Pairs = __m512i;
inline Pairs pairs(const uint8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline void pairs_of_halves(const uint8_t* p, Pairs* low, Pairs* high) {  // of bytes that hold two numbers, plus 8 each
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), mask = _mm256_set1_epi8(15), zero = _mm256_set1_epi8(8);
  *low = _mm512_cvtepi8_epi16(_mm256_sub_epi8(_mm256_and_si256(both, mask), zero));
  *high = _mm512_cvtepi8_epi16(_mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(both, 4), mask), zero));
}
// acc[lane] += the lane's two numbers times the two weights of 16 bits in w
inline I dot2(I acc, Pairs v, int32_t w) {
  return reinterpret_cast<I>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(acc), v, _mm512_set1_epi32(w)));
}
inline void keep(int16_t* to, I v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(v)));
}
#elif SHOAL_LANES == 8
using Pairs = __m256i;
inline Pairs pairs(const uint8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void pairs_of_halves(const uint8_t* p, Pairs* low, Pairs* high) {
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), mask = _mm_set1_epi8(15), zero = _mm_set1_epi8(8);
  *low = _mm256_cvtepi8_epi16(_mm_sub_epi8(_mm_and_si128(both, mask), zero));
  *high = _mm256_cvtepi8_epi16(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(both, 4), mask), zero));
}
inline I dot2(I acc, Pairs v, int32_t w) {
  return reinterpret_cast<I>(_mm256_add_epi32(reinterpret_cast<__m256i>(acc), _mm256_madd_epi16(v, _mm256_set1_epi32(w))));
}
inline void keep(int16_t* to, I v) {
  const __m256i packed = _mm256_packs_epi32(reinterpret_cast<__m256i>(v), reinterpret_cast<__m256i>(v));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
#else
struct Pairs {
  I first, second;
};
inline Pairs pairs(const uint8_t* p) {
  int8_t n[2 * L];
  std::memcpy(n, p, sizeof n);
  return {I{n[0], n[2], n[4], n[6]}, I{n[1], n[3], n[5], n[7]}};
}
inline void pairs_of_halves(const uint8_t* p, Pairs* low, Pairs* high) {
  const I first{p[0], p[2], p[4], p[6]}, second{p[1], p[3], p[5], p[7]};
  *low = {(first & 15) - 8, (second & 15) - 8}, *high = {(first >> 4) - 8, (second >> 4) - 8};
}
inline I dot2(I acc, const Pairs& v, int32_t w) {
  int16_t both[2];
  std::memcpy(both, &w, 4);
  return acc + v.first * both[0] + v.second * both[1];
}
inline void keep(int16_t* to, I v) {
  for (int lane = 0; lane < L; ++lane) to[lane] = static_cast<int16_t>(v[lane]);
}
#endif

constexpr float kLeastWeight = 1e-34f;  // weights, times scales, that are no larger than that count as zeros: their inverse is not finite

// 8 bits for each number, `bits` for those of values, and N queries that share them. A key or value is cut into groups of 32 numbers, the
// last filled up with zeros. A group of all 32 tokens of a block: their scales, bf16 [32], then their codes, of keys [8][32 tokens][4], of
// values [16 pairs of tokens][group bytes][2]. 8 bits: a code is a byte, of a key 128 more than the number. 4 bits: a byte holds 8 more than the
// numbers i (low bits) and i + 16 (high bits). Products are made of whole numbers: queries are rounded to 8 bits in the same groups, and the
// weights of a block's values, times the values' scales, to 16 bits.
template <int bits, int N>
class RoundedCells {
 public:
  RoundedCells(const Pool& pool, const Query* queries) : groups_(groups(pool.key_dim)), value_groups_(groups(pool.value_dim)) {
    for (int t = 0; t < N; ++t) {
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t n = count(pool.key_dim, g);
        const float* x = queries[t].q + g * kBlock;
        const Extent of = extent(x, n);
        const float peak = of.high > of.low ? of.high : of.low;
        scale_[t][g] = peak < kLeastPeak ? 0.0f : peak / 127.0f;
        int32_t codes[kBlock] = {}, total = 0;
        round_to(x, n, scale_[t][g], codes);
        for (int64_t i = 0; i < kBlock; ++i) q_[t][g * kBlock + i] = static_cast<int8_t>(codes[i]), total += codes[i];
        taken_[t][g] = total * (128 - kTaken);
      }
    }
  }

  static void append(const Pool& pool, uint8_t* block, int64_t slot, const float* k, const float* v) {
    for (int64_t g = 0; g < groups(pool.key_dim); ++g, block += kKeyGroup) {
      uint8_t codes[kBlock];
      store<8>(block, slot, k + g * kBlock, count(pool.key_dim, g), 128, codes);
      for (int64_t i = 0; i < kBlock / 4; ++i) std::memcpy(block + kScales + (i * kTokens + slot) * 4, codes + i * 4, 4);
    }
    for (int64_t g = 0; g < groups(pool.value_dim); ++g, block += kGroup) {
      uint8_t codes[kBytes];
      store<bits>(block, slot, v + g * kBlock, count(pool.value_dim, g), bits == 8 ? 0 : 8, codes);
      for (int64_t i = 0; i < kBytes; ++i) block[kScales + (slot / 2 * kBytes + i) * 2 + slot % 2] = codes[i];
    }
  }

  void score(const uint8_t* block, const uint8_t* next, float (*scores)[kTokens]) const {
    for (int half = 0; half < kParts; half += kPartsAtOnce) {
      V sums[N][kPartsAtOnce];
      for (int t = 0; t < N; ++t) {
        for (int c = 0; c < kPartsAtOnce; ++c) sums[t][c] = V{};
      }
      for (int64_t g = 0; g < groups_; ++g) {
        const uint8_t* group = block + g * kKeyGroup + half * L * 4 + kScales;
        if (half == 0) ahead<bits == 4>(next + g * kKeyGroup, kScales);
        I dots[N][kPartsAtOnce];
        for (int t = 0; t < N; ++t) {
          for (int c = 0; c < kPartsAtOnce; ++c) dots[t][c] = I{} - taken_[t][g];
        }
        for (int64_t i = 0; i < kBlock / 4; ++i) {
          if (half == 0) ahead<bits == 4>(next + g * kKeyGroup + i * kTokens * 4, kTokens * 4);
          B keys[kPartsAtOnce];
          for (int c = 0; c < kPartsAtOnce; ++c) keys[c] = operand_at(group + (i * kTokens + c * L) * 4);
          for (int t = 0; t < N; ++t) {
            for (int c = 0; c < kPartsAtOnce; ++c) dots[t][c] = dot4(dots[t][c], keys[c], four(q_[t] + g * kBlock + i * 4));
          }
        }
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(block + g * kKeyGroup) + half * L;
        for (int c = 0; c < kPartsAtOnce; ++c) {
          const V scale = cells(scales + c * L);
          for (int t = 0; t < N; ++t) sums[t][c] += __builtin_convertvector(dots[t][c], V) * (scale * scale_[t][g]);
        }
      }
      for (int t = 0; t < N; ++t) {
        for (int c = 0; c < kPartsAtOnce; ++c) keep(scores[t] + (half + c) * L, sums[t][c]);
      }
    }
  }

  void add(const uint8_t* block, const uint8_t* next, const float (*weight)[kTokens], int64_t first, int64_t last,
           float (*sums)[kMostValue]) const {
    const uint8_t* group = block + groups_ * kKeyGroup;
    for (int64_t g = 0; g < value_groups_; ++g, group += kGroup) {
      alignas(64) int16_t rounded[N][kTokens];
      float unit[N];
      ahead<bits == 4>(next + (group - block), kScales);
      for (int t = 0; t < N; ++t) unit[t] = round_weights(weight[t], reinterpret_cast<const uint16_t*>(group), rounded[t]);
      for (int64_t i = 0; i < kBlock / 2; i += L) {
        I dots[N][2];
        for (int t = 0; t < N; ++t) dots[t][0] = dots[t][1] = I{};
        for (int64_t j = first / 2; j < (last + 1) / 2; ++j) {
          const uint8_t* at = group + kScales + (j * kBytes + i) * 2;
          if (i == 0) ahead<bits == 4>(next + (at - block), kBytes * 2);
          Pairs v[2];
          if (bits == 8) {
            v[0] = pairs(at), v[1] = pairs(at + 32);
          } else {
            pairs_of_halves(at, &v[0], &v[1]);
          }
          for (int t = 0; t < N; ++t) {
            int32_t two;
            std::memcpy(&two, rounded[t] + j * 2, 4);
            dots[t][0] = dot2(dots[t][0], v[0], two), dots[t][1] = dot2(dots[t][1], v[1], two);
          }
        }
        for (int t = 0; t < N; ++t) {
          float* to = sums[t] + g * kBlock + i;
          keep(to, load(to) + __builtin_convertvector(dots[t][0], V) * unit[t]);
          keep(to + 16, load(to + 16) + __builtin_convertvector(dots[t][1], V) * unit[t]);
        }
      }
    }
  }

 private:
  static constexpr int64_t kScales = kTokens * 2, kBytes = kBlock * bits / 8;
  static constexpr int64_t kKeyGroup = kScales + kTokens * kBlock, kGroup = kScales + kTokens * kBytes;

  static int64_t groups(int64_t width) { return (width + kBlock - 1) / kBlock; }
  static int64_t count(int64_t width, int64_t group) { return width - group * kBlock < kBlock ? width - group * kBlock : kBlock; }

  // The scale of n numbers of a token goes to its group, the codes to `out`: [32 * width / 8].
  template <int width>
  static void store(uint8_t* group, int64_t slot, const float* x, int64_t n, int32_t zero, uint8_t* out) {
    const uint16_t scale = scale_of<width>(extent(x, n));
    std::memcpy(group + slot * 2, &scale, 2);
    const uint32_t wide = static_cast<uint32_t>(scale) << 16;
    float by;
    std::memcpy(&by, &wide, 4);
    int32_t codes[kBlock] = {};
    round_to(x, n, by, codes);
    if (width == 8) {
      for (int64_t i = 0; i < kBlock; ++i) out[i] = static_cast<uint8_t>(codes[i] + zero);
      return;
    }
    const auto code = [&](int64_t i) { return static_cast<uint8_t>((codes[i] > 7 ? 7 : codes[i]) + zero); };
    for (int64_t i = 0; i < kBlock / 2; ++i) out[i] = static_cast<uint8_t>(code(i) | code(i + 16) << 4);
  }

  // The weights of 32 tokens, times the tokens' scales: `out` times what is returned, which is NaN if one of them is not finite.
  static float round_weights(const float* weight, const uint16_t* scales, int16_t* out) {
    V scaled[kParts];
    I peaks{};
    for (int c = 0; c < kParts; ++c) {
      const V w = load(weight + c * L);
      scaled[c] = w == 0.0f ? V{} : w * cells(scales + c * L);  // what a query does not see may have any scale
      const I magnitude = reinterpret_cast<const I&>(scaled[c]) & 0x7fffffff;
      peaks = magnitude > peaks ? magnitude : peaks;
    }
    const int32_t bits_of_peak = max_of(peaks);  // a NaN has the highest
    float peak;
    std::memcpy(&peak, &bits_of_peak, 4);
    const bool finite = bits_of_peak < 0x7f800000, any = finite && peak > kLeastWeight;
    const float inverse = any ? 32767.0f / peak : 0.0f;
    for (int c = 0; c < kParts; ++c) {
      const V whole = any ? (scaled[c] * inverse + 12582912.0f) - 12582912.0f : V{};
      keep(out + c * L, __builtin_convertvector(whole, I));
    }
    return !finite ? NAN : any ? peak / 32767.0f : 0.0f;
  }

  int64_t groups_, value_groups_;
  alignas(64) int8_t q_[N][kMostKey];
  float scale_[N][kMostKey / kBlock];
  int32_t taken_[N][kMostKey / kBlock];  // what the codes' zero adds to a product
};

}  // namespace
}  // namespace SHOAL_ISA
}  // namespace shoal
