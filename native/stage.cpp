#include "stage.h"

namespace shoal {

namespace {

using Clock = std::chrono::steady_clock;

// Adds what passes from one part of a step to the next.
class Watch {
 public:
  void lap(std::chrono::nanoseconds& into) {
    const auto now = Clock::now();
    into += now - began_, began_ = now;
  }

 private:
  Clock::time_point began_ = Clock::now();
};

// Adds what passes until the end of its scope.
class Timed {
 public:
  explicit Timed(std::chrono::nanoseconds& into) : into_(into) {}
  ~Timed() { watch_.lap(into_); }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  std::chrono::nanoseconds& into_;
  Watch watch_;
};

}  // namespace

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

void Stage::forward(float* hidden, const Batch& batch, const std::vector<Layer>& layers, KvType type) {
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
    Watch watch;
    const auto lap = [&](std::chrono::nanoseconds& into) {
      if (id == 0) watch.lap(into);  // every block ends with a barrier
    };
    for (size_t l = 0; l < layers.size(); ++l) {
      const Layer& layer = layers[l];
      const Heads heads = layer.attention->heads();
      Share* own = first + kPhases * static_cast<int64_t>(l);
      Member attention(team_, own, id, few), feed_forward(team_, own + Block::kPhases, id, few);
      layer.attention->run(attention, step, {layer.pool, type, heads.kv, heads.key, heads.value});
      lap(spent_.attention);
      layer.feed_forward->run(feed_forward, step);
      lap(layer.feed_forward->routed() ? spent_.experts : spent_.feed_forward);
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
                                             uint8_t* pool, KvType type) {
  Step step{kernels_, batch, space_, hidden, width_};
  space_.tilings.clear();
  plan(batch, attention);
  attention.reserve(step), experts.reserve(step);
  const Heads heads = attention.heads();
  Watch watch;
  run(batch.rows, [&](Member& member) { attention.run(member, step, {pool, type, heads.kv, heads.key, heads.value}); });
  watch.lap(spent_.attention);
  run(batch.rows, [&](Member& member) { experts.choose(member, step); });
  watch.lap(spent_.experts);
  computed_.assign(space_.groups.size(), false), rows_ = batch.rows;
  return space_.groups;
}

const ExpertRows& Stage::unfinished(int64_t place) const {
  if (place < 0 || place >= static_cast<int64_t>(computed_.size())) throw std::invalid_argument("no expert of that place was chosen");
  if (computed_[static_cast<size_t>(place)]) throw std::invalid_argument("an expert was computed before");
  return space_.groups[static_cast<size_t>(place)];
}

void Stage::compute(float* hidden, const Experts& experts, const std::vector<int64_t>& places) {
  const Timed timed(spent_.experts);
  std::vector<ExpertRows> groups;
  for (const int64_t at : places) {
    groups.push_back(unfinished(at));
    if (!experts.set.here(groups.back().expert)) throw std::invalid_argument("an expert is not here");
    if (groups.size() > 1 && groups[groups.size() - 2].expert >= groups.back().expert) throw std::invalid_argument("the experts do not rise");
  }
  for (const int64_t at : places) computed_[static_cast<size_t>(at)] = true;
  const bool last = awaited() == 0;
  const Batch batch{rows_, 0, nullptr, nullptr, nullptr, 0, {}};
  Step step{kernels_, batch, space_, hidden, width_};
  run(rows_, [&](Member& member) { experts.compute(member, step, groups, last); });
}

Dispatch Stage::dispatch(const Experts& experts, const std::vector<int64_t>& places) {
  const Timed timed(spent_.experts);
  Dispatch out;
  std::vector<int32_t> at(static_cast<size_t>(rows_), -1);
  const float* weights = experts.weights(space_, rows_);
  for (const int64_t place : places) {
    const ExpertRows& group = unfinished(place);
    if (group.expert >= experts.count()) throw std::invalid_argument("the shared expert does not go elsewhere");
    for (int64_t i = group.first; i < group.first + group.count; ++i) at[static_cast<size_t>(space_.index[static_cast<size_t>(i)])] = 0;
  }
  for (int64_t r = 0; r < rows_; ++r) {
    if (at[static_cast<size_t>(r)] == 0) at[static_cast<size_t>(r)] = static_cast<int32_t>(out.rows.size()), out.rows.push_back(static_cast<int32_t>(r));
  }
  out.offsets.push_back(0);
  for (const int64_t place : places) {
    const ExpertRows& group = unfinished(place);
    if (!out.experts.empty() && out.experts.back() >= group.expert) throw std::invalid_argument("the experts do not rise");
    out.experts.push_back(static_cast<int32_t>(group.expert));
    for (int64_t i = group.first; i < group.first + group.count; ++i) {
      out.index.push_back(at[static_cast<size_t>(space_.index[static_cast<size_t>(i)])]);
      out.weights.push_back(weights[i]);
    }
    out.offsets.push_back(static_cast<int32_t>(out.index.size()));
  }
  return out;
}

void Stage::add(float* hidden, const Experts& experts, const std::vector<int64_t>& places, const int32_t* rows, int64_t count,
                const double* sums) {
  const Timed timed(spent_.experts);
  for (const int64_t at : places) unfinished(at);
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] < 0 || rows[i] >= rows_) throw std::invalid_argument("a row is outside the step");
  }
  for (const int64_t at : places) computed_[static_cast<size_t>(at)] = true;
  for (int64_t p = 0; p < width_ / kPanel; ++p) {
    double* to = space_.sums.data() + p * rows_ * kPanel;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t lane = 0; lane < kPanel; ++lane) to[rows[i] * kPanel + lane] += sums[i * width_ + p * kPanel + lane];
    }
  }
  finish(hidden, experts);
}

