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
  int64_t hidden() const override { return mlp_.gate.weight->k; }
  void reserve(Step& step) const override;
  void run(Member& member, Step& step) const override;

 private:
  GatedMlp mlp_;
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
    std::vector<GatedMlp> experts;      // one without matrices is not here now
    GatedMlp shared;                    // run for every row; no gate matrix: there is none
    Linear shared_gate;                 // one row: its sigmoid weights the shared expert
    int64_t width = 0;                  // of an expert; 0: that of those that are here
  };
  Experts(Around around, Parts parts, Routing routing, Activation activation);

  int64_t bytes() const override;
  int64_t hidden() const override { return parts_.router.weight->k; }
  void reserve(Step& step) const override;
  void run(Member& member, Step& step) const override;

  // The parts of `run`, for a step whose experts are not all here at once. `choose` groups the rows by expert; then every group goes
  // through `compute`, in any order, with any others. The groups of a call are among those of the workspace.
  void choose(Member& member, Step& step) const;
  // first, last: whether these are the step's first groups, its last.
  void compute(Member& member, Step& step, const std::vector<ExpertRows>& groups, bool first, bool last) const;

  const uint64_t id;  // of this block alone, as long as the process lives
  int64_t count() const { return static_cast<int64_t>(parts_.experts.size()); }
  bool here(int64_t expert) const { return bool(expert == count() ? parts_.shared.gate : parts_.experts[static_cast<size_t>(expert)].gate); }
  bool all_here() const { return std::all_of(parts_.experts.begin(), parts_.experts.end(), [](const GatedMlp& e) { return bool(e.gate); }); }
  // Puts an expert's matrices where the block finds them, or none. No step may be running it.
  void place(int64_t expert, GatedMlp mlp);

  // Rows that each expert has computed since the block was made. May be called while other threads run steps: each count is one
  // that was true at some moment, and does not fall from call to call.
  std::vector<uint64_t> counts() const;

 private:
  const GatedMlp& mlp(const ExpertRows& rows) const {
    return rows.expert < count() ? parts_.experts[static_cast<size_t>(rows.expert)] : parts_.shared;
  }
  void route(Step& step, int64_t row) const;
  void sort(Step& step) const;
  bool quantised() const;
  void columns(Member& member, Step& step, const std::vector<ExpertRows>& groups) const;
  void combine(Member& member, Step& step, const std::vector<ExpertRows>& groups, bool first, bool last) const;

  Parts parts_;
  Routing routing_;
  Activation activation_;
  mutable std::vector<std::atomic<uint64_t>> counts_;  // written by whichever member sorts
};

}  // namespace shoal
