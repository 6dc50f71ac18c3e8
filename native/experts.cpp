#include <cmath>

#include "feed_forward.h"

namespace shoal {
namespace {

void softmax(float* x, int64_t n) {
  const float peak = *std::max_element(x, x + n);
  float total = 0;
  for (int64_t i = 0; i < n; ++i) x[i] = std::exp(x[i] - peak), total += x[i];
  for (int64_t i = 0; i < n; ++i) x[i] /= total;
}

// The `count` largest of x, by falling value, equal ones by rising index.
void largest(const float* x, int64_t n, int64_t count, int32_t* out) {
  int64_t held = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (held == count && !(x[i] > x[out[count - 1]])) continue;
    int64_t at = held < count ? held++ : count - 1;
    for (; at > 0 && x[i] > x[out[at - 1]]; --at) out[at] = out[at - 1];
    out[at] = static_cast<int32_t>(i);
  }
}

uint64_t next_id() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

Experts::Experts(Around around, Parts parts, Routing routing, Activation activation)
    : FeedForwardBlock(std::move(around)), id(next_id()), parts_(std::move(parts)), routing_(routing), activation_(activation),
      counts_(parts_.experts.size()) {
  const auto require = [](bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
  };
  const int64_t count = this->count(), k = parts_.router.weight ? parts_.router.weight->k : 0;
  require(count > 0 && parts_.router && parts_.router.weight->n == count, "the router does not have a row for each expert");
  require(parts_.router.weight->kind == Kind::F32, "the router must not be rounded");
  require(routing_.chosen > 0 && routing_.chosen <= count, "more experts are chosen than there are");
  require(routing_.groups > 0 && count % routing_.groups == 0 && routing_.groups_chosen > 0 && routing_.groups_chosen <= routing_.groups &&
              routing_.chosen <= count / routing_.groups * routing_.groups_chosen,
          "the groups of experts do not hold together");
  require(parts_.selection_bias.empty() || static_cast<int64_t>(parts_.selection_bias.size()) == count, "a selection bias for each expert");
  for (const GatedMlp& expert : parts_.experts) {
    if (!parts_.width && expert.gate && expert.gate.weight) parts_.width = expert.width();
  }
  require(parts_.width > 0 && parts_.width % 16 == 0, "the experts' width is no multiple of 16");
  for (int64_t e = 0; e < count; ++e) {
    if (here(e)) place(e, parts_.experts[static_cast<size_t>(e)]);
  }
  if (parts_.shared.gate) parts_.shared.check(k);
  require(!parts_.shared_gate || (parts_.shared.gate && parts_.shared_gate.weight->n == 1 && parts_.shared_gate.weight->k == k &&
                                  parts_.shared_gate.weight->kind == Kind::F32),
          "the shared expert's gate has the wrong shape");
}

void Experts::place(int64_t expert, GatedMlp mlp) {
  if (expert < 0 || expert >= count()) throw std::invalid_argument("there is no such expert");
  if (mlp.gate) {
    mlp.check(hidden());
    if (mlp.width() != parts_.width) throw std::invalid_argument("the experts differ in width");
  }
  parts_.experts[static_cast<size_t>(expert)] = std::move(mlp);
}

int64_t Experts::bytes() const {
  int64_t total = parts_.router.bytes() + parts_.shared_gate.bytes() + parts_.shared.bytes();
  for (const GatedMlp& expert : parts_.experts) total += expert.bytes();
  return total;
}

std::vector<uint64_t> Experts::counts() const {
  std::vector<uint64_t> out(counts_.size());
  for (size_t e = 0; e < out.size(); ++e) out[e] = counts_[e].load(std::memory_order_relaxed);
  return out;
}

void Experts::reserve(Step& step) const {
  const int64_t rows = step.batch.rows, picked = rows * routing_.chosen, all = picked + (parts_.shared.gate ? rows : 0);
  Workspace& space = step.space;
  reserve_branch(step);
  const int64_t padded = parts_.router.weight->panels() * kPanel;
  grow(space.routed, rows * padded + rows * kPanel);  // the router's logits, then the shared gate's
  grow(space.chosen, picked), grow(space.weights, picked + all), grow(space.index, all), grow(space.offsets, count() + 1);
  const int64_t mid = picked * parts_.width + (parts_.shared.gate ? rows * parts_.shared.width() : 0);
  space.mid.reserve(mid);
  grow(space.scratch, std::max(mid, step.space.threads * rows * kPanel));
  grow(space.sums, rows * step.width);
}

// Chooses a row's experts and their weights.
void Experts::route(Step& step, int64_t row) const {
  const int64_t count = this->count(), k = routing_.chosen;
  float* scores = step.space.routed.data() + row * parts_.router.weight->panels() * kPanel;
  int32_t* chosen = step.space.chosen.data() + row * k;
  float* weights = step.space.weights.data() + row * k;
  if (routing_.sigmoid) {
    for (int64_t e = 0; e < count; ++e) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
  } else if (!routing_.softmax_after) {
    softmax(scores, count);
  }
  std::vector<float> compared;
  const float* by = scores;
  if (!parts_.selection_bias.empty() || routing_.groups > routing_.groups_chosen) {
    compared.assign(scores, scores + count);
    for (size_t e = 0; e < parts_.selection_bias.size(); ++e) compared[e] += parts_.selection_bias[e];
    by = compared.data();
  }
  if (routing_.groups > routing_.groups_chosen) {
    const int64_t size = count / routing_.groups;
    std::vector<float> groups(static_cast<size_t>(routing_.groups));
    std::vector<int32_t> best(static_cast<size_t>(std::max(routing_.groups, int64_t{2})));
    for (int64_t g = 0; g < routing_.groups; ++g) {
      const float* of = compared.data() + g * size;
      largest(of, size, std::min(size, int64_t{routing_.group_by_two ? 2 : 1}), best.data());
      groups[static_cast<size_t>(g)] = of[best[0]] + (routing_.group_by_two && size > 1 ? of[best[1]] : 0.0f);
    }
    largest(groups.data(), routing_.groups, routing_.groups_chosen, best.data());
    std::vector<bool> open(static_cast<size_t>(routing_.groups));
    for (int64_t g = 0; g < routing_.groups_chosen; ++g) open[static_cast<size_t>(best[static_cast<size_t>(g)])] = true;
    for (int64_t e = 0; e < count; ++e) {
      if (!open[static_cast<size_t>(e / size)]) compared[static_cast<size_t>(e)] = -INFINITY;
    }
  }
  largest(by, count, k, chosen);
  for (int64_t i = 0; i < k; ++i) weights[i] = scores[chosen[i]];
  if (routing_.softmax_after) softmax(weights, k);
  if (routing_.renormalised) {
    float total = routing_.sigmoid ? 1e-20f : 0.0f;
    for (int64_t i = 0; i < k; ++i) total += weights[i];
    for (int64_t i = 0; i < k; ++i) weights[i] /= total;
  }
  for (int64_t i = 0; i < k; ++i) weights[i] *= routing_.scale;
}

// Sorts the rows by expert: experts by rising number, an expert's rows by rising number. The shared expert comes last.
void Experts::sort(Step& step) const {
  Workspace& space = step.space;
  const int64_t rows = step.batch.rows, picked = rows * routing_.chosen, count = this->count();
  int32_t* offsets = space.offsets.data();
  std::fill(offsets, offsets + count + 1, 0);
  for (int64_t i = 0; i < picked; ++i) ++offsets[space.chosen[static_cast<size_t>(i)] + 1];
  space.groups.clear();
  const int64_t width = parts_.width;
  for (int64_t e = 0; e < count; ++e) {
    const int64_t here = offsets[e + 1];
    if (here) {
      counts_[static_cast<size_t>(e)].fetch_add(static_cast<uint64_t>(here), std::memory_order_relaxed);
      space.groups.push_back({e, offsets[e], here, offsets[e] * width});
    }
    offsets[e + 1] += offsets[e];
  }
  float* sorted = space.weights.data() + picked;
  for (int64_t i = 0; i < picked; ++i) {
    const int32_t at = offsets[space.chosen[static_cast<size_t>(i)]]++;
    space.index[static_cast<size_t>(at)] = static_cast<int32_t>(i / routing_.chosen);
    sorted[at] = space.weights[static_cast<size_t>(i)];
  }
  if (!parts_.shared.gate) return;
  const float* gates = space.routed.data() + rows * parts_.router.weight->panels() * kPanel;
  for (int64_t r = 0; r < rows; ++r) {
    space.index[static_cast<size_t>(picked + r)] = static_cast<int32_t>(r);
    sorted[picked + r] = parts_.shared_gate ? 1.0f / (1.0f + std::exp(-gates[r * kPanel])) : 1.0f;
  }
  space.groups.push_back({count, picked, rows, picked * width});
}

// Whether a product takes the input rounded. Experts that are not here may.
bool Experts::quantised() const {
  const GatedMlp& any = parts_.experts[0];
  return !any.gate || any.gate.quantised() || any.up.quantised() || parts_.shared.gate.quantised() || parts_.shared.up.quantised();
}

void Experts::choose(Member& member, Step& step) const {
  Workspace& space = step.space;
  const int64_t rows = step.batch.rows, padded = parts_.router.weight->panels() * kPanel;
  take(member, step, quantised());
  product(member, step, parts_.router, space.input.from(), false, space.routed.data(), padded);
  if (parts_.shared_gate) product(member, step, parts_.shared_gate, space.input.from(), false, space.routed.data() + rows * padded, kPanel);
  member.barrier();
  member.each(rows, [&](int64_t r) { route(step, r); });
  member.barrier();
  member.each(1, [&](int64_t) { sort(step); });
  member.barrier();
}

// Gate and up, 32 columns at a time.
void Experts::columns(Member& member, Step& step, const std::vector<ExpertRows>& groups) const {
  Workspace& space = step.space;
  const bool shared = !groups.empty() && groups.back().expert == count();
  const int64_t pairs = (parts_.width + kBlock - 1) / kBlock, shared_pairs = shared ? (parts_.shared.width() + kBlock - 1) / kBlock : 0;
  const int64_t routed = (static_cast<int64_t>(groups.size()) - (shared ? 1 : 0)) * pairs;
  member.each(routed + shared_pairs, [&](int64_t task) {
    const ExpertRows& group = groups[static_cast<size_t>(std::min(task, routed) / pairs)];
    Activations x = space.input.from();
    x.index = space.index.data() + group.first;
    mlp(group).columns(step.kernels, activation_, task < routed ? task % pairs : task - routed, x, group.count, space.mid,
                       space.scratch.data(), group.mid);
  });
  member.barrier();
}

// Down, a panel of outputs at a time: each row sums its experts, and the sum has the same bits in any order.
void Experts::combine(Member& member, Step& step, const std::vector<ExpertRows>& groups, bool first, bool last) const {
  Workspace& space = step.space;
  const int64_t rows = step.batch.rows;
  const float* weights = space.weights.data() + rows * routing_.chosen;
  float* result = target(step);
  const bool add = direct();
  member.each(step.width / kPanel, [&](int64_t p) {
    double* sums = space.sums.data() + p * rows * kPanel;
    float* part = space.scratch.data() + member.id * rows * kPanel;
    if (first) std::fill(sums, sums + rows * kPanel, 0.0);
    for (const ExpertRows& group : groups) {
      const Linear& down = mlp(group).down;
      step.kernels.gemm(*down.weight, p, space.mid.from(group.mid), 0, group.count, down.bias_at(p), false, part, kPanel);
      step.kernels.weigh(part, weights + group.first, space.index.data() + group.first, group.count, sums);
    }
    for (int64_t r = 0; last && r < rows; ++r) {
      float* out = result + r * step.width + p * kPanel;
      for (int64_t lane = 0; lane < kPanel; ++lane) out[lane] = (add ? out[lane] : 0.0f) + static_cast<float>(sums[r * kPanel + lane]);
    }
  });
  member.barrier();
  if (last) settle(member, step);
}

void Experts::compute(Member& member, Step& step, const std::vector<ExpertRows>& groups, bool first, bool last) const {
  columns(member, step, groups);
  combine(member, step, groups, first, last);
}

void Experts::run(Member& member, Step& step) const {
  choose(member, step);
  compute(member, step, step.space.groups, true, true);
}

}  // namespace shoal
