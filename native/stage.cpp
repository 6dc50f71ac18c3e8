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

// One block's phases, or a part of them.
void Stage::run(int64_t rows, const std::function<void(Member&)>& body) {
  Share* own = shares(Block::kPhases);
  const std::function<void(int)> member_body = [&](int id) {
    Member member(team_, own, id, rows <= kFewRows);
    body(member);
  };
  team_.run(member_body);
}

const std::vector<ExpertRows>& Stage::choose(float* hidden, const Batch& batch, const AttentionBlock& attention, const Experts& experts,
                                             uint8_t* pool, bool bf16) {
  Step step{kernels_, batch, space_, hidden, width_};
  space_.tilings.clear();
  plan(batch, attention);
  attention.reserve(step), experts.reserve(step);
  const Heads heads = attention.heads();
  run(batch.rows, [&](Member& member) { attention.run(member, step, {pool, bf16, heads.kv, heads.key, heads.value}); });
  run(batch.rows, [&](Member& member) { experts.choose(member, step); });
  computed_.assign(space_.groups.size(), false), rows_ = batch.rows;
  return space_.groups;
}

void Stage::compute(float* hidden, const Experts& experts, const std::vector<int64_t>& places) {
  std::vector<ExpertRows> groups;
  for (const int64_t at : places) {
    if (at < 0 || at >= static_cast<int64_t>(computed_.size())) throw std::invalid_argument("no expert of that place was chosen");
    if (computed_[static_cast<size_t>(at)]) throw std::invalid_argument("an expert was computed before");
    groups.push_back(space_.groups[static_cast<size_t>(at)]);
    if (!experts.here(groups.back().expert)) throw std::invalid_argument("an expert is not here");
    if (groups.size() > 1 && groups[groups.size() - 2].expert >= groups.back().expert) throw std::invalid_argument("the experts do not rise");
  }
  const bool first = awaited() == static_cast<int64_t>(computed_.size());
  for (const int64_t at : places) computed_[static_cast<size_t>(at)] = true;
  const bool last = awaited() == 0;
  const Batch batch{rows_, 0, nullptr, nullptr, nullptr, 0, {}};
  Step step{kernels_, batch, space_, hidden, width_};
  run(rows_, [&](Member& member) { experts.compute(member, step, groups, first, last); });
}

void Stage::attention(const GroupedQuery& block, const float* qkv, const Batch& batch, uint8_t* pool, bool bf16, float* out) {
  Step step{kernels_, batch, space_, nullptr, width_};
  space_.tilings.clear();
  plan(batch, block);
  block.reserve(step);
  const Heads heads = block.heads();
  std::copy(qkv, qkv + batch.rows * block.width(), space_.qkv.data());
  run(batch.rows, [&](Member& member) { block.attend(member, step, {pool, bf16, heads.kv, heads.key, heads.value}); });
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
