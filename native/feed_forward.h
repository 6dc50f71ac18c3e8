// The feed-forward part of a layer: one gated MLP, or routed experts.
#pragma once
#include <atomic>

#include "block.h"

namespace shoal {

struct GatedMlp {
  Linear gate, up, down;
  int64_t width() const { return gate.weight->n; }
  int64_t bytes() const { return gate.bytes() + up.bytes() + down.bytes(); }
  // Throws std::invalid_argument unless the matrices fit each other and inputs of that width.
  void check(int64_t hidden) const;
  // 32 columns of activation(gate(x)) * up(x) for x's rows [0, rows), quantised for `down`; written from `at` on.
  void columns(const Kernels& kernels, Activation activation, int64_t pair, const Activations& x, int64_t rows, Rows& out, float* up_out,
               int64_t at) const;
};

class Dense : public FeedForwardBlock {
 public:
  Dense(Around around, GatedMlp mlp, Activation activation);
  int64_t bytes() const override { return mlp_.bytes(); }
  bool routed() const override { return false; }
  int64_t hidden() const override { return mlp_.gate.weight->k; }
  void reserve(Step& step) const override;
  void run(Member& member, Step& step) const override;

 private:
  GatedMlp mlp_;
  Activation activation_;
};

// Experts of a layer, and rows that are already sorted by expert: what a step's own router sorted, or one on another machine.
class ExpertSet {
 public:
  // An expert without matrices is not here now. shared: runs for every row; without matrices there is none. width: of an expert; 0: that of
  // those that are here. Throws std::invalid_argument.
  ExpertSet(std::vector<GatedMlp> experts, GatedMlp shared, int64_t width, int64_t hidden, Activation activation);

  int64_t count() const { return static_cast<int64_t>(experts_.size()); }
  int64_t hidden() const { return hidden_; }
  int64_t width() const { return width_; }
  int64_t bytes() const;
  const GatedMlp& shared() const { return shared_; }
  bool here(int64_t expert) const { return bool((expert == count() ? shared_ : experts_[static_cast<size_t>(expert)]).gate); }
  bool all_here() const { return std::all_of(experts_.begin(), experts_.end(), [](const GatedMlp& e) { return bool(e.gate); }); }
  // Whether the products take their input rounded, as floats. Experts that are not here may take it rounded.
  bool quantised() const;
  bool floats() const;
  // Puts an expert's matrices where a step finds them, or none. No step may be running it.
  void place(int64_t expert, GatedMlp mlp);

  // For rows in the workspace's input: each `picked` times by an expert, and all by the shared one, if there is one.
  void reserve(Workspace& space, int64_t rows, int64_t picked) const;
  // Adds the groups' results to the workspace's sums. weights: of the sorted rows. done(p): a panel's sums are complete.
  template <class F>
  void compute(Member& member, Step& step, const std::vector<ExpertRows>& groups, const float* weights, F&& done) const {
    columns(member, step, groups);
    member.each(hidden_ / kPanel, [&](int64_t p) { sum(member, step, groups, weights, p), done(p); });
    member.barrier();
  }

 private:
  const GatedMlp& mlp(const ExpertRows& rows) const { return rows.expert < count() ? experts_[static_cast<size_t>(rows.expert)] : shared_; }
  void columns(Member& member, Step& step, const std::vector<ExpertRows>& groups) const;
  void sum(Member& member, Step& step, const std::vector<ExpertRows>& groups, const float* weights, int64_t panel) const;

  std::vector<GatedMlp> experts_;
  GatedMlp shared_;
  int64_t width_, hidden_;
  Activation activation_;
};

// How experts are chosen and weighted. Equal scores go to the lower expert.
struct Routing {
  int64_t chosen = 1;
  bool sigmoid = false;        // scores are sigmoids of the router's logits, else their softmax
  bool softmax_after = false;  // the logits are compared, and the softmax is that of the chosen ones
  bool renormalised = false;   // the weights of the chosen are divided by their sum
  float scale = 1;             // of the weights
  int64_t groups = 1, groups_chosen = 1;  // experts are chosen from the best groups alone
  bool group_by_two = false;   // a group's score is the sum of its two best, else its best
};

class Experts : public FeedForwardBlock {
 public:
  struct Parts {
    Linear router;                      // F32
    std::vector<float> selection_bias;  // [experts], added to the scores for the choice alone; or empty
    Linear shared_gate;                 // one row: its sigmoid weights the shared expert
  };
  Experts(Around around, Parts parts, ExpertSet set, Routing routing);

  int64_t bytes() const override;
  bool routed() const override { return true; }
  int64_t hidden() const override { return parts_.router.weight->k; }
  void reserve(Step& step) const override;
  void run(Member& member, Step& step) const override;

  // The parts of `run`, for a step whose experts are not all here at once. `choose` groups the rows by expert; then every group goes
  // through `compute`, in any order, with any others. The groups of a call are among those of the workspace. last: there are no others.
  void choose(Member& member, Step& step) const;
  void compute(Member& member, Step& step, const std::vector<ExpertRows>& groups, bool last) const;

  const uint64_t id;  // of this block alone, as long as the process lives
  int64_t count() const { return set.count(); }
  const float* weights(const Workspace& space, int64_t rows) const { return space.weights.data() + rows * routing_.chosen; }  // of sorted rows
  ExpertSet set;

  // Rows that each expert has computed since the block was made. May be called while other threads run steps: each count is one
  // that was true at some moment, and does not fall from call to call.
  std::vector<uint64_t> counts() const;

 private:
  void route(Step& step, int64_t row) const;
  void sort(Step& step) const;

  Parts parts_;
  Routing routing_;
  mutable std::vector<std::atomic<uint64_t>> counts_;  // written by whichever member sorts
};

}  // namespace shoal
