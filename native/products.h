// Products of rows with a panel of a matrix: Kernels::gemm. Compiled once per instruction set.
#pragma once
#include "dots.h"
#include "kernels.h"

namespace shoal {
namespace SHOAL_ISA {
namespace {

inline void finish(V acc, const float* bias, bool add, float* out) {
  if (bias) acc += load(bias);
  if (add) acc += load(out);
  keep(out, acc);
}

// R rows of inputs, quantised.
template <int R>
struct Inputs {
  const int8_t* q[R];
  const float* scale[R];
  const int32_t *sum[R], *less[R];

  Inputs(const Activations& x, int64_t row, int64_t k) {
    for (int r = 0; r < R; ++r) {
      const int64_t from = x.index ? x.index[row + r] : row + r, blocks = from * (k / kBlock);
      q[r] = x.q + from * k, scale[r] = x.scale + blocks, sum[r] = x.sum + blocks, less[r] = x.less + 2 * blocks;
    }
  }
};

// The output rows [lane, lane + L) of a panel, for R rows of x. Weights are stored as described in matrix.h: for each block of 32 inputs,
// groups of 4 consecutive inputs of every output row of the panel, so that one load and one dot product advance L output rows by 4 inputs.
// With 4 bits a byte holds two weights, of inputs i and i + 16 of the block; with 5 the fifth bits lie apart.
template <int R, int bits, Offset offset, bool has_table = false>
void gemm_quantised(const Matrix& w, int64_t p, int64_t lane, const Activations& x, int64_t row, const float* bias, bool add,
                    float* out, int64_t stride) {
  const int64_t blocks = w.blocks();
  const uint8_t* data = w.panel(p) + lane * 4;
  const uint16_t *scales = w.scales(p) + lane, *offsets = offset != Offset::None ? w.offsets(p) + lane : nullptr;
  const B table = operand_table(w.table);
  constexpr int64_t kBlockBytes = code_bytes(bits);
  const Inputs<R> in(x, row, w.k);
  V acc[R];
  for (int r = 0; r < R; ++r) acc[r] = V{};
  const int32_t zero = has_table ? kRaised : w.zero - (bits == 8 ? kTaken : 0);
  for (int64_t b = 0; b < blocks; ++b) {
    if (row == 0) {  // the first rows wait for memory: prefetch well ahead, into the next panels too (+15 to 25 % on Zen 4)
      for (int64_t i = 0; i < kBlockBytes; i += 64) __builtin_prefetch(data + b * kBlockBytes + 8192 + i, 0, 2);
    }
    I dots[R];
    if (offset == Offset::Zero) {
      const I zeros = __builtin_convertvector(halves(offsets + b * kPanel), I);
      for (int r = 0; r < R; ++r) dots[r] = -(zeros * in.sum[r][b]);
    } else {
      for (int r = 0; r < R; ++r) dots[r] = I{} - zero * in.sum[r][b];
    }
    const int8_t* inputs[R];
    for (int r = 0; r < R; ++r) inputs[r] = in.q[r] + b * kBlock;
    block_dots<R, 8>(dots, Operands<bits, has_table>{data + b * kBlockBytes, table}, inputs);
    const V s = halves(scales + b * kPanel);
    for (int r = 0; r < R; ++r) acc[r] += __builtin_convertvector(dots[r], V) * (s * in.scale[r][b]);
    if (offset == Offset::Minimum) {
      const V m = halves(offsets + b * kPanel);
      for (int r = 0; r < R; ++r) acc[r] += m * (in.scale[r][b] * static_cast<float>(in.sum[r][b]));
    }
  }
  for (int r = 0; r < R; ++r) finish(has_table ? acc[r] * w.unit : acc[r], bias, add, out + (row + r) * stride);
}

inline V floats(const int8_t* p) {
#if SHOAL_LANES == 16
  return reinterpret_cast<V>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#elif SHOAL_LANES == 8
  return reinterpret_cast<V>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#else
  typedef int8_t Bytes __attribute__((vector_size(L), aligned(1)));
  return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(p), I), V);
#endif
}

// As gemm_quantised, for Scaling::Factors: six bits, or four with a table.
template <int R, int bits, Offset offset = Offset::None>
void gemm_factored(const Matrix& w, int64_t p, int64_t lane, const Activations& x, int64_t row, const float* bias, bool add, float* out,
                   int64_t stride) {
  constexpr int64_t size = code_bytes(bits);
  const int64_t blocks = w.blocks();
  const uint8_t* data = w.panel(p) + lane * 4;
  const int8_t* factors = w.factors(p) + lane;
  const int8_t* minimum_factors = w.minimum_factors(p) + lane;
  const uint16_t *supers = w.supers(p) + lane, *minimum_supers = w.minimum_supers(p) + lane;
  const B table = operand_table(w.table);
  const Inputs<R> in(x, row, w.k);
  V acc[R];
  for (int r = 0; r < R; ++r) acc[r] = V{};
  for (int64_t b = 0; b < blocks; ++b) {
    const uint8_t* block = data + b * size;
    if (row == 0) {
      for (int64_t i = 0; i < size; i += 64) __builtin_prefetch(block + 8192 + i, 0, 2);
    }
    const V super = halves(supers + b * kBlock / kSuper * kPanel);
    const V minimum_super = offset == Offset::Minimum ? halves(minimum_supers + b * kBlock / kSuper * kPanel) : V{};
    V sums[R];  // from 0 on, so that each product is fused with one addition, whatever R is
    const int8_t* inputs[R];
    for (int r = 0; r < R; ++r) sums[r] = V{}, inputs[r] = in.q[r] + b * kBlock;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      I dots[R];
      for (int r = 0; r < R; ++r) {
        dots[r] = I{} + in.less[r][2 * b + half];
        if (bits == 4) dots[r] *= kRaised / 32;
      }
      block_dots<R, 4>(dots, Operands<bits, bits == 4>{block, table}, inputs, half * 4);
      const V s = super * floats(factors + (b * 2 + half) * kPanel);
      for (int r = 0; r < R; ++r) sums[r] += __builtin_convertvector(dots[r], V) * s;
      if (offset == Offset::Minimum) {
        const V m = minimum_super * floats(minimum_factors + (b * 2 + half) * kPanel) * (-1.0f / 32);
        for (int r = 0; r < R; ++r) sums[r] += m * static_cast<float>(in.less[r][2 * b + half]);
      }
    }
    for (int r = 0; r < R; ++r) acc[r] += sums[r] * in.scale[r][b];
  }
  for (int r = 0; r < R; ++r) finish(bits == 4 ? acc[r] * w.unit : acc[r], bias, add, out + (row + r) * stride);
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
      gemm_quantised<R, 8, Offset::None>(w, p, lane, x, row, b, add, out + lane, stride);
    } else if (w.kind == Kind::Q6) {
      gemm_factored<R, 6>(w, p, lane, x, row, b, add, out + lane, stride);
    } else if (w.kind == Kind::Q5) {
      if (w.offset == Offset::Minimum) {
        gemm_quantised<R, 5, Offset::Minimum>(w, p, lane, x, row, b, add, out + lane, stride);
      } else {
        gemm_quantised<R, 5, Offset::None>(w, p, lane, x, row, b, add, out + lane, stride);
      }
    } else if (w.scaling == Scaling::Factors) {
      if (w.offset == Offset::Minimum) {
        gemm_factored<R, 4, Offset::Minimum>(w, p, lane, x, row, b, add, out + lane, stride);
      } else {
        gemm_factored<R, 4>(w, p, lane, x, row, b, add, out + lane, stride);
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

// Rows of x that are multiplied together: as many as the registers hold.
constexpr int kRows = SHOAL_REGISTERS == 32 ? 8 : SHOAL_LANES == 8 ? 4 : 2;

// The last rows: an expert's are few, and of any number.
template <int R>
void gemm_rest(int64_t count, const Matrix& w, int64_t p, const Activations& x, int64_t row, const float* bias, bool add, float* out,
               int64_t stride) {
  if constexpr (R > 0) {
    if (count == R) return gemm_rows<R>(w, p, x, row, bias, add, out, stride);
    gemm_rest<R - 1>(count, w, p, x, row, bias, add, out, stride);
  }
}

void gemm(const Matrix& w, int64_t p, const Activations& x, int64_t first, int64_t end, const float* bias, bool add,
          float* out, int64_t stride) {
  int64_t row = first;
  for (; row + kRows <= end; row += kRows) gemm_rows<kRows>(w, p, x, row, bias, add, out, stride);
  gemm_rest<kRows - 1>(end - row, w, p, x, row, bias, add, out, stride);
}

}  // namespace
}  // namespace SHOAL_ISA
}  // namespace shoal
