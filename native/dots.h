// Dot products of four signed inputs with four weights of each output row, for products.h. Compiled once per instruction set.
#pragma once
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

}  // namespace
}  // namespace SHOAL_ISA
}  // namespace shoal
