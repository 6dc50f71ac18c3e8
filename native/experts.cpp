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

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

uint64_t next_id() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

Experts::Experts(Around around, Parts parts, ExpertSet set, Routing routing)
    : FeedForwardBlock(std::move(around)), id(next_id()), set(std::move(set)), parts_(std::move(parts)), routing_(routing),
      counts_(static_cast<size_t>(this->set.count())) {
  const int64_t count = this->count(), k = parts_.router.weight ? parts_.router.weight->k : 0;
  require(parts_.router && parts_.router.weight->n == count, "the router does not have a row for each expert");
  require(parts_.router.weight->kind == Kind::F32, "the router must not be rounded");
  require(k == this->set.hidden(), "the router and the experts take inputs of different widths");
  require(routing_.chosen > 0 && routing_.chosen <= count, "more experts are chosen than there are");
  require(routing_.groups > 0 && count % routing_.groups == 0 && routing_.groups_chosen > 0 && routing_.groups_chosen <= routing_.groups &&
              routing_.chosen <= count / routing_.groups * routing_.groups_chosen,
          "the groups of experts do not hold together");
  require(parts_.selection_bias.empty() || static_cast<int64_t>(parts_.selection_bias.size()) == count, "a selection bias for each expert");
  require(!parts_.shared_gate || (this->set.shared().gate && parts_.shared_gate.weight->n == 1 && parts_.shared_gate.weight->k == k &&
                                  parts_.shared_gate.weight->kind == Kind::F32),
          "the shared expert's gate has the wrong shape");
}

int64_t Experts::bytes() const { return parts_.router.bytes() + parts_.shared_gate.bytes() + set.bytes(); }

std::vector<uint64_t> Experts::counts() const {
  std::vector<uint64_t> out(counts_.size());
  for (size_t e = 0; e < out.size(); ++e) out[e] = counts_[e].load(std::memory_order_relaxed);
  return out;
}

void Experts::reserve(Step& step) const {
  const int64_t rows = step.batch.rows, picked = rows * routing_.chosen, all = picked + (set.shared().gate ? rows : 0);
  Workspace& space = step.space;
  reserve_branch(step);
  const int64_t padded = parts_.router.weight->panels() * kPanel;
  grow(space.routed, rows * padded + rows * kPanel);  // the router's logits, then the shared gate's
  grow(space.chosen, picked), grow(space.weights, picked + all), grow(space.offsets, count() + 1);
  set.reserve(space, rows, picked);
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
  const int64_t width = set.width();
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
  if (!set.shared().gate) return;
  const float* gates = space.routed.data() + rows * parts_.router.weight->panels() * kPanel;
  for (int64_t r = 0; r < rows; ++r) {
    space.index[static_cast<size_t>(picked + r)] = static_cast<int32_t>(r);
    sorted[picked + r] = parts_.shared_gate ? 1.0f / (1.0f + std::exp(-gates[r * kPanel])) : 1.0f;
  }
  space.groups.push_back({count, picked, rows, picked * width});
}

void Experts::choose(Member& member, Step& step) const {
  Workspace& space = step.space;
  const int64_t rows = step.batch.rows, padded = parts_.router.weight->panels() * kPanel;
  take(member, step, set.quantised());
  product(member, step, parts_.router, space.input.from(), false, space.routed.data(), padded);
  if (parts_.shared_gate) product(member, step, parts_.shared_gate, space.input.from(), false, space.routed.data() + rows * padded, kPanel);
  member.barrier();
  member.each(rows, [&](int64_t r) {
    route(step, r);
    std::fill_n(space.sums.data() + r * step.width, step.width, 0.0);
  });
  member.barrier();
  member.each(1, [&](int64_t) { sort(step); });
  member.barrier();
}

void Experts::compute(Member& member, Step& step, const std::vector<ExpertRows>& groups, bool last) const {
  const int64_t rows = step.batch.rows;
  float* result = target(step);
  const bool add = direct();
  set.compute(member, step, groups, weights(step.space, rows), [&](int64_t p) {
    const double* sums = step.space.sums.data() + p * rows * kPanel;
    for (int64_t r = 0; last && r < rows; ++r) {
      float* out = result + r * step.width + p * kPanel;
      for (int64_t lane = 0; lane < kPanel; ++lane) out[lane] = (add ? out[lane] : 0.0f) + static_cast<float>(sums[r * kPanel + lane]);
    }
  });
  if (last) settle(member, step);
}

void Experts::run(Member& member, Step& step) const {
  choose(member, step);
  compute(member, step, step.space.groups, true);
}

}  // namespace shoal
