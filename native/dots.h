// Dot products of a block's 32 signed inputs with 32 weights of each output row, for products.h. Compiled once per instruction set.
//
// A block is eight operands: vectors of L times four bytes, of which operand i has the weights that L output rows have for the inputs
// [4 * i, 4 * i + 4). Sums of products are integers, so they do not depend on the order in which a set of instructions makes them.
#pragma once
#include <cstring>

#include "vectors.h"

namespace shoal {
namespace SHOAL_ISA {
namespace {

// Inputs are never -128, see quantise().
inline int32_t four(const int8_t* q) {
  int32_t out;
  std::memcpy(&out, q, 4);
  return out;
}

// Whether operands of 8 bits are signed here. Those of 4 bits are both; stored weights of 8 bits are unsigned.
#if SHOAL_LANES == 16 || defined(SHOAL_VNNI256)
constexpr bool kSigned = false;
#elif SHOAL_LANES == 8 || defined(__aarch64__)
constexpr bool kSigned = true;
#else
constexpr bool kSigned = false;
#endif
constexpr int32_t kTaken = kSigned ? 128 : 0;   // from a stored weight of 8 bits
constexpr int32_t kRaised = kSigned ? 0 : 128;  // to a table's weights, which are signed

// The bytes of an operand, and what is done with them: read, the low or high four bits of each, the upper bit flipped, looked up in a table.
#if SHOAL_LANES == 16
typedef __m512i B;
inline B bytes_at(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline B nibbles(B v, int shift) { return _mm512_and_si512(_mm512_srli_epi16(v, shift), _mm512_set1_epi8(15)); }
inline B flipped(B v) { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }
inline B table_of(const int8_t* t) { return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t))); }
inline B looked_up(B table, B codes) { return _mm512_shuffle_epi8(table, codes); }
#elif SHOAL_LANES == 8
typedef __m256i B;
inline B bytes_at(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline B nibbles(B v, int shift) { return _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi8(15)); }
inline B flipped(B v) { return _mm256_xor_si256(v, _mm256_set1_epi8(-128)); }
inline B table_of(const int8_t* t) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t))); }
inline B looked_up(B table, B codes) { return _mm256_shuffle_epi8(table, codes); }
#elif defined(__aarch64__)
typedef uint8x16_t B;
inline B bytes_at(const uint8_t* p) { return vld1q_u8(p); }
inline B nibbles(B v, int shift) { return shift ? vshrq_n_u8(v, 4) : vandq_u8(v, vdupq_n_u8(15)); }
inline B flipped(B v) { return veorq_u8(v, vdupq_n_u8(128)); }
inline B table_of(const int8_t* t) { return vreinterpretq_u8_s8(vld1q_s8(t)); }
inline B looked_up(B table, B codes) { return vqtbl1q_u8(table, codes); }
#else
typedef uint8_t B __attribute__((vector_size(4 * L)));
typedef uint8_t Bu __attribute__((vector_size(4 * L), aligned(1)));
inline B bytes_at(const uint8_t* p) { return *reinterpret_cast<const Bu*>(p); }
inline B nibbles(B v, int shift) { return v >> static_cast<uint8_t>(shift) & 15; }
inline B flipped(B v) { return v ^ 128; }
inline B table_of(const int8_t* t) { return bytes_at(reinterpret_cast<const uint8_t*>(t)); }
inline B looked_up(B table, B codes) {
  for (int i = 0; i < 4 * L; ++i) codes[i] = table[codes[i]];
  return codes;
}
#endif

// An operand of stored weights of 8 bits.
inline B operand_at(const uint8_t* p) { return kSigned ? flipped(bytes_at(p)) : bytes_at(p); }

// Bytes two at a time: shifts take them so, and masks remove what that mixes up.
typedef uint16_t P __attribute__((vector_size(4 * L), aligned(4)));
inline P pairs_at(const uint8_t* p) { return *reinterpret_cast<const P*>(p); }

// The operands of a block, as matrix.h says that it is stored. Their number is known when they are compiled, as all loops over them are
// unrolled.
template <int bits, bool has_table>
struct Operands {
  const uint8_t* block;
  B table;

  B operator[](int i) const {
    if constexpr (bits == 8) {
      return operand_at(block + i * 64);
    } else if constexpr (bits == 6) {
      return reinterpret_cast<B>(six_bits(block + i / 4 * 192, i % 4));
    } else if constexpr (bits == 5) {
      const P plane = pairs_at(block + 256), upper = i < 4 ? plane << (4 - i) : plane >> (i - 4);
      return reinterpret_cast<B>((pairs_at(block + i % 4 * 64) >> (i / 4 * 4) & 0x0f0f) | (upper & 0x1010));
    } else {
      const B codes = nibbles(bytes_at(block + i % 4 * 64), i / 4 * 4);
      return has_table ? looked_up(table, codes) : codes;
    }
  }

 private:
  static P six_bits(const uint8_t* half, int i) {
    if (i < 3) return pairs_at(half + i * 64) & 0x3f3f;
    return (pairs_at(half) >> 6 & 0x0303) | (pairs_at(half + 64) >> 4 & 0x0c0c) | (pairs_at(half + 128) >> 2 & 0x3030);
  }
};

// What operands that come from a table are looked up in.
inline B operand_table(const int8_t* t) { return kSigned ? table_of(t) : flipped(table_of(t)); }

// acc[lane] += sum over 4 of w[lane][i] * x[i]; x is four signed bytes, of which none is -128.
inline I dot4(I acc, B w, int32_t x) {
#if SHOAL_LANES == 16
  return reinterpret_cast<I>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), w, _mm512_set1_epi32(x)));
#elif defined(__AVXVNNI__)
  return reinterpret_cast<I>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(acc), w, _mm256_set1_epi32(x)));
