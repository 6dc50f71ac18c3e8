// The inner loops: one table of functions per instruction set.
//
// Each result of a row is computed by the same operations in the same order however many rows share a call, so a token
// does not depend on the batch that it was in.
#pragma once
#include <cstdint>
#include <string>

#include "matrix.h"

namespace shoal {

// Inputs of a matrix product. Q8 and Q4 weights multiply the quantised form (one scale per 32 values).
struct Activations {
  const float* x = nullptr;       // [rows, k]
  const int8_t* q = nullptr;      // [rows, k]
  const float* scale = nullptr;   // [rows, k/32]
  const int32_t* sum = nullptr;   // [rows, k/32] sum of a block's q
};

// Paged keys and values of one layer: [blocks, kv_heads, 2, 32 * head_dim] of float or bf16. Keys of a block are stored
// transposed, [head_dim][32], so that 16 tokens' scores are one vector; values are [32][head_dim].
constexpr int64_t kTokens = 32;  // tokens of a KV block
struct Pool {
  uint8_t* base;
  bool bf16;
  int64_t kv_heads, head_dim;
  int64_t head_bytes() const { return 2 * kTokens * head_dim * (bf16 ? 2 : 4); }
  uint8_t* at(int64_t block, int64_t head) const { return base + (block * kv_heads + head) * head_bytes(); }
};

// Query vectors that share a KV head and a block table; each attends to the keys in [first, end).
struct Query {
  const float* q;
  float* out;       // [head_dim], written if partial is null
  float* partial;   // [head_dim + 2]: weighted values, maximum, sum of weights
  int32_t first, end;
};

struct Kernels {
  const char* name;
  int tile;  // queries that attend() takes at once

  // out[row * stride + 0..15] (+)= row of x times panel p. `add`: adds to the existing values.
  void (*gemm)(const Matrix& w, int64_t p, const Activations& x, int64_t first, int64_t end, const float* bias, bool add,
               float* out, int64_t stride);
  void (*quantise)(const float* x, int64_t k, int8_t* q, float* scale, int32_t* sum);
  // out = x / rms(x) * weight
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  // gate = silu(gate) * up
  void (*silu_mul)(float* gate, const float* up, int64_t n);
  // Rotates the two halves of a head in place: cos and sin are [head_dim / 2].
  void (*rope)(float* head, const float* cos, const float* sin, int64_t head_dim);
  void (*append)(const Pool& pool, int64_t block, int64_t slot, int64_t head, const float* k, const float* v);
  // One KV head over the tokens [begin, end) of a sequence; a query attends only to the part inside its own range.
  void (*attend)(const Pool& pool, int64_t head, const int32_t* table, int32_t begin, int32_t end, float scale,
                 const Query* queries, int count);
  // Joins `splits` partial results into out, in order.
  void (*merge)(const float* partials, int64_t splits, int64_t head_dim, float* out);
  int64_t (*argmax)(const float* x, int64_t n);
};

// The best set for this processor, or the named one. Throws std::invalid_argument if it is unknown or cannot run here.
const Kernels& choose(const std::string& name);

}  // namespace shoal
