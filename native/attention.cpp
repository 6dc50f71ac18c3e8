#include "attention.h"

namespace shoal {
namespace {

void expect(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

void clamp(float* x, int64_t n, float bound) {
  for (int64_t i = 0; i < n; ++i) x[i] = std::min(std::max(x[i], -bound), bound);
}

}  // namespace

GroupedQuery::GroupedQuery(Around around, Parts parts, Form form)
    : AttentionBlock(std::move(around)), parts_(std::move(parts)), form_(form) {
  const Heads& h = form_.heads;
  expect(h.q > 0 && h.kv > 0 && h.q % h.kv == 0, "the query heads must divide over the KV heads");
  expect(h.key > 0 && h.key % 16 == 0 && h.key <= kMostKey && h.value > 0 && h.value % 16 == 0 && h.value <= kMostValue,
         "keys and values must be multiples of 16 wide, keys at most 1024, values at most 512");
  expect(form_.rotated >= 0 && form_.rotated % 2 == 0 && form_.rotated <= h.key, "more is rotated than a head has");
  for (const auto& [norm, count] : {std::pair{&parts_.q_norm, h.q}, std::pair{&parts_.k_norm, h.kv}}) {
    expect(!*norm || norm->size() == h.key || norm->size() == count * h.key, "a norm of queries or keys fits neither one head nor all");
  }
  expect(parts_.sinks.empty() || static_cast<int64_t>(parts_.sinks.size()) == h.q, "a sink for each query head");
  if (!parts_.q) return;
  const int64_t k = parts_.q.weight->k;
  expect(parts_.k && parts_.v && parts_.o, "a matrix of the attention is missing");
  expect(parts_.q.weight->n == h.q * h.key && parts_.k.weight->n == h.kv * h.key && parts_.v.weight->n == h.kv * h.value,
         "a matrix of the attention has the wrong shape");
  expect(parts_.k.weight->k == k && parts_.v.weight->k == k && parts_.o.weight->n == k && parts_.o.weight->k == h.q * h.value,
         "a matrix of the attention has the wrong shape");
}

int64_t GroupedQuery::bytes() const { return parts_.q.bytes() + parts_.k.bytes() + parts_.v.bytes() + parts_.o.bytes(); }

void GroupedQuery::reserve(Step& step) const {
  const Heads& h = form_.heads;
  if (parts_.q) reserve_branch(step);
  grow(step.space.qkv, step.batch.rows * width());
  step.space.attended.reserve(step.batch.rows * h.q * h.value);
}

// Finishes a sequence's new queries, keys and values, and stores keys and values in their blocks.
void GroupedQuery::store(Step& step, const Pool& pool, int64_t seq) const {
  const Heads& h = form_.heads;
  const Batch& batch = step.batch;
  const Kernels& kernels = step.kernels;
  const int64_t q_width = h.q * h.key, k_width = h.kv * h.key;
  const auto norm = [&](const Norm& by, float* heads, int64_t count) {
    if (!by) return;
    for (int64_t i = 0; i < count * h.key; i += by.size()) by.apply(kernels, heads + i, heads + i);
  };
  for (int64_t r = batch.starts[seq]; r < batch.starts[seq + 1]; ++r) {
    float* row = step.space.qkv.data() + r * width();
    norm(parts_.q_norm, row, h.q);
    norm(parts_.k_norm, row + q_width, h.kv);
    if (form_.clip > 0) clamp(row, width(), form_.clip);
    if (form_.rotation >= 0) {
      const Rotation& turn = batch.rotations[static_cast<size_t>(form_.rotation)];
      const float *cos = turn.cos + r * turn.half, *sin = turn.sin + r * turn.half;
      for (int64_t i = 0; i < h.q + h.kv; ++i) kernels.rope(row + i * h.key, cos, sin, form_.rotated);
    }
    const int64_t position = batch.positions[seq] + r - batch.starts[seq];
    const int64_t block = batch.tables[seq * batch.width + position / kTokens];
    for (int64_t i = 0; i < h.kv; ++i) {
      kernels.append(pool, block, position % kTokens, i, row + q_width + i * h.key, row + q_width + k_width + i * h.value);
    }
  }
}

void GroupedQuery::attend(Member& member, Step& step, const Pool& pool) const {
  const Heads& h = form_.heads;
  const Batch& batch = step.batch;
  Tiling& tiling = step.space.tiling(h);
  Rows& attended = step.space.attended;
  const int64_t out_width = h.q * h.value;
  const bool quantised = parts_.o.quantised();
  const Tiling::Work work{pool, step.space.qkv.data(), width(), attended.x.data(), parts_.sinks.empty() ? nullptr : parts_.sinks.data(),
                          form_.window, form_.scoring};
  member.each(batch.sequences, 1, [&](int64_t seq) { store(step, pool, seq); });
  member.barrier();
  member.each(tiling.tiles(), 1, [&](int64_t t) { tiling.attend(step.kernels, batch, work, t, member.id); });
  member.barrier();
  member.each(batch.sequences, 1, [&](int64_t seq) {
    tiling.join(step.kernels, batch, work, seq);
    for (int64_t r = batch.starts[seq]; quantised && r < batch.starts[seq + 1]; ++r) {
      attended.quantise(step.kernels, r * out_width, out_width);
    }
  });
  member.barrier();
}

void GroupedQuery::run(Member& member, Step& step, const Pool& pool) const {
  const Heads& h = form_.heads;
  const int64_t q_width = h.q * h.key, k_width = h.kv * h.key;
  float* qkv = step.space.qkv.data();
  take(member, step, parts_.q.quantised() || parts_.k.quantised() || parts_.v.quantised());
  const Activations x = step.space.input.from();
  product(member, step, parts_.q, x, false, qkv, width());
  product(member, step, parts_.k, x, false, qkv + q_width, width());
  product(member, step, parts_.v, x, false, qkv + q_width + k_width, width());
  member.barrier();
  attend(member, step, pool);
  product(member, step, parts_.o, step.space.attended.from(), direct(), target(step), step.width);
  member.barrier();
  settle(member, step);
}

Latent::Latent(Around around, Parts parts, Form form) : AttentionBlock(std::move(around)), parts_(std::move(parts)), form_(form) {
  const Form& f = form_;
  expect(f.heads > 0 && f.rank > 0 && f.nope > 0 && f.rope > 0 && f.value > 0, "a size of the latent attention is not positive");
  expect(f.rank % 32 == 0 && f.nope % 16 == 0 && f.rope % 16 == 0 && f.value % 16 == 0 && f.rank <= kMostValue && f.rank + f.rope <= kMostKey,
         "the widths of the latent attention must be multiples of 16, of the latent vectors of 32 and at most 512, with the rotated key 1024");
  expect(parts_.q && parts_.kv_a && parts_.k_b && parts_.v_b && parts_.o && parts_.kv_a_norm, "a part of the latent attention is missing");
  const int64_t k = parts_.kv_a.weight->k;
  const auto is = [](const Linear& linear, int64_t n, int64_t inputs) { return linear.weight->n == n && linear.weight->k == inputs; };
  expect(is(parts_.q, f.heads * (f.nope + f.rope), parts_.q_a ? parts_.q_a.weight->n : k) && is(parts_.kv_a, f.rank + f.rope, k) &&
             is(parts_.k_b, f.heads * f.rank, f.nope) && is(parts_.v_b, f.heads * f.value, f.rank) && is(parts_.o, k, f.heads * f.value),
         "a matrix of the latent attention has the wrong shape");
  expect(parts_.kv_a_norm.size() == f.rank, "the norm of the latent vectors has the wrong length");
  expect(!parts_.q_a || (parts_.q_a.weight->k == k && parts_.q_a.weight->n % 16 == 0 && parts_.q_a_norm.size() == parts_.q_a.weight->n),
         "the queries' first matrix has the wrong shape");
}

int64_t Latent::bytes() const {
  return parts_.q_a.bytes() + parts_.q.bytes() + parts_.kv_a.bytes() + parts_.k_b.bytes() + parts_.v_b.bytes() + parts_.o.bytes();
}

void Latent::reserve(Step& step) const {
  const Form& f = form_;
  const int64_t rows = step.batch.rows;
  Workspace& space = step.space;
  reserve_branch(step);
  grow(space.qkv, rows * f.heads * (f.nope + f.rope)), grow(space.latent, rows * (f.rank + f.rope));
  grow(space.queries, rows * f.heads * (f.rank + f.rope));
  space.attended.reserve(rows * f.heads * std::max(f.rank, f.value));
  space.split.reserve(rows * f.heads * std::max(f.rank, f.nope));
  if (parts_.q_a) space.mid.reserve(rows * parts_.q_a.weight->panels() * kPanel);
}

void Latent::store(Step& step, const Pool& pool, int64_t seq) const {
  const Form& f = form_;
  const Batch& batch = step.batch;
  const Kernels& kernels = step.kernels;
  Rows& split = step.space.split;
  const int64_t head_width = f.nope + f.rope, key = f.rank + f.rope;
  const bool quantised = parts_.k_b.quantised();
  for (int64_t r = batch.starts[seq]; r < batch.starts[seq + 1]; ++r) {
    float *q = step.space.qkv.data() + r * f.heads * head_width, *latent = step.space.latent.data() + r * key;
    float* query = step.space.queries.data() + r * f.heads * key;
    parts_.kv_a_norm.apply(kernels, latent, latent);
    if (form_.rotation >= 0) {
      const Rotation& turn = batch.rotations[static_cast<size_t>(form_.rotation)];
      const float *cos = turn.cos + r * turn.half, *sin = turn.sin + r * turn.half;
      kernels.rope(latent + f.rank, cos, sin, f.rope);
      for (int64_t h = 0; h < f.heads; ++h) kernels.rope(q + h * head_width + f.nope, cos, sin, f.rope);
    }
    for (int64_t h = 0; h < f.heads; ++h) {
      const float* from = q + h * head_width;
      const int64_t to = (h * batch.rows + r) * f.nope;
      std::copy(from, from + f.nope, split.x.data() + to);
      std::copy(from + f.nope, from + head_width, query + h * key + f.rank);
      if (quantised) split.quantise(kernels, to, f.nope);
    }
    const int64_t position = batch.positions[seq] + r - batch.starts[seq];
    kernels.append(pool, batch.tables[seq * batch.width + position / kTokens], position % kTokens, 0, latent, latent);
  }
}

void Latent::run(Member& member, Step& step, const Pool& pool) const {
  const Form& f = form_;
  const Batch& batch = step.batch;
  Workspace& space = step.space;
  const int64_t rows = batch.rows, key = f.rank + f.rope, q_width = f.heads * (f.nope + f.rope);
  take(member, step, parts_.q_a.quantised() || parts_.q.quantised() || parts_.kv_a.quantised());
  const Activations x = space.input.from();
  product(member, step, parts_.kv_a, x, false, space.latent.data(), key);
  if (parts_.q_a) {
    const int64_t rank = parts_.q_a.weight->n;
    product(member, step, parts_.q_a, x, false, space.mid.x.data(), rank);
    member.barrier();
    member.each(rows, [&](int64_t r) {
      float* row = space.mid.x.data() + r * rank;
      parts_.q_a_norm.apply(step.kernels, row, row);
      if (parts_.q.quantised()) space.mid.quantise(step.kernels, r * rank, rank);
    });
    member.barrier();
    product(member, step, parts_.q, space.mid.from(), false, space.qkv.data(), q_width);
  } else {
    product(member, step, parts_.q, x, false, space.qkv.data(), q_width);
  }
  member.barrier();
  member.each(batch.sequences, 1, [&](int64_t seq) { store(step, pool, seq); });
  member.barrier();

  const Matrix &k_b = *parts_.k_b.weight, &v_b = *parts_.v_b.weight;
  const int64_t panels = f.rank / kPanel;
  member.each(k_b.panels(), [&](int64_t p) {
    const int64_t h = p / panels;
    step.kernels.gemm(k_b, p, space.split.from(h * rows * f.nope), 0, rows, nullptr, false,
                      space.queries.data() + h * key + p % panels * kPanel, f.heads * key);
  });
  member.barrier();

  Tiling& tiling = space.tiling(heads());
  const Tiling::Work work{pool, space.queries.data(), f.heads * key, space.attended.x.data(), nullptr, 0, f.scoring};
  member.each(tiling.tiles(), 1, [&](int64_t t) { tiling.attend(step.kernels, batch, work, t, member.id); });
  member.barrier();
  member.each(batch.sequences, 1, [&](int64_t seq) {
    tiling.join(step.kernels, batch, work, seq);
    for (int64_t r = batch.starts[seq]; r < batch.starts[seq + 1]; ++r) {
      for (int64_t h = 0; h < f.heads; ++h) {
        const float* from = space.attended.x.data() + (r * f.heads + h) * f.rank;
        const int64_t to = (h * rows + r) * f.rank;
        std::copy(from, from + f.rank, space.split.x.data() + to);
        if (parts_.v_b.quantised()) space.split.quantise(step.kernels, to, f.rank);
      }
    }
  });
  member.barrier();
  const int64_t value_panels = f.value / kPanel, out_width = f.heads * f.value;
  member.each(v_b.panels(), [&](int64_t p) {
    step.kernels.gemm(v_b, p, space.split.from(p / value_panels * rows * f.rank), 0, rows, nullptr, false,
                      space.attended.x.data() + p * kPanel, out_width);
  });
  member.barrier();
  if (parts_.o.quantised()) {
    member.each(rows, [&](int64_t r) { space.attended.quantise(step.kernels, r * out_width, out_width); });
    member.barrier();
  }
  product(member, step, parts_.o, space.attended.from(), direct(), target(step), step.width);
  member.barrier();
  settle(member, step);
}

}  // namespace shoal
