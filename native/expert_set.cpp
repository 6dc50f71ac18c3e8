#include "feed_forward.h"

namespace shoal {

ExpertSet::ExpertSet(std::vector<GatedMlp> experts, GatedMlp shared, int64_t width, int64_t hidden, Activation activation)
    : experts_(std::move(experts)), shared_(std::move(shared)), width_(width), hidden_(hidden), activation_(activation) {
  if (experts_.empty()) throw std::invalid_argument("there are no experts");
  for (const GatedMlp& expert : experts_) {
    if (!width_ && expert.gate && expert.gate.weight) width_ = expert.width();
  }
  if (width_ <= 0 || width_ % kPanel) throw std::invalid_argument("the experts' width is no multiple of 16");
  for (int64_t e = 0; e < count(); ++e) {
    if (here(e)) place(e, experts_[static_cast<size_t>(e)]);
  }
  if (shared_.gate) shared_.check(hidden_);
}

void ExpertSet::place(int64_t expert, GatedMlp mlp) {
  if (expert < 0 || expert >= count()) throw std::invalid_argument("there is no such expert");
  if (mlp.gate) {
    mlp.check(hidden_);
    if (mlp.width() != width_) throw std::invalid_argument("the experts differ in width");
  }
  experts_[static_cast<size_t>(expert)] = std::move(mlp);
}

int64_t ExpertSet::bytes() const {
  int64_t total = shared_.bytes();
  for (const GatedMlp& expert : experts_) total += expert.bytes();
  return total;
}

bool ExpertSet::quantised() const {
  const auto rounds = [](const GatedMlp& mlp) { return mlp.gate.quantised() || mlp.up.quantised(); };
  return rounds(shared_) || std::any_of(experts_.begin(), experts_.end(), [&](const GatedMlp& e) { return !e.gate || rounds(e); });
}

bool ExpertSet::floats() const {
  return std::any_of(experts_.begin(), experts_.end(), [](const GatedMlp& e) { return e.gate && !(e.gate.quantised() && e.up.quantised()); });
}

void ExpertSet::reserve(Workspace& space, int64_t rows, int64_t picked) const {
  space.input.reserve(rows * hidden_);
  const int64_t mid = picked * width_ + (shared_.gate ? rows * shared_.width() : 0);
  space.mid.reserve(mid);
  grow(space.index, picked + (shared_.gate ? rows : 0));
  grow(space.scratch, std::max(mid, space.threads * rows * kPanel));
  grow(space.sums, rows * hidden_);
}

// Gate and up, 32 columns at a time.
void ExpertSet::columns(Member& member, Step& step, const std::vector<ExpertRows>& groups) const {
  Workspace& space = step.space;
  const bool shared = !groups.empty() && groups.back().expert == count();
  const int64_t pairs = (width_ + kBlock - 1) / kBlock, shared_pairs = shared ? (shared_.width() + kBlock - 1) / kBlock : 0;
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

// Down, a panel of outputs: the sums have the same bits in any order of the experts.
void ExpertSet::sum(Member& member, Step& step, const std::vector<ExpertRows>& groups, const float* weights, int64_t panel) const {
  Workspace& space = step.space;
  const int64_t rows = step.batch.rows;
  double* sums = space.sums.data() + panel * rows * kPanel;
  float* part = space.scratch.data() + member.id * rows * kPanel;
  for (const ExpertRows& group : groups) {
    const Linear& down = mlp(group).down;
    step.kernels.gemm(*down.weight, panel, space.mid.from(group.mid), 0, group.count, down.bias_at(panel), false, part, kPanel);
    step.kernels.weigh(part, weights + group.first, space.index.data() + group.first, group.count, sums);
  }
}

}  // namespace shoal
