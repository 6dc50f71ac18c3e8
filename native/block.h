// A block of a layer: what is held, leased and run as one. Attention and feed-forward parts are blocks; every member of the team
// runs the same block at once and goes through its phases with the others.
#pragma once
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <vector>

#include "batch.h"
#include "kernels.h"
#include "team.h"

namespace shoal {

struct Linear {
  std::shared_ptr<Matrix> weight;
  std::vector<float> bias;  // empty, or padded to whole panels

  explicit operator bool() const { return weight != nullptr; }
  bool quantised() const { return weight && weight->kind != Kind::F32; }
  int64_t bytes() const { return weight ? weight->bytes() : 0; }
  const float* bias_at(int64_t panel) const { return bias.empty() ? nullptr : bias.data() + panel * kPanel; }
};

struct Norm {
  std::vector<float> weight, bias;  // no weight: there is no such norm
  float eps = 0;
  bool centred = false;  // a layer norm, which subtracts the mean

  explicit operator bool() const { return !weight.empty(); }
  int64_t size() const { return static_cast<int64_t>(weight.size()); }
  void apply(const Kernels& kernels, const float* x, float* out) const {
    if (centred) {
      kernels.layer_norm(x, weight.data(), bias.empty() ? nullptr : bias.data(), eps, size(), out);
    } else {
      kernels.rms_norm(x, weight.data(), eps, size(), out);
    }
  }
};

template <class T>
void grow(std::vector<T>& v, int64_t size) {
  if (static_cast<int64_t>(v.size()) < size) v.resize(static_cast<size_t>(size));
}

// Rows as a product takes them: floats, and their quantised form.
struct Rows {
  std::vector<float> x, scale;
  std::vector<int8_t> q;
  std::vector<int32_t> sum, less;

  void reserve(int64_t values) {
    const int64_t blocks = values / kBlock + 1;
    grow(x, values), grow(q, values), grow(scale, blocks), grow(sum, blocks), grow(less, 2 * blocks);
  }
  // Quantises `count` values from `at` on, which is a multiple of 32.
  void quantise(const Kernels& kernels, int64_t at, int64_t count) {
    const int64_t block = at / kBlock;
    kernels.quantise(x.data() + at, count, q.data() + at, scale.data() + block, sum.data() + block, less.data() + 2 * block);
  }
  Activations from(int64_t at = 0) const {
    const int64_t block = at / kBlock;
    return {x.data() + at, q.data() + at, scale.data() + block, sum.data() + block, less.data() + 2 * block};
  }
};

// One thread's way through the phases of a step. Each phase has a Share of its own, which all members take from.
class Member {
 public:
  // few: whether the step has so few rows that memory is what it waits for.
  Member(Team& team, Share* shares, int id, bool few) : id(id), team_(team), next_(shares), few_(few) {}

  int threads() const { return team_.size(); }
  void barrier() { team_.barrier(id); }
  // f(i) for a part of [0, count); the other members do the rest.
  template <class F>
  void each(int64_t count, int64_t chunk, F&& f) {
    next_++->each(count, chunk, f);
  }
  template <class F>
  void each(int64_t count, F&& f) {
    Share& share = *next_++;
    if (few_) return share.runs(count, threads(), f);
    share.each(count, std::max<int64_t>(1, count / (8 * threads())), f);  // experts differ in rows: small pieces even that out
  }

  const int id;

 private:
  Team& team_;
  Share* next_;
  bool few_;
};

// Queries over paged keys and values: how a step's attention is cut into tasks. Made once a step for each shape of heads.
struct Heads {
  int64_t q, kv, key, value;  // heads of queries, of keys and values; width of a key, of a value
  bool operator==(const Heads&) const = default;
  int64_t block_bytes(KvType type) const { return kv * kv_head_bytes(type, key, value); }
};

class Tiling {
 public:
  Tiling(const Heads& heads, const Batch& batch, int threads);

