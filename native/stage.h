// Runs blocks one after the other with a team of threads. It owns the threads and the memory of a step, and no weights.
#pragma once
#include <memory>
#include <vector>

#include "attention.h"
#include "feed_forward.h"

namespace shoal {

// A layer as it is run: two blocks, and the KV blocks of the first.
struct Layer {
  const AttentionBlock* attention;
  const FeedForwardBlock* feed_forward;
  uint8_t* pool;
};

struct Head {
  Norm norm;
  Linear linear;
};

class Stage {
 public:
  Stage(const Kernels& kernels, int64_t hidden, int threads);

  // hidden: [rows, width], replaced by the output of the last layer. Keys and values are bf16 or floats.
  void forward(float* hidden, const Batch& batch, const std::vector<Layer>& layers, bool bf16);

  // logits: [count, vocabulary padded to 16] of the rows `picked` of hidden.
  void logits(const float* hidden, const Head& head, const int32_t* picked, int64_t count, float* out);

  // Only one layer's attention: qkv [rows, block.width()] in, out [rows, q heads * value].
  void attention(const GroupedQuery& block, const float* qkv, const Batch& batch, uint8_t* pool, bool bf16, float* out);

  int64_t width() const { return width_; }
  const char* isa() const { return kernels_.name; }

 private:
  void plan(const Batch& batch, const AttentionBlock& block);
  Share* shares(int64_t count);

  const Kernels& kernels_;
  int64_t width_;
  Team team_;
  Workspace space_;
  std::unique_ptr<Share[]> shares_;
  int64_t share_count_ = 0;
};

}  // namespace shoal