#elif defined(SHOAL_VNNI256)
  return reinterpret_cast<I>(_mm256_dpbusd_epi32(reinterpret_cast<__m256i>(acc), w, _mm256_set1_epi32(x)));
#elif SHOAL_LANES == 8
  // Pairs of products as 16 bits, 2 * 128 * 127 = 32512 at most. The sign goes to the input, as the weights are taken unsigned.
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(_mm256_set1_epi32(x), w));
  return reinterpret_cast<I>(_mm256_add_epi32(reinterpret_cast<__m256i>(acc), _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
#elif defined(__ARM_FEATURE_DOTPROD)
  const int8x16_t xs = vreinterpretq_s8_s32(vdupq_n_s32(x));
  return reinterpret_cast<I>(vdotq_s32(reinterpret_cast<int32x4_t>(acc), vreinterpretq_s8_u8(w), xs));
#elif defined(__aarch64__)
  const int8x16_t s = vreinterpretq_s8_u8(w), xs = vreinterpretq_s8_s32(vdupq_n_s32(x));
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(s), vget_low_s8(xs))), high = vpaddlq_s16(vmull_high_s8(s, xs));
  return reinterpret_cast<I>(vaddq_s32(reinterpret_cast<int32x4_t>(acc), vpaddq_s32(low, high)));
#elif defined(__SSE2__)
  const __m128i bytes = reinterpret_cast<__m128i>(w), xs = _mm_set1_epi32(x);
  const __m128i even = _mm_madd_epi16(_mm_and_si128(bytes, _mm_set1_epi16(255)), _mm_srai_epi16(_mm_slli_epi16(xs, 8), 8));
  const __m128i odd = _mm_madd_epi16(_mm_srli_epi16(bytes, 8), _mm_srai_epi16(xs, 8));
  return reinterpret_cast<I>(_mm_add_epi32(reinterpret_cast<__m128i>(acc), _mm_add_epi32(even, odd)));
#else
  int8_t s[4];
  std::memcpy(s, &x, 4);
  for (int lane = 0; lane < L; ++lane) {
    int32_t total = 0;
    for (int i = 0; i < 4; ++i) total += w[lane * 4 + i] * s[i];
    acc[lane] += total;
  }
  return acc;
#endif
}

// GCC would sum products in pairs, later, and spill them until then.
template <class T>
inline void sum_now([[maybe_unused]] T& sums) {
#if SHOAL_LANES == 8
  __asm__("" : "+x"(sums));
#endif
}

template <int R, int count, class W>
inline void dots_one_by_one(I* dots, const W& w, const int8_t* const* q, int first) {
#pragma GCC unroll 8
  for (int i = first; i < first + count; ++i) {
    const B operand = w[i];
    for (int r = 0; r < R; ++r) {
      dots[r] = dot4(dots[r], operand, four(q[r] + i * 4));
      sum_now(dots[r]);
    }
  }
}

// dots[r][lane] += the products of `count` of a block's operands, from `first` on, with inputs of q[r][0..31].
template <int R, int count, int bits, bool has_table>
inline void block_dots(I* dots, const Operands<bits, has_table>& w, const int8_t* const* q, int first = 0) {
#if SHOAL_LANES == 8 && !defined(SHOAL_VNNI256)
  // A weight of 4 bits is at most 15, so that the sums of eight pairs of products fit 16 bits: 8 * 2 * 15 * 127 = 30480; of 5 bits those of
  // four, of 6 bits those of two.
  constexpr int together = has_table || bits == 8 ? 0 : bits == 4 ? 8 : bits == 5 ? 4 : 2;
  if constexpr (together == 0) {
    dots_one_by_one<R, count>(dots, w, q, first);
  } else {
    __m256i pairs[R];
#pragma GCC unroll 8
    for (int i = first; i < first + count; ++i) {
      const B operand = w[i];
      for (int r = 0; r < R; ++r) {
        const __m256i products = _mm256_maddubs_epi16(operand, _mm256_set1_epi32(four(q[r] + i * 4)));
        pairs[r] = (i - first) % together ? _mm256_add_epi16(pairs[r], products) : products;
        sum_now(pairs[r]);
        if ((i - first) % together == together - 1 || i == first + count - 1) {
          dots[r] += reinterpret_cast<I>(_mm256_madd_epi16(pairs[r], _mm256_set1_epi16(1)));
        }
      }
    }
  }
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  // Two output rows times two rows of inputs, eight inputs at a time.
  for (int r = 0; r + 2 <= R; r += 2) {
    int32x4_t low = vdupq_n_s32(0), high = low;  // of the first two output rows, and of the last two: [output][input row]
#pragma GCC unroll 4
    for (int i = first; i < first + count; i += 2) {
      const uint32x4_t one = vreinterpretq_u32_u8(w[i]), two = vreinterpretq_u32_u8(w[i + 1]);
      const int8x16_t x = vcombine_s8(vld1_s8(q[r] + i * 4), vld1_s8(q[r + 1] + i * 4));
      low = vmmlaq_s32(low, vreinterpretq_s8_u32(vzip1q_u32(one, two)), x);
      high = vmmlaq_s32(high, vreinterpretq_s8_u32(vzip2q_u32(one, two)), x);
    }
    dots[r] += reinterpret_cast<I>(vuzp1q_s32(low, high));
    dots[r + 1] += reinterpret_cast<I>(vuzp2q_s32(low, high));
  }
  if (R % 2) dots_one_by_one<1, count>(dots + R - 1, w, q + R - 1, first);
#else
  dots_one_by_one<R, count>(dots, w, q, first);
#endif
}

}  // namespace
}  // namespace SHOAL_ISA
}  // namespace shoal