  // Queries of a tile, where their results go, and what limits what they see.
  struct Work {
    Pool pool;
    const float* queries;  // [rows, stride], heads one after the other
    int64_t stride;
    float* out;  // [rows, q heads * value]
    const float* sinks;  // [q heads], or null
    int32_t window;
    Scoring scoring;
  };
  int64_t tiles() const { return static_cast<int64_t>(tiles_.size()); }
  void attend(const Kernels& kernels, const Batch& batch, const Work& work, int64_t tile, int member);
  // Merges what was computed apart of a sequence.
  void join(const Kernels& kernels, const Batch& batch, const Work& work, int64_t sequence);

  const Heads heads;

 private:
  struct Tile {  // rows of one sequence, and some query heads of one KV head, whose attention is one task
    int32_t sequence, head, first, heads, row, rows, split;  // split < 0: all splits of the context, here
  };
  std::vector<Tile> tiles_;
  std::vector<int32_t> splits_;  // per sequence: splits that are computed separately, or 0
  int64_t most_splits_ = 0, scratch_size_ = 0;
  std::vector<float> partial_, scratch_;
};

// Rows of a step that one expert computes.
struct ExpertRows {
  int64_t expert;        // one past the last: the shared one
  int64_t first, count;  // among the step's rows sorted by expert
  int64_t mid;           // where its intermediate values begin
};

// Memory that the blocks of a step share, one after the other.
struct Workspace {
  Rows input, attended, mid, split;
  std::vector<float> qkv, latent, queries, branch, weights, routed, scratch;
  std::vector<double> sums;
  std::vector<int32_t> chosen, index, offsets;
  std::vector<ExpertRows> groups;
  std::vector<Tiling> tilings;
  int64_t threads = 1;

  Tiling& tiling(const Heads& heads) {
    for (Tiling& t : tilings) {
      if (t.heads == heads) return t;
    }
    throw std::logic_error("a layer's heads were not planned");
  }
};

struct Step {
  const Kernels& kernels;
  const Batch& batch;
  Workspace& space;
  float* hidden;  // [rows, width]
  int64_t width;
};

// What a block does around its own arithmetic: a norm before, a norm after, and how the result joins what went in.
class Block {
 public:
  struct Around {
    Norm before, after;
    float scale = 1;         // of the result, before it is added
    bool same_input = false;  // takes what the block before took: both see one input
  };
  explicit Block(Around around) : around_(std::move(around)) {}
  virtual ~Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  static constexpr int64_t kPhases = 16;  // at most, of one block
  virtual int64_t bytes() const = 0;
  virtual int64_t hidden() const = 0;  // the width that it takes
  // Grows the workspace for a step; called by one thread before any runs.
  virtual void reserve(Step& step) const = 0;

 protected:
  void reserve_branch(Step& step) const {
    step.space.input.reserve(step.batch.rows * step.width);
    if (!direct()) grow(step.space.branch, step.batch.rows * step.width);
  }
  // The input, normalised and quantised.
  void take(Member& member, Step& step, bool quantised) const;
  bool direct() const { return !around_.after && around_.scale == 1; }
  // Where the last product writes: to be added to what is there if it is direct, else to be settled.
  float* target(Step& step) const { return direct() ? step.hidden : step.space.branch.data(); }
  void settle(Member& member, Step& step) const;
  static void product(Member& member, Step& step, const Linear& linear, const Activations& x, bool add, float* out, int64_t stride);

  Around around_;
};

class AttentionBlock : public Block {
 public:
  using Block::Block;
  virtual Heads heads() const = 0;
  virtual int rotation() const = 0;       // index among the batch's, or -1
  virtual int64_t rotated() const = 0;    // values of a head that are rotated
  virtual void run(Member& member, Step& step, const Pool& pool) const = 0;
};

class FeedForwardBlock : public Block {
 public:
  using Block::Block;
  virtual bool routed() const = 0;  // whether it has experts
  virtual void run(Member& member, Step& step) const = 0;
};

}  // namespace shoal
