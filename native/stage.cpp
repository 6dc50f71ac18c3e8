#include "stage.h"

#include <algorithm>
#include <stdexcept>

namespace shoal {
namespace {

constexpr int32_t kSplit = 512;      // tokens of context processed in one piece; fixed, so that results do not depend on the threads
constexpr int64_t kTileQueries = 12; // query vectors of a prefill tile, about

bool quantised(const Linear& linear) { return linear.weight && linear.weight->kind != Kind::F32; }

template <class T>
void grow(std::vector<T>& v, int64_t size) {
  if (static_cast<int64_t>(v.size()) < size) v.resize(static_cast<size_t>(size));
}

int64_t chunk(int64_t count, int threads) { return std::max<int64_t>(1, count / (8 * threads)); }

}  // namespace

Stage::Stage(const Kernels& kernels, Shape shape, int threads) : kernels_(kernels), shape_(shape), team_(threads) {
  if (shape.hidden % 16 || shape.head_dim % 16 || shape.intermediate % 16 || shape.head_dim > 256) {
    throw std::invalid_argument("hidden, head and MLP sizes must be multiples of 16, heads at most 256 wide");
  }
}

void Stage::set_head(std::vector<float> norm, Linear head) {
  final_norm_ = std::move(norm);
  head_ = std::move(head);
}

void Stage::trim(size_t first, size_t end) {
  layers_.erase(layers_.begin() + static_cast<std::ptrdiff_t>(end), layers_.end());
  layers_.erase(layers_.begin(), layers_.begin() + static_cast<std::ptrdiff_t>(first));
}

int64_t Stage::bytes() const {
  int64_t total = head_.weight ? head_.weight->bytes() : 0;
  for (const Layer& l : layers_) {
    for (const Linear* m : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) total += m->weight->bytes();
  }
  return total;
}

// Normalises a row (if norm is given) into x_ and quantises it there.
void Stage::prepare(const float* x, const std::vector<float>* norm, int64_t row, int64_t k, bool quant) {
  float* to = x_.data() + row * k;
  if (norm) {
    kernels_.rms_norm(x, norm->data(), shape_.eps, k, to);
  } else if (to != x) {
    std::copy(x, x + k, to);
  }
  if (quant) {
    const int64_t b = k / kBlock;
    kernels_.quantise(to, k, xq_.data() + row * k, xscale_.data() + row * b, xsum_.data() + row * b);
  }
}

void Stage::plan(const Batch& batch) {
  const int64_t d = shape_.head_dim;
  grow(qkv_, batch.rows * (shape_.q_heads + 2 * shape_.kv_heads) * d), grow(attended_, batch.rows * shape_.q_heads * d);
  tiles_.clear();
  splits_.assign(static_cast<size_t>(batch.sequences), 0);
  most_splits_ = 0;
  int32_t longest = 1;
  const int32_t group = static_cast<int32_t>(shape_.q_heads / shape_.kv_heads);
  const int32_t per_tile = static_cast<int32_t>(std::max<int64_t>(1, kTileQueries / group));
  for (int32_t s = 0; s < batch.sequences; ++s) {
    const int32_t rows = batch.starts[s + 1] - batch.starts[s];
    const int32_t splits = (batch.positions[s] + rows + kSplit - 1) / kSplit;
    // A decode row with a long context has too few tiles for the team, so its splits become separate tasks.
    const bool apart = rows == 1 && splits > 1 && team_.size() > 1;
    if (apart) splits_[static_cast<size_t>(s)] = splits, most_splits_ = std::max<int64_t>(most_splits_, splits);
    longest = std::max(longest, splits);
    for (int32_t head = 0; head < shape_.kv_heads; ++head) {
      for (int32_t row = 0; row < rows; row += per_tile) {
        for (int32_t split = apart ? 0 : -1; split < (apart ? splits : 0); ++split) {
          tiles_.push_back({s, head, batch.starts[s] + row, std::min(per_tile, rows - row), split});
        }
      }
    }
  }
  grow(partial_, batch.sequences * shape_.q_heads * most_splits_ * (d + 2));
  scratch_size_ = std::max<int64_t>(group, kTileQueries) * longest * (d + 2);
  grow(scratch_, scratch_size_ * team_.size());
}

// Rotates a sequence's new queries and keys, normalising them first if the family does, and stores keys and values in their blocks.
void Stage::rotate(const Layer& layer, const Pool& pool, const Batch& batch, int64_t seq) {
  const int64_t d = shape_.head_dim, q_width = shape_.q_heads * d, kv_width = shape_.kv_heads * d;
  for (int64_t r = batch.starts[seq]; r < batch.starts[seq + 1]; ++r) {
    float* row = qkv_.data() + r * (q_width + 2 * kv_width);
    const float *cos = batch.cos + r * (d / 2), *sin = batch.sin + r * (d / 2);
    for (int64_t h = 0; h < shape_.q_heads + shape_.kv_heads; ++h) {
      const auto& norm = h < shape_.q_heads ? layer.q_norm : layer.k_norm;
      if (!norm.empty()) kernels_.rms_norm(row + h * d, norm.data(), shape_.eps, d, row + h * d);
      kernels_.rope(row + h * d, cos, sin, d);
    }
    const int64_t position = batch.positions[seq] + r - batch.starts[seq];
    const int64_t block = batch.tables[seq * batch.width + position / kTokens];
    for (int64_t h = 0; h < shape_.kv_heads; ++h) {
      kernels_.append(pool, block, position % kTokens, h, row + q_width + h * d, row + q_width + kv_width + h * d);
    }
  }
}

void Stage::join(const Batch& batch, int64_t seq) {
  const int64_t splits = splits_[static_cast<size_t>(seq)], d = shape_.head_dim;
  for (int64_t h = 0; splits && h < shape_.q_heads; ++h) {
    kernels_.merge(partial_.data() + (seq * shape_.q_heads + h) * most_splits_ * (d + 2), splits, d,
                   attended_.data() + (batch.starts[seq] * shape_.q_heads + h) * d);
  }
}

void Stage::attend(const Layer& layer, const Pool& pool, const Batch& batch, const Tile& tile, float* scratch) {
  const int64_t d = shape_.head_dim, group = shape_.q_heads / shape_.kv_heads, part = d + 2;
  const int64_t q_width = shape_.q_heads * d, width = q_width + 2 * shape_.kv_heads * d;
  const int32_t* table = batch.tables + tile.sequence * batch.width;
  const int32_t position = batch.positions[tile.sequence] + tile.row - batch.starts[tile.sequence];
  const int32_t high = position + tile.rows;
  const int32_t splits = (high + kSplit - 1) / kSplit;
  std::vector<Query> queries(static_cast<size_t>(tile.rows * group));
  size_t at = 0;
  for (int32_t r = 0; r < tile.rows; ++r) {
    const int32_t end = position + r + 1;
    const int32_t first = layer.window > 0 && end > layer.window ? end - layer.window : 0;
    for (int64_t g = 0; g < group; ++g, ++at) {
      const int64_t head = tile.head * group + g;
      queries[at].q = qkv_.data() + (tile.row + r) * width + head * d;
      queries[at].out = attended_.data() + (tile.row + r) * q_width + head * d;
      queries[at].partial = nullptr;
      queries[at].first = first, queries[at].end = end;
    }
  }
  const int count = static_cast<int>(queries.size());
  if (splits == 1) {
    kernels_.attend(pool, tile.head, table, 0, kSplit, shape_.scale, queries.data(), count);
    return;
  }
  if (tile.split >= 0) {  // rows of one: partials [sequence][q head][split]
    for (int g = 0; g < count; ++g) {
      queries[static_cast<size_t>(g)].partial =
          partial_.data() + ((tile.sequence * shape_.q_heads + tile.head * group + g) * most_splits_ + tile.split) * part;
    }
    kernels_.attend(pool, tile.head, table, tile.split * kSplit, (tile.split + 1) * kSplit, shape_.scale, queries.data(), count);
    return;
  }
  for (int32_t split = 0; split < splits; ++split) {
    for (int i = 0; i < count; ++i) queries[static_cast<size_t>(i)].partial = scratch + (i * splits + split) * part;
    kernels_.attend(pool, tile.head, table, split * kSplit, (split + 1) * kSplit, shape_.scale, queries.data(), count);
  }
  for (int i = 0; i < count; ++i) kernels_.merge(scratch + i * splits * part, splits, d, queries[static_cast<size_t>(i)].out);
}

void Stage::product(const Linear& linear, Share& share, int64_t rows, bool add, float* out, int64_t stride) {
  const Matrix& w = *linear.weight;
  const Activations x = inputs();
  share.each(w.panels(), chunk(w.panels(), team_.size()), [&](int64_t p) {
    kernels_.gemm(w, p, x, 0, rows, linear.bias_at(p), add, out + p * kPanel, stride);
  });
}

void Stage::forward(float* hidden, const Batch& batch, const std::vector<uint8_t*>& pools, bool bf16) {
  const Shape& s = shape_;
  const int64_t rows = batch.rows, d = s.head_dim;
  const int64_t q_width = s.q_heads * d, kv_width = s.kv_heads * d, width = q_width + 2 * kv_width;
  plan(batch);

  const int64_t widest = std::max(s.hidden, q_width);
  grow(x_, rows * widest), grow(xq_, rows * widest), grow(xscale_, rows * widest / kBlock + rows);
  grow(xsum_, rows * widest / kBlock + rows);
  grow(mid_, 2 * rows * s.intermediate), grow(midq_, rows * s.intermediate);
  grow(midscale_, rows * s.intermediate / kBlock + rows), grow(midsum_, rows * s.intermediate / kBlock + rows);

  constexpr int64_t kPhases = 11;
  const int64_t needed = kPhases * static_cast<int64_t>(layers_.size());
  if (share_count_ < needed) shares_ = std::make_unique<Share[]>(static_cast<size_t>(needed)), share_count_ = needed;
  for (int64_t i = 0; i < needed; ++i) shares_[static_cast<size_t>(i)].reset();

  const std::function<void(int)> body = [&](int member) {
    const int threads = team_.size();
    const int64_t row_chunk = chunk(rows, threads);
    Share* next = shares_.get();
    for (size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = layers_[l];
      const Pool pool{pools[l], bf16, s.kv_heads, d};

      const bool quant_qkv = quantised(layer.q) || quantised(layer.k) || quantised(layer.v);
      next++->each(rows, row_chunk,
                   [&](int64_t r) { prepare(hidden + r * s.hidden, &layer.attention_norm, r, s.hidden, quant_qkv); });
      team_.barrier();

      product(layer.q, *next++, rows, false, qkv_.data(), width);
      product(layer.k, *next++, rows, false, qkv_.data() + q_width, width);
      product(layer.v, *next++, rows, false, qkv_.data() + q_width + kv_width, width);
      team_.barrier();

      next++->each(batch.sequences, 1, [&](int64_t seq) { rotate(layer, pool, batch, seq); });
      team_.barrier();

      next++->each(static_cast<int64_t>(tiles_.size()), 1, [&](int64_t t) {
        attend(layer, pool, batch, tiles_[static_cast<size_t>(t)], scratch_.data() + member * scratch_size_);
      });
      team_.barrier();

      next++->each(batch.sequences, 1, [&](int64_t seq) {
        join(batch, seq);
        for (int64_t r = batch.starts[seq]; r < batch.starts[seq + 1]; ++r) {
          prepare(attended_.data() + r * q_width, nullptr, r, q_width, quantised(layer.o));
        }
      });
      team_.barrier();

      product(layer.o, *next++, rows, true, hidden, s.hidden);
      team_.barrier();

      const bool quant_mlp = quantised(layer.gate) || quantised(layer.up);
      next++->each(rows, row_chunk,
                   [&](int64_t r) { prepare(hidden + r * s.hidden, &layer.mlp_norm, r, s.hidden, quant_mlp); });
      team_.barrier();

      // Gate, up, their product and its quantisation, 32 columns at a time.
      const Activations x = inputs();
      float *gate = mid_.data(), *up = mid_.data() + rows * s.intermediate;
      const int64_t pairs = (s.intermediate + kBlock - 1) / kBlock;
      next++->each(pairs, chunk(pairs, threads), [&](int64_t pair) {
        const int64_t column = pair * kBlock, columns = std::min(kBlock, s.intermediate - column);
        for (int64_t p = pair * 2; p < pair * 2 + columns / kPanel; ++p) {
          kernels_.gemm(*layer.gate.weight, p, x, 0, rows, layer.gate.bias_at(p), false, gate + p * kPanel, s.intermediate);
          kernels_.gemm(*layer.up.weight, p, x, 0, rows, layer.up.bias_at(p), false, up + p * kPanel, s.intermediate);
        }
        for (int64_t r = 0; r < rows; ++r) {
          float* at = gate + r * s.intermediate + column;
          kernels_.silu_mul(at, up + r * s.intermediate + column, columns);
          if (quantised(layer.down)) {
            const int64_t b = r * (s.intermediate / kBlock) + pair;
            kernels_.quantise(at, kBlock, midq_.data() + r * s.intermediate + column, midscale_.data() + b, midsum_.data() + b);
          }
        }
      });
      team_.barrier();

      const Activations mid{gate, midq_.data(), midscale_.data(), midsum_.data()};
      const Matrix& down = *layer.down.weight;
      next++->each(down.panels(), chunk(down.panels(), threads), [&](int64_t p) {
        kernels_.gemm(down, p, mid, 0, rows, layer.down.bias_at(p), true, hidden + p * kPanel, s.hidden);
      });
      team_.barrier();
    }
  };
  team_.run(body);
}

void Stage::attention(const Layer& layer, const float* qkv, const Batch& batch, uint8_t* pool_base, bool bf16, float* out) {
  const Pool pool{pool_base, bf16, shape_.kv_heads, shape_.head_dim};
  const int64_t q_width = shape_.q_heads * shape_.head_dim;
  plan(batch);
  std::copy(qkv, qkv + batch.rows * (q_width + 2 * shape_.kv_heads * shape_.head_dim), qkv_.data());
  Share rotated, attended, joined;
  const std::function<void(int)> body = [&](int member) {
    rotated.each(batch.sequences, 1, [&](int64_t seq) { rotate(layer, pool, batch, seq); });
    team_.barrier();
    attended.each(static_cast<int64_t>(tiles_.size()), 1, [&](int64_t t) {
      attend(layer, pool, batch, tiles_[static_cast<size_t>(t)], scratch_.data() + member * scratch_size_);
    });
    team_.barrier();
    joined.each(batch.sequences, 1, [&](int64_t seq) { join(batch, seq); });
  };
  team_.run(body);
  std::copy(attended_.data(), attended_.data() + batch.rows * q_width, out);
}

void Stage::logits(const float* hidden, const int32_t* picked, int64_t count, float* out) {
  if (!head_.weight) throw std::logic_error("this stage has no output head");
  const int64_t k = shape_.hidden, stride = head_.weight->panels() * kPanel;
  grow(x_, count * k), grow(xq_, count * k), grow(xscale_, count * k / kBlock + count), grow(xsum_, count * k / kBlock + count);
  for (int64_t i = 0; i < count; ++i) prepare(hidden + picked[i] * k, &final_norm_, i, k, quantised(head_));
  Share share;
  const std::function<void(int)> body = [&](int) { product(head_, share, count, false, out, stride); };
  team_.run(body);
}

}  // namespace shoal
