// Codes of five and six bits, brought together as bytes, and dot products with them, for products.h. Compiled once per instruction set.
#pragma once
#include <type_traits>
#include <utility>

#include "vectors.h"

namespace shoal {
namespace SHOAL_ISA {
namespace {

typedef uint16_t B __attribute__((vector_size(4 * L), aligned(4)));  // bytes: shifts take two at once, and masks remove what that mixes up

// f(0), f(1) and so on of some groups, each number a constant of its own type.
template <int... groups, class F>
inline void for_groups(std::integer_sequence<int, groups...>, F&& f) {
  (f(std::integral_constant<int, groups>{}), ...);
}

// Group j of a block is its weights from 4 * j on, of L output rows: [L][4]. How a block has them is in matrix.h.
template <int j>
inline B five_bits(const uint8_t* block) {
  const B nibbles = *reinterpret_cast<const B*>(block + j % 4 * 64) >> (j / 4 * 4), plane = *reinterpret_cast<const B*>(block + 256);
  return (nibbles & 0x0f0f) | ((j < 4 ? plane << (4 - j % 4) : plane >> (j % 4)) & 0x1010);
}

template <int j>
inline B six_bits(const uint8_t* block) {
  const auto* part = reinterpret_cast<const B*>(block + j / 4 * 192);
  constexpr int64_t step = 64 / sizeof(B);
  if constexpr (j % 4 < 3) {
    return part[j % 4 * step] & 0x3f3f;
  } else {
    return (part[0] >> 6 & 0x0303) | (part[step] >> 4 & 0x0c0c) | (part[2 * step] >> 2 & 0x3030);
  }
}

// acc[lane] += sum over 4 of codes[lane][i] * x[i]; codes are below 128, and 256 * 127 of them fit 16 bits; x four signed bytes.
inline I dot4_codes(I acc, B codes, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
#if defined(__AVX512VNNI__)
  return reinterpret_cast<I>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(codes), _mm512_set1_epi32(four)));
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_maddubs_epi16(reinterpret_cast<__m256i>(codes), _mm256_set1_epi32(four));
  return reinterpret_cast<I>(_mm256_add_epi32(reinterpret_cast<__m256i>(acc), _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
#elif defined(__ARM_FEATURE_DOTPROD)
  const int8x16_t xs = vreinterpretq_s8_s32(vdupq_n_s32(four));
  return reinterpret_cast<I>(vdotq_s32(reinterpret_cast<int32x4_t>(acc), reinterpret_cast<int8x16_t>(codes), xs));
#else
  uint8_t each[4 * L];
  std::memcpy(each, &codes, sizeof each);
  for (int lane = 0; lane < L; ++lane) {
    int32_t total = 0;
    for (int i = 0; i < 4; ++i) total += each[lane * 4 + i] * x[i];
    acc[lane] += total;
  }
  return acc;
#endif
}

}  // namespace
}  // namespace SHOAL_ISA
}  // namespace shoal
