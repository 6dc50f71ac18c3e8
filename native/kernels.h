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
  const int32_t* less = nullptr;  // [rows, k/16] -32 times the sum of 16 q: what makes codes of six bits signed
  const int32_t* index = nullptr; // which of these rows each row of the product is; null: they are in order
};

constexpr int64_t kTokens = 32;      // tokens of a KV block
constexpr int64_t kMostKey = 1024;   // numbers of a key
constexpr int64_t kMostValue = 512;  // numbers of a value

// How keys and values are stored. Q8 and Q4: 8 bits for each number, of Q4 4 bits for those of values, and a bf16 scale for each 32 of one
// token. (Keys of 4 bits make some models useless: Qwen2.5's have numbers a hundred times as large as the others beside them.) What is
// stored of a token depends on its key and value alone, so a block has the same bytes however its tokens came into it.
enum class KvType : uint8_t { Fp32, Bf16, Q8, Q4 };
KvType kv_type(const std::string& name);  // throws std::invalid_argument

// Bytes of one KV head's keys and values in a block.
constexpr int64_t kv_head_bytes(KvType type, int64_t key_dim, int64_t value_dim) {
  if (type == KvType::Fp32 || type == KvType::Bf16) return kTokens * (key_dim + value_dim) * (type == KvType::Bf16 ? 2 : 4);
  const int64_t keys = (key_dim + kBlock - 1) / kBlock, values = (value_dim + kBlock - 1) / kBlock;
  return kTokens * (keys * (2 + kBlock) + values * (2 + kBlock * (type == KvType::Q8 ? 8 : 4) / 8));
}

// Paged keys and values of one layer: [blocks, kv_heads, kv_head_bytes]. Keys of a block are stored transposed, so that 16 tokens' scores
// are one vector. Floats and bf16: keys [key_dim][32 tokens], values [32 tokens][value_dim]. Q8 and Q4: see RoundedCells.
struct Pool {
  uint8_t* base;
  KvType type;
  int64_t kv_heads, key_dim, value_dim;
  int64_t head_bytes() const { return kv_head_bytes(type, key_dim, value_dim); }
  uint8_t* at(int64_t block, int64_t head) const { return base + (block * kv_heads + head) * head_bytes(); }
};

// Query vectors that share a KV head and a block table; each attends to the keys in [first, end).
struct Query {
  const float* q;
  float* out;         // [value_dim], written if partial is null
  float* partial;     // [value_dim + 2]: weighted values, maximum, sum of weights
  const float* sink;  // a score without a value, which takes its share of the weights; or null
  int32_t first, end;
};

// How products of queries and keys become scores: times the scale, then cap * tanh(score / cap) unless the cap is 0.
struct Scoring {
  float scale = 1, cap = 0;
};

// A row's experts are summed as multiples of 2^-kGrid, in doubles, whose 53 bits hold every sum below 2^(53 - kGrid): such sums are exact,
// so they do not depend on the order, nor on which of them were made elsewhere and only then added. (Reproducible summation with one bin
// of a fixed place: Demmel and Nguyen, "Fast reproducible floating-point summation", 2013.) Rounding a term costs at most 2^-33; the
// residual that the sum is added to has floats, which above 2^-9 are farther apart than that.
constexpr int kGrid = 32;

// What a gated MLP does to its gate before it multiplies: SiLU, GELU by tanh, or gpt-oss's: both are clamped at 7, and
// (up + 1) * gate * sigmoid(1.702 * gate).
enum class Activation : uint8_t { Silu, Gelu, Clamped };

struct Kernels {
  const char* name;
  int tile;  // queries that attend() takes at once

  // out[row * stride + 0..15] (+)= row of x times panel p. `add`: adds to the existing values.
  void (*gemm)(const Matrix& w, int64_t p, const Activations& x, int64_t first, int64_t end, const float* bias, bool add,
               float* out, int64_t stride);
  void (*quantise)(const float* x, int64_t k, int8_t* q, float* scale, int32_t* sum, int32_t* less);
  // out = x / rms(x) * weight
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  // out = (x - mean) / deviation * weight + bias; bias may be null
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* out);
  // gate = activation(gate) * up; n is a multiple of 16
  void (*activate)(Activation kind, float* gate, const float* up, int64_t n);
  // Rotates the two halves of a head's first `rotated` values in place: cos and sin are [rotated / 2].
  void (*rope)(float* head, const float* cos, const float* sin, int64_t rotated);
  void (*append)(const Pool& pool, int64_t block, int64_t slot, int64_t head, const float* k, const float* v);
  // One KV head over the tokens [begin, end) of a sequence; a query attends only to the part inside its own range.
  void (*attend)(const Pool& pool, int64_t head, const int32_t* table, int32_t begin, int32_t end,
                 const Scoring& scoring, const Query* queries, int count);
  // Joins `splits` partial results into out, in order.
  void (*merge)(const float* partials, int64_t splits, int64_t value_dim, const float* sink, float* out);
  // sums[index[i]][0..15] += weights[i] * part[i][0..15], rounded to a grid on which sums are exact: see kGrid.
  void (*weigh)(const float* part, const float* weights, const int32_t* index, int64_t count, double* sums);
  int64_t (*argmax)(const float* x, int64_t n);
};

// The best set for this processor, or the named one. Throws std::invalid_argument if it is unknown or cannot run here.
const Kernels& choose(const std::string& name);

}  // namespace shoal