std::vector<int32_t> Stage::drop(float* hidden, const Experts& experts, const std::vector<int64_t>& places) {
  const Timed timed(spent_.experts);
  const float* weights = experts.weights(space_, rows_);
  std::vector<double> all(static_cast<size_t>(rows_)), dropped(static_cast<size_t>(rows_));
  const auto count = [&](const ExpertRows& group, std::vector<double>& into) {
    for (int64_t i = group.first; i < group.first + group.count; ++i) {
      into[static_cast<size_t>(space_.index[static_cast<size_t>(i)])] += static_cast<double>(weights[i]);
    }
  };
  for (const int64_t at : places) {
    if (unfinished(at).expert >= experts.count()) throw std::invalid_argument("the shared expert is never elsewhere");
    count(space_.groups[static_cast<size_t>(at)], dropped);
  }
  for (const int64_t at : places) computed_[static_cast<size_t>(at)] = true;
  for (size_t at = 0; at < computed_.size(); ++at) {
    const bool shared = space_.groups[at].expert >= experts.count();
    if (computed_[at] == shared) throw std::invalid_argument("experts are dropped when all others but the shared one are computed");
    if (!shared) count(space_.groups[at], all);
  }
  std::vector<int32_t> rows;
  for (int64_t r = 0; r < rows_; ++r) {
    const double left = all[static_cast<size_t>(r)] - dropped[static_cast<size_t>(r)];
    if (dropped[static_cast<size_t>(r)] == 0) continue;
    rows.push_back(static_cast<int32_t>(r));
    const double factor = left > 1e-6 * all[static_cast<size_t>(r)] ? all[static_cast<size_t>(r)] / left : 0.0;
    for (int64_t p = 0; p < width_ / kPanel; ++p) {
      double* sums = space_.sums.data() + (p * rows_ + r) * kPanel;
      for (int64_t lane = 0; lane < kPanel; ++lane) sums[lane] *= factor;
    }
  }
  finish(hidden, experts);
  return rows;
}

// Writes the result, if nothing is awaited any more.
void Stage::finish(float* hidden, const Experts& experts) {
  if (awaited() != 0) return;
  const Batch batch{rows_, 0, nullptr, nullptr, nullptr, 0, {}};
  Step step{kernels_, batch, space_, hidden, width_};
  run(rows_, [&](Member& member) { experts.compute(member, step, {}, true); });
}

void Stage::partial(const ExpertSet& set, const Dispatch& of, int64_t rows, const float* x, const int8_t* q, const float* scale,
                    double* sums) {
  const int64_t picked = static_cast<int64_t>(of.index.size());
  set.reserve(space_, rows, picked);
  std::vector<ExpertRows> groups;
  for (size_t e = 0; e < of.experts.size(); ++e) {
    if (of.offsets[e + 1] == of.offsets[e]) continue;
    groups.push_back({of.experts[e], of.offsets[e], of.offsets[e + 1] - of.offsets[e], of.offsets[e] * set.width()});
  }
  std::copy(of.index.begin(), of.index.end(), space_.index.begin());
  Rows& input = space_.input;
  if (x) {
    std::copy(x, x + rows * width_, input.x.data());
    for (int64_t r = 0; set.quantised() && r < rows; ++r) input.quantise(kernels_, r * width_, width_);
  } else {
    std::copy(q, q + rows * width_, input.q.data());
    std::copy(scale, scale + rows * width_ / kBlock, input.scale.data());
    for (int64_t b = 0; b < rows * width_ / kBlock; ++b) {
      int32_t first = 0, second = 0;
      for (int64_t i = 0; i < kBlock / 2; ++i) first += q[b * kBlock + i], second += q[b * kBlock + kBlock / 2 + i];
      const size_t at = static_cast<size_t>(b);
      input.sum[at] = first + second, input.less[2 * at] = -32 * first, input.less[2 * at + 1] = -32 * second;
    }
  }
  std::fill_n(space_.sums.data(), rows * width_, 0.0);
  const Batch batch{rows, 0, nullptr, nullptr, nullptr, 0, {}};
  Step step{kernels_, batch, space_, nullptr, width_};
  run(rows, [&](Member& member) {
    set.compute(member, step, groups, of.weights.data(), [&](int64_t p) {
      const double* from = space_.sums.data() + p * rows * kPanel;
      for (int64_t r = 0; r < rows; ++r) std::copy(from + r * kPanel, from + (r + 1) * kPanel, sums + r * width_ + p * kPanel);
    });
  });
}

void Stage::attention(const GroupedQuery& block, const float* qkv, const Batch& batch, uint8_t* pool, KvType type, float* out) {
  Step step{kernels_, batch, space_, nullptr, width_};
  space_.tilings.clear();
  plan(batch, block);
  block.reserve(step);
  const Heads heads = block.heads();
  std::copy(qkv, qkv + batch.rows * block.width(), space_.qkv.data());
  run(batch.rows, [&](Member& member) { block.attend(member, step, {pool, type, heads.kv, heads.key, heads.value}); });
  std::copy(space_.attended.x.data(), space_.attended.x.data() + batch.rows * heads.q * heads.value, out);
}

void Stage::logits(const float* hidden, const Head& head, const int32_t* picked, int64_t count, float* out) {
  const Timed timed(spent_.head);
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
