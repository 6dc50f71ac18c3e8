// Runs blocks one after the other with a team of threads. It owns the threads and the memory of a step, and no weights.
#pragma once
#include <chrono>
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

// Rows that experts elsewhere are to run.
struct Dispatch {
  std::vector<int32_t> rows;     // of the step, rising
  std::vector<int32_t> experts;  // rising
  std::vector<int32_t> offsets;  // [experts + 1] where each one's entries begin
  std::vector<int32_t> index;    // entries: which of `rows`
  std::vector<float> weights;    // entries
};

// What steps took, by what it was for. The shared expert and the router are experts, too.
struct Spent {
  std::chrono::nanoseconds attention{}, feed_forward{}, experts{}, head{};
};

class Stage {
 public:
  Stage(const Kernels& kernels, int64_t hidden, int threads);

  // hidden: [rows, width], replaced by the output of the last layer. type: of the keys and values.
  void forward(float* hidden, const Batch& batch, const std::vector<Layer>& layers, KvType type);

  // A layer whose experts come one after the other. `choose` runs its attention and returns the rows of each expert that is needed, the
  // shared one last. Each of them then goes through `compute`, in any order, by its place in what `choose` returned. The layer is done
  // when none is `awaited`. hidden is the same all the time.
  const std::vector<ExpertRows>& choose(float* hidden, const Batch& batch, const AttentionBlock& attention, const Experts& experts,
                                        uint8_t* pool, KvType type);
  // Throws std::invalid_argument for one that is not here or was computed before.
  void compute(float* hidden, const Experts& experts, const std::vector<int64_t>& places);
  // The same for experts that are not here: their rows, and what came back for these, [rows, width].
  Dispatch dispatch(const Experts& experts, const std::vector<int64_t>& places);
  void add(float* hidden, const Experts& experts, const std::vector<int64_t>& places, const int32_t* rows, int64_t count, const double* sums);
  // Experts that nobody can run: a row's others get their weight. All that are not shared were computed or added before, the shared one was not.
  // Returns the rows.
  std::vector<int32_t> drop(float* hidden, const Experts& experts, const std::vector<int64_t>& places);
  const Rows& input() const { return space_.input; }  // of the experts, of the step that `choose` began
  // What `add` takes: the experts' sums of rows that were dispatched. x, or q and scale: [rows, width] of input, the others null.
  void partial(const ExpertSet& set, const Dispatch& of, int64_t rows, const float* x, const int8_t* q, const float* scale, double* sums);

  int64_t awaited() const { return std::count(computed_.begin(), computed_.end(), false); }
  int64_t rows() const { return rows_; }  // of the step that `choose` began

  // logits: [count, vocabulary padded to 16] of the rows `picked` of hidden.
  void logits(const float* hidden, const Head& head, const int32_t* picked, int64_t count, float* out);

  // Only one layer's attention: qkv [rows, block.width()] in, out [rows, q heads * value].
  void attention(const GroupedQuery& block, const float* qkv, const Batch& batch, uint8_t* pool, KvType type, float* out);

  int64_t width() const { return width_; }
  const char* isa() const { return kernels_.name; }
  const Spent& spent() const { return spent_; }  // so far, without `partial` and `attention`

 private:
  void run(int64_t rows, const std::function<void(Member&)>& body);
  const ExpertRows& unfinished(int64_t place) const;
  void finish(float* hidden, const Experts& experts);
  void plan(const Batch& batch, const AttentionBlock& block);
  Share* shares(int64_t count);

  const Kernels& kernels_;
  int64_t width_;
  Spent spent_;
  Team team_;
  Workspace space_;
  std::unique_ptr<Share[]> shares_;
  int64_t share_count_ = 0;
  std::vector<bool> computed_;  // by place among what was chosen
  int64_t rows_ = 0;
};

}  // namespace shoal
