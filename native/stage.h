// The layers of one stage, run by a team of threads for a flat batch of rows.
#pragma once
#include <memory>
#include <vector>

#include "kernels.h"
#include "team.h"

namespace shoal {

struct Linear {
  std::shared_ptr<Matrix> weight;
  std::vector<float> bias;  // empty, or padded to whole panels
  const float* bias_at(int64_t panel) const { return bias.empty() ? nullptr : bias.data() + panel * kPanel; }
};

struct Layer {
  std::vector<float> attention_norm, mlp_norm;
  std::vector<float> q_norm, k_norm;  // empty if the family has none
  Linear q, k, v, o, gate, up, down;
  int32_t window = 0;  // tokens that a query sees, including itself; 0: all
};

struct Shape {
  int64_t hidden, q_heads, kv_heads, head_dim, intermediate;
  float eps, scale;
};

// Rows of one step, grouped by sequence. All arrays are read only during the call.
struct Batch {
  int64_t rows, sequences;
  const int32_t* starts;     // [sequences + 1] first row of each sequence
  const int32_t* positions;  // [sequences] position of that row in its sequence
  const int32_t* tables;     // [sequences, width] KV blocks
  int64_t width;
  const float *cos, *sin;    // [rows, head_dim / 2]
};

class Stage {
 public:
  Stage(const Kernels& kernels, Shape shape, int threads);

  void add(Layer layer) { layers_.push_back(std::move(layer)); }
  void set_head(std::vector<float> norm, Linear head);
  // Frees all layers except [first, end).
  void trim(size_t first, size_t end);

  // hidden: [rows, hidden], replaced by the output of the last layer. pools: one per layer, [blocks, ...] in Pool's layout.
  void forward(float* hidden, const Batch& batch, const std::vector<uint8_t*>& pools, bool bf16);

  // logits: [count, vocabulary padded to 16] of the rows `picked` of hidden.
  void logits(const float* hidden, const int32_t* picked, int64_t count, float* out);

  // Only one layer's attention: qkv [rows, (q + 2 kv heads) * head_dim] in, out [rows, q heads * head_dim].
  void attention(const Layer& layer, const float* qkv, const Batch& batch, uint8_t* pool, bool bf16, float* out);

  int64_t vocabulary() const { return head_.weight ? head_.weight->n : 0; }
  int64_t bytes() const;
  const char* isa() const { return kernels_.name; }
  int threads() const { return team_.size(); }

 private:
  struct Tile {  // rows of one sequence and KV head whose attention is one task
    int32_t sequence, head, row, rows, split;  // split < 0: all splits of the context, here
  };

  void plan(const Batch& batch);
  void rotate(const Layer& layer, const Pool& pool, const Batch& batch, int64_t sequence);
  void join(const Batch& batch, int64_t sequence);
  void attend(const Layer& layer, const Pool& pool, const Batch& batch, const Tile& tile, float* scratch);
  void prepare(const float* x, const std::vector<float>* norm, int64_t row, int64_t k, bool quantised);
  Activations inputs() const { return {x_.data(), xq_.data(), xscale_.data(), xsum_.data()}; }
  void product(const Linear& linear, Share& share, int64_t rows, bool add, float* out, int64_t stride);

  const Kernels& kernels_;
  Shape shape_;
  Team team_;
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;
  Linear head_;

  std::vector<Tile> tiles_;
  std::vector<int32_t> splits_;  // per sequence: splits that were computed separately, or 0
  std::unique_ptr<Share[]> shares_;
  int64_t share_count_ = 0;
  int64_t most_splits_ = 0, scratch_size_ = 0;
  std::vector<float> x_, qkv_, attended_, mid_, partial_, scratch_;
  std::vector<int8_t> xq_, midq_;
  std::vector<float> xscale_, midscale_;
  std::vector<int32_t> xsum_, midsum_;
};

}  // namespace shoal
