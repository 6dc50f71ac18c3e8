#include "stage.h"

namespace shoal {

constexpr int64_t kFewRows = 16;

Stage::Stage(const Kernels& kernels, int64_t hidden, int threads) : kernels_(kernels), width_(hidden), team_(threads) {
  if (hidden < 16 || hidden % 16) throw std::invalid_argument("the hidden states' width must be a multiple of 16");
  space_.threads = threads;
}

Share* Stage::shares(int64_t count) {
  if (share_count_ < count) shares_ = std::make_unique<Share[]>(static_cast<size_t>(count)), share_count_ = count;
  for (int64_t i = 0; i < count; ++i) shares_[static_cast<size_t>(i)].reset();
  return shares_.get();
}

void Stage::plan(const Batch& batch, const AttentionBlock& block) {
  for (const Tiling& tiling : space_.tilings) {
    if (tiling.heads == block.heads()) return;
  }
  space_.tilings.emplace_back(block.heads(), batch, team_.size());
}

void Stage::forward(float* hidden, const Batch& batch, const std::vector<Layer>& layers, bool bf16) {
  Step step{kernels_, batch, space_, hidden, width_};
  space_.tilings.clear();
  for (const Layer& layer : layers) {
    plan(batch, *layer.attention);
    layer.attention->reserve(step), layer.feed_forward->reserve(step);
  }
  constexpr int64_t kPhases = 2 * Block::kPhases;  // of a layer
  const bool few = batch.rows <= kFewRows;
  Share* first = shares(kPhases * static_cast<int64_t>(layers.size()));
  const std::function<void(int)> body = [&](int id) {
    for (size_t l = 0; l < layers.size(); ++l) {
      const Layer& layer = layers[l];
      const Heads heads = layer.attention->heads();
      Share* own = first + kPhases * static_cast<int64_t>(l);
      Member attention(team_, own, id, few), feed_forward(team_, own + Block::kPhases, id, few);
      layer.attention->run(attention, step, {layer.pool, bf16, heads.kv, heads.key, heads.value});
      layer.feed_forward->run(feed_forward, step);
    }
  };
  team_.run(body);
}

void Stage::attention(const GroupedQuery& block, const float* qkv, const Batch& batch, uint8_t* pool, bool bf16, float* out) {
  Step step{kernels_, batch, space_, nullptr, width_};
  space_.tilings.clear();
  plan(batch, block);
  block.reserve(step);
  const Heads heads = block.heads();
  std::copy(qkv, qkv + batch.rows * block.width(), space_.qkv.data());
  Share* own = shares(Block::kPhases);
  const std::function<void(int)> body = [&](int id) {
    Member member(team_, own, id, batch.rows <= kFewRows);
    block.attend(member, step, {pool, bf16, heads.kv, heads.key, heads.value});
  };
  team_.run(body);
  std::copy(space_.attended.x.data(), space_.attended.x.data() + batch.rows * heads.q * heads.value, out);
}

void Stage::logits(const float* hidden, const Head& head, const int32_t* picked, int64_t count, float* out) {
  const Matrix& w = *head.linear.weight;
  Rows& input = space_.input;
  input.reserve(count * width_);
  for (int64_t i = 0; i < count; ++i) {
    head.norm.apply(kernels_, hidden + picked[i] * width_, input.x.data() + i * width_);
    if (head.linear.quantised()) input.quantise(kernels_, i * width_, width_);
  }
  Share share;
  const Activations x = input.from();
  const std::function<void(int)> body = [&](int) {
    share.runs(w.panels(), team_.size(), [&](int64_t p) {
      kernels_.gemm(w, p, x, 0, count, head.linear.bias_at(p), false, out + p * kPanel, w.panels() * kPanel);
    });
  };
  team_.run(body);
}

}  // namespace shoal
