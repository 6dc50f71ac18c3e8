// Vectors of the widest register of an instruction set, for kernels.cpp. Like kernels.cpp, they are compiled once per instruction
// set, each into its own namespace.
#pragma once

#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// SHOAL_LANES: of a vector: as many as the widest register has, so that no vector is split and spilled. SHOAL_REGISTERS: how many vectors
// there are. SHOAL_VNNI256 is set for AVX-VNNI, also where the same instruction is compiled in the encoding of AVX-512.
#if defined(__AVX512F__) && !defined(SHOAL_VNNI256)
#define SHOAL_LANES 16
#define SHOAL_REGISTERS 32
#elif defined(__AVX2__)
#define SHOAL_LANES 8
#define SHOAL_REGISTERS 16
#elif defined(__aarch64__)
#define SHOAL_LANES 4
#define SHOAL_REGISTERS 32
#else
#define SHOAL_LANES 4
#define SHOAL_REGISTERS 16
#endif

namespace shoal {
namespace SHOAL_ISA {
namespace {

constexpr int L = SHOAL_LANES;
typedef float V __attribute__((vector_size(4 * L)));
typedef int32_t I __attribute__((vector_size(4 * L)));
typedef uint32_t U __attribute__((vector_size(4 * L)));
typedef float Vu __attribute__((vector_size(4 * L), aligned(4)));  // unaligned memory
typedef int32_t Iu __attribute__((vector_size(4 * L), aligned(4)));
typedef uint16_t H __attribute__((vector_size(2 * L), aligned(2)));

inline V load(const float* p) { return *reinterpret_cast<const Vu*>(p); }
inline void keep(float* p, V v) { *reinterpret_cast<Vu*>(p) = v; }
inline V all(float x) { return V{} + x; }

inline int32_t sum_of(I v) {
#if SHOAL_LANES == 16
  return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(v));
#elif SHOAL_LANES == 8
  const __m256i all = reinterpret_cast<__m256i>(v);
  __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1)));
#elif defined(__aarch64__)
  return vaddvq_s32(reinterpret_cast<int32x4_t>(v));
#else
  return v[0] + v[1] + v[2] + v[3];
#endif
}

// The low byte of each.
inline void keep_bytes(int8_t* p, I v) {
#if SHOAL_LANES == 16
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(v)));
#elif SHOAL_LANES == 8
  const __m256i first = _mm256_setr_epi32(0x0c080400, 0, 0, 0, 0x0c080400, 0, 0, 0);
  const __m256i bytes = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(v), first);
  const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(low, high));
#else
  for (int lane = 0; lane < L; ++lane) p[lane] = static_cast<int8_t>(v[lane]);
#endif
}

inline int32_t max_of(I v) {
#if SHOAL_LANES == 16
  return _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(v));
#else
  int32_t most = v[0];
  for (int lane = 1; lane < L; ++lane) most = v[lane] > most ? v[lane] : most;
  return most;
#endif
}

#if SHOAL_LANES == 16
template <class F>
inline float folded(V v, F&& f) {  // pairwise, in the order of those below
  const __m512 all = reinterpret_cast<__m512>(v);
  const __m256 eight = f(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  const __m256 four = f(eight, _mm256_permute2f128_ps(eight, eight, 1));
  const __m256 two = f(four, _mm256_permute_ps(four, 0x4e));
  return _mm256_cvtss_f32(f(two, _mm256_permute_ps(two, 0xb1)));
}
inline float sum_of(V v) { return folded(v, [](__m256 a, __m256 b) { return _mm256_add_ps(a, b); }); }
inline float max_of(V v) { return folded(v, [](__m256 a, __m256 b) { return _mm256_max_ps(a, b); }); }
#else
inline float sum_of(V v) {  // pairwise, in a fixed order
  float a[L];
  keep(a, v);
  for (int n = L / 2; n; n /= 2) {
    for (int i = 0; i < n; ++i) a[i] += a[i + n];
  }
  return a[0];
}

inline float max_of(V v) {
  float a[L];
  keep(a, v);
  for (int n = L / 2; n; n /= 2) {
    for (int i = 0; i < n; ++i) a[i] = a[i] > a[i + n] ? a[i] : a[i + n];
  }
  return a[0];
}
#endif

inline V larger(V a, V b) { return a > b ? a : b; }

// exp to about 2 ulp (Cephes' expf: range reduction by ln 2 and a polynomial of degree 5).
inline V exp_of(V x) {
  x = x > 88.0f ? all(88.0f) : x;
  const auto tiny = x < -87.0f;
  x = tiny ? all(-87.0f) : x;
  const V n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  V r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  V p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const I power = (__builtin_convertvector(n, I) + 127) << 23;
  const V y = p * reinterpret_cast<const V&>(power);
  return tiny ? V{} : y;
}

inline V halves(const uint16_t* p) {
#if SHOAL_LANES == 16
  return reinterpret_cast<V>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif SHOAL_LANES == 8
  return reinterpret_cast<V>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  // Moves the half's bits into place; a multiplication by 2^112 corrects the exponent, including subnormals.
  const U h = __builtin_convertvector(*reinterpret_cast<const H*>(p), U);
  const U magnitude = (h & 0x7fff) << 13, sign = (h & 0x8000) << 16;
  const V scaled = reinterpret_cast<const V&>(magnitude) * 5.192296858534828e33f;
  const U bits = reinterpret_cast<const U&>(scaled) | sign;
  return reinterpret_cast<const V&>(bits);
#endif
}

}  // namespace
}  // namespace SHOAL_ISA
}  // namespace shoal
