// The Python interface: checks arrays and passes them to the kernels. shoal.native wraps it; nothing else imports it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "formats.h"
#include "stage.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace shoal {

namespace {

template <class T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T>
using Maybe = std::optional<std::shared_ptr<T>>;

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

std::vector<float> floats(const std::optional<In<float, 1>>& a) {
  return a ? std::vector<float>(a->data(), a->data() + a->size()) : std::vector<float>{};
}

template <class T>
T held(const Maybe<T>& value) {
  return value && *value ? **value : T{};
}

std::shared_ptr<Linear> linear(std::shared_ptr<Matrix> weight, const std::optional<In<float, 1>>& bias) {
  require(weight != nullptr, "a product needs a matrix");
  require(!bias || static_cast<int64_t>(bias->size()) == weight->n, "a bias has the wrong length");
  auto made = std::make_shared<Linear>();
  made->bias = floats(bias);
  if (bias) made->bias.resize(static_cast<size_t>(weight->panels() * kPanel));
  made->weight = std::move(weight);
  return made;
}

std::shared_ptr<Norm> norm(In<float, 1> weight, float eps, const std::optional<In<float, 1>>& bias, bool centred) {
  require(weight.size() > 0 && (!bias || bias->size() == weight.size()), "a norm's weight and bias must have one length");
  auto made = std::make_shared<Norm>();
  made->weight.assign(weight.data(), weight.data() + weight.size());
  made->bias = floats(bias), made->eps = eps, made->centred = centred;
  return made;
}

std::shared_ptr<Block::Around> around(const Maybe<Norm>& before, const Maybe<Norm>& after, float scale, bool same_input) {
  return std::make_shared<Block::Around>(Block::Around{held(before), held(after), scale, same_input});
}

// A block's norms must be as wide as what they are applied to.
void check(const Block::Around& around, int64_t hidden) {
  for (const Norm* norm : {&around.before, &around.after}) require(!*norm || norm->size() == hidden, "a layer's norm has the wrong length");
}

Activation activation(const std::string& name) {
  if (name == "silu") return Activation::Silu;
  if (name == "gelu") return Activation::Gelu;
  if (name == "clamped") return Activation::Clamped;
  throw std::invalid_argument("the activation '" + name + "' is unknown");
}

std::shared_ptr<GroupedQuery> grouped_query(const Block::Around& around, const Maybe<Linear>& q, const Maybe<Linear>& k,
                                            const Maybe<Linear>& v, const Maybe<Linear>& o, int64_t q_heads, int64_t kv_heads,
                                            int64_t key_dim, int64_t value_dim, const Maybe<Norm>& q_norm, const Maybe<Norm>& k_norm,
                                            float scale, float cap, float clip, int32_t window, int rotation, int64_t rotated,
                                            const std::optional<In<float, 1>>& sinks) {
  require(window >= 0 && rotation >= -1, "a window or a rotation cannot be");
  auto made = std::make_shared<GroupedQuery>(
      around, GroupedQuery::Parts{held(q), held(k), held(v), held(o), held(q_norm), held(k_norm), floats(sinks)},
      GroupedQuery::Form{{q_heads, kv_heads, key_dim, value_dim}, {scale, cap}, clip, window, rotation, rotated});
  check(around, made->hidden());
  return made;
}

std::shared_ptr<Latent> latent(const Block::Around& around, const Maybe<Linear>& q_a, const Linear& q, const Linear& kv_a,
                               const Linear& k_b, const Linear& v_b, const Linear& o, const Maybe<Norm>& q_a_norm,
                               const Norm& kv_a_norm, int64_t heads, int64_t rank, int64_t nope, int64_t rope, int64_t value_dim,
                               float scale, int rotation) {
  auto made = std::make_shared<Latent>(around, Latent::Parts{held(q_a), q, kv_a, k_b, v_b, o, held(q_a_norm), kv_a_norm},
                                       Latent::Form{heads, rank, nope, rope, value_dim, {scale, 0}, rotation});
  check(around, made->hidden());
  return made;
}

using Mlp = std::tuple<std::shared_ptr<Linear>, std::shared_ptr<Linear>, std::shared_ptr<Linear>>;

GatedMlp mlp(const Mlp& from) {
  const auto& [gate, up, down] = from;
  require(gate && up && down, "a matrix of the MLP is missing");
  return {*gate, *up, *down};
}

std::shared_ptr<Dense> dense(const Block::Around& around, const Mlp& matrices, const std::string& kind) {
  auto made = std::make_shared<Dense>(around, mlp(matrices), activation(kind));
  check(around, made->hidden());
  return made;
}

std::shared_ptr<ExpertSet> expert_set(const std::vector<std::optional<Mlp>>& matrices, int64_t width, int64_t hidden, const std::string& kind,
                                      const std::optional<Mlp>& shared) {
  std::vector<GatedMlp> experts;
  for (const std::optional<Mlp>& one : matrices) experts.push_back(one ? mlp(*one) : GatedMlp{});
  return std::make_shared<ExpertSet>(std::move(experts), shared ? mlp(*shared) : GatedMlp{}, width, hidden, activation(kind));
}

std::shared_ptr<Experts> experts(const Block::Around& around, const Linear& router, const std::vector<std::optional<Mlp>>& matrices, int64_t chosen,
                                 int64_t width, const std::string& kind, const std::optional<In<float, 1>>& selection_bias,
                                 const std::optional<Mlp>& shared, const Maybe<Linear>& shared_gate, bool sigmoid, bool softmax_after,
                                 bool renormalised, float scale, int64_t groups, int64_t groups_chosen, bool group_by_two) {
  require(router.weight != nullptr, "the router does not have a row for each expert");
  auto made = std::make_shared<Experts>(
      around, Experts::Parts{router, floats(selection_bias), held(shared_gate)},
      *expert_set(matrices, width, router.weight->k, kind, shared),
      Routing{chosen, sigmoid, softmax_after, renormalised, scale, groups, groups_chosen, group_by_two});
  check(around, made->hidden());
  return made;
}

std::shared_ptr<Head> head(const Norm& norm, const Linear& linear) {
  require(norm.size() == linear.weight->k, "the final norm has the wrong length");
  return std::make_shared<Head>(Head{norm, linear});
}

// KV blocks of one layer in Python's form: uint8 [blocks, bytes of a block].
using PoolArray = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using RotationArrays = std::vector<std::tuple<In<float, 2>, In<float, 2>>>;

struct Given {
  In<int32_t, 1> starts, positions;
  In<int32_t, 2> tables;
  RotationArrays rotations;
};

// Refuses anything that would read or write outside the arrays, so that a wrong plan is an error and not a crash.
Batch checked(const Given& in, int64_t rows, int64_t blocks) {
  const int64_t sequences = static_cast<int64_t>(in.positions.size());
  require(sequences > 0 && static_cast<int64_t>(in.starts.size()) == sequences + 1, "starts must have one entry more than positions");
  require(static_cast<int64_t>(in.tables.shape(0)) == sequences, "one block table per sequence");
  const int64_t width = static_cast<int64_t>(in.tables.shape(1));
  require(in.starts.data()[0] == 0 && in.starts.data()[sequences] == rows, "starts must cover all rows");
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t count = in.starts.data()[s + 1] - in.starts.data()[s], first = in.positions.data()[s];
    require(count > 0 && first >= 0, "every sequence needs a row and a position");
    const int64_t used = (first + count + kTokens - 1) / kTokens;
    require(used <= width, "a block table is too short for its sequence");
    for (int64_t i = 0; i < used; ++i) {
      const int32_t block = in.tables.data()[s * width + i];
      require(block >= 0 && block < blocks, "a block table names a block outside the pool");
    }
  }
  Batch batch{rows, sequences, in.starts.data(), in.positions.data(), in.tables.data(), width, {}};
  for (const auto& [cos, sin] : in.rotations) {
    require(static_cast<int64_t>(cos.shape(0)) == rows && cos.shape(0) == sin.shape(0) && cos.shape(1) == sin.shape(1),
            "cosines and sines are [rows, rotated / 2]");
    batch.rotations.push_back({cos.data(), sin.data(), static_cast<int64_t>(cos.shape(1))});
  }
  return batch;
}

void check(const AttentionBlock& block, const Batch& batch, const PoolArray& pool, KvType type) {
  require(static_cast<int64_t>(pool.shape(1)) == block.heads().block_bytes(type), "the pool's blocks have the wrong size");
  const int at = block.rotation();
  require(at < static_cast<int>(batch.rotations.size()) && (at < 0 || batch.rotations[static_cast<size_t>(at)].half == block.rotated() / 2),
          "a layer's rotation is not given, or has another width");
}

// A NumPy array of its own memory.
template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<2>> array(const std::vector<T>& values, const std::array<int64_t, 2>& shape) {
  T* out = new T[values.size()];
  std::copy(values.begin(), values.end(), out);
  nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return {out, {static_cast<size_t>(shape[0]), static_cast<size_t>(shape[1])}, owner};
}

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> array(const std::vector<T>& values) {
  T* out = new T[values.size()];
  std::copy(values.begin(), values.end(), out);
  nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return {out, {values.size()}, owner};
}

class PyStage {
 public:
  PyStage(int64_t hidden, int threads, const std::string& isa) : stage_(choose(isa), hidden, checked_threads(threads)) {}

  void forward(Out<float, 2> hidden, In<int32_t, 1> starts, In<int32_t, 1> positions, In<int32_t, 2> tables,
               const RotationArrays& rotations, const std::vector<std::shared_ptr<AttentionBlock>>& attention,
               const std::vector<std::shared_ptr<FeedForwardBlock>>& feed_forward, const std::vector<PoolArray>& pools, const std::string& kv_type) {
    require(!pools.empty() && pools.size() == attention.size() && pools.size() == feed_forward.size(), "each layer has two blocks and a pool");
    require(static_cast<int64_t>(hidden.shape(1)) == stage_.width(), "hidden is [rows, hidden]");
    const KvType type = shoal::kv_type(kv_type);
    const Given in{starts, positions, tables, rotations};
    const Batch batch = checked(in, static_cast<int64_t>(hidden.shape(0)), static_cast<int64_t>(pools[0].shape(0)));
    std::vector<Layer> layers;
    for (size_t i = 0; i < pools.size(); ++i) {
      require(attention[i] && feed_forward[i], "a block is missing");
      const auto* experts = dynamic_cast<const Experts*>(feed_forward[i].get());
      require(!experts || experts->set.all_here(), "an expert is not here");
      require(attention[i]->hidden() == stage_.width() && feed_forward[i]->hidden() == stage_.width(), "a block takes another width");
      require(pools[i].shape(0) == pools[0].shape(0), "the pools have different numbers of blocks");
      check(*attention[i], batch, pools[i], type);
      layers.push_back({attention[i].get(), feed_forward[i].get(), pools[i].data()});
    }
    float* h = hidden.data();
    nb::gil_scoped_release release;
    stage_.forward(h, batch, layers, type);
  }

  nb::ndarray<nb::numpy, int64_t, nb::ndim<2>> route(Out<float, 2> hidden, In<int32_t, 1> starts, In<int32_t, 1> positions,
                                                     In<int32_t, 2> tables, const RotationArrays& rotations,
                                                     const AttentionBlock& attention, const Experts& experts, PoolArray pool, const std::string& kv_type) {
    const int64_t rows = static_cast<int64_t>(hidden.shape(0));
    require(static_cast<int64_t>(hidden.shape(1)) == stage_.width(), "hidden is [rows, hidden]");
    require(attention.hidden() == stage_.width() && experts.hidden() == stage_.width(), "a block takes another width");
    const KvType type = shoal::kv_type(kv_type);
    const Given in{starts, positions, tables, rotations};
    const Batch batch = checked(in, rows, static_cast<int64_t>(pool.shape(0)));
    check(attention, batch, pool, type);
    float* h = hidden.data();
    uint8_t* p = pool.data();
    under_way_ = experts.id;
    const std::vector<ExpertRows>* chosen;
    {
      nb::gil_scoped_release release;
      chosen = &stage_.choose(h, batch, attention, experts, p, type);
    }
    const size_t count = chosen->size();
    auto* out = new int64_t[count * 2];
    for (size_t i = 0; i < count; ++i) out[2 * i] = (*chosen)[i].expert, out[2 * i + 1] = (*chosen)[i].count;
    nb::capsule owner(out, [](void* q) noexcept { delete[] static_cast<int64_t*>(q); });
    return {out, {count, 2}, owner};
  }

  void compute(Out<float, 2> hidden, const Experts& experts, const std::vector<int64_t>& places) {
    going_on(hidden, experts);
    float* h = hidden.data();
    nb::gil_scoped_release release;
    stage_.compute(h, experts, places);
  }

  // What goes to experts elsewhere, as it is on the wire: see shoal/wire/routed.py.
  nb::tuple dispatch(const Experts& experts, const std::vector<int64_t>& places, bool floats) {
    require(under_way_ == experts.id, "the step runs another block");
    const Dispatch of = stage_.dispatch(experts, places);
    const int64_t width = stage_.width(), rows = static_cast<int64_t>(of.rows.size()), blocks = width / kBlock;
    require(floats || experts.set.quantised(), "the experts take floats");
    const size_t row = static_cast<size_t>(floats ? 4 * width : width + 4 * blocks);
    const size_t size = 4 * (of.experts.size() + of.offsets.size() + of.index.size() + of.weights.size()) + of.rows.size() * row;
    nb::bytes body = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
    if (!body.is_valid()) nb::raise_python_error();
    char* to = PyBytes_AS_STRING(body.ptr());
    const auto put = [&](const auto* from, int64_t count) {
      const size_t bytes = static_cast<size_t>(count) * sizeof(*from);
      if (bytes) std::memcpy(to, from, bytes);
      to += bytes;
    };
    const auto whole = [&](const auto& of) { put(of.data(), static_cast<int64_t>(of.size())); };
    whole(of.experts), whole(of.offsets), whole(of.index), whole(of.weights);
    const Activations in = stage_.input().from();
    for (const int32_t r : of.rows) floats ? put(in.x + r * width, width) : put(in.scale + r * blocks, blocks);
    for (int64_t i = 0; !floats && i < rows; ++i) put(in.q + of.rows[static_cast<size_t>(i)] * width, width);
    return nb::make_tuple(array(of.rows), of.index.size(), body);
  }

  void add(Out<float, 2> hidden, const Experts& experts, const std::vector<int64_t>& places, In<int32_t, 1> rows, In<double, 2> sums) {
    going_on(hidden, experts);
    require(sums.shape(0) == rows.size() && static_cast<int64_t>(sums.shape(1)) == stage_.width(), "sums are [rows, hidden]");
    float* h = hidden.data();
    nb::gil_scoped_release release;
    stage_.add(h, experts, places, rows.data(), static_cast<int64_t>(rows.size()), sums.data());
  }

  nb::ndarray<nb::numpy, int32_t, nb::ndim<1>> drop(Out<float, 2> hidden, const Experts& experts, const std::vector<int64_t>& places) {
    going_on(hidden, experts);
    return array(stage_.drop(hidden.data(), experts, places));
  }

  nb::ndarray<nb::numpy, double, nb::ndim<2>> partial(const ExpertSet& set, In<uint8_t, 1> body, int64_t rows, int64_t count, int64_t entries,
                                                      bool rounded) {
    const int64_t width = stage_.width(), blocks = width / kBlock, most = int64_t{1} << 31;
    require(set.hidden() == width, "the experts take another width");
    require(rows > 0 && count > 0 && entries >= 0 && rows < most && count < most && entries < most, "there is nothing to compute");
    require(!rounded || !set.floats(), "the experts take floats");
    const int64_t row = rounded ? width + 4 * blocks : 4 * width;
    require(static_cast<int64_t>(body.size()) == 4 * (2 * count + 1 + 2 * entries) + rows * row, "the body has another size");
    const uint8_t* from = body.data();
    const auto take = [&](auto& into, int64_t items) {  // it may begin anywhere in memory
      into.resize(static_cast<size_t>(items));
      const size_t bytes = into.size() * sizeof(into[0]);
      if (bytes) std::memcpy(into.data(), from, bytes);
      from += bytes;
    };
    Dispatch of;
    take(of.experts, count), take(of.offsets, count + 1), take(of.index, entries), take(of.weights, entries);
    require(of.offsets[0] == 0 && of.offsets[static_cast<size_t>(count)] == entries, "offsets begin at 0 and end with the entries");
    for (size_t e = 0; e < of.experts.size(); ++e) {
      const int32_t expert = of.experts[e];
      require(of.offsets[e] <= of.offsets[e + 1] && of.offsets[e + 1] - of.offsets[e] <= rows, "an expert has too many rows");
      require(expert >= 0 && expert < set.count() && set.here(expert), "an expert is not here");
      require(e == 0 || of.experts[e - 1] < expert, "the experts do not rise");
    }
    for (const int32_t at : of.index) require(at >= 0 && at < rows, "an entry names a row that is not there");
    std::vector<float> x;
    take(x, rows * (rounded ? blocks : width));
    const int8_t* q = rounded ? reinterpret_cast<const int8_t*>(from) : nullptr;
    std::vector<double> sums(static_cast<size_t>(rows * width));
    {
      nb::gil_scoped_release release;
      stage_.partial(set, of, rows, rounded ? nullptr : x.data(), q, rounded ? x.data() : nullptr, sums.data());
    }
    return array(sums, {rows, width});
  }

  int64_t awaited() const { return stage_.awaited(); }

  void logits(In<float, 2> hidden, const Head& head, In<int32_t, 1> picked, Out<float, 2> out) {
    const int64_t count = static_cast<int64_t>(picked.size());
    require(static_cast<int64_t>(hidden.shape(1)) == stage_.width() && head.linear.weight->k == stage_.width(), "hidden is [rows, hidden]");
    for (int64_t i = 0; i < count; ++i) {
      require(picked.data()[i] >= 0 && picked.data()[i] < static_cast<int64_t>(hidden.shape(0)), "a picked row is outside hidden");
    }
    require(static_cast<int64_t>(out.shape(0)) == count && static_cast<int64_t>(out.shape(1)) == head.linear.weight->panels() * kPanel,
            "logits are [picked rows, vocabulary padded to 16]");
    const float* h = hidden.data();
    const int32_t* rows = picked.data();
    float* o = out.data();
    nb::gil_scoped_release release;
    stage_.logits(h, head, rows, count, o);
  }

  void attend(const GroupedQuery& block, In<float, 2> qkv, In<int32_t, 1> starts, In<int32_t, 1> positions, In<int32_t, 2> tables,
              const RotationArrays& rotations, PoolArray pool, const std::string& kv_type, Out<float, 2> out) {
    const int64_t rows = static_cast<int64_t>(qkv.shape(0)), q_width = block.heads().q * block.heads().value;
    require(static_cast<int64_t>(qkv.shape(1)) == block.width(), "qkv is [rows, queries + keys + values]");
    require(static_cast<int64_t>(out.shape(0)) == rows && static_cast<int64_t>(out.shape(1)) == q_width, "out is [rows, q heads * value width]");
    const KvType type = shoal::kv_type(kv_type);
    const Given in{starts, positions, tables, rotations};
    const Batch batch = checked(in, rows, static_cast<int64_t>(pool.shape(0)));
    check(block, batch, pool, type);
    const float* from = qkv.data();
    float* to = out.data();
    uint8_t* p = pool.data();
    nb::gil_scoped_release release;
    stage_.attention(block, from, batch, p, type, to);
  }

  const char* isa() const { return stage_.isa(); }

  std::tuple<double, double, double, double> spent() const {
    const auto seconds = [](std::chrono::nanoseconds part) { return std::chrono::duration<double>(part).count(); };
    const Spent& spent = stage_.spent();
    return {seconds(spent.attention), seconds(spent.feed_forward), seconds(spent.experts), seconds(spent.head)};
  }

 private:
  static int checked_threads(int threads) {
    require(threads >= 1, "there must be a thread");
    return threads;
  }

  void going_on(const Out<float, 2>& hidden, const Experts& experts) const {
    require(under_way_ == experts.id, "the step runs another block");
    require(static_cast<int64_t>(hidden.shape(0)) == stage_.rows() && static_cast<int64_t>(hidden.shape(1)) == stage_.width(),
            "hidden is not the step's");
  }

  Stage stage_;
  uint64_t under_way_ = 0;  // the block whose experts were chosen
};

using Form = std::tuple<std::string, std::string, std::string, std::vector<int8_t>, float, int32_t, int64_t, int64_t>;
constexpr const char* kKinds[] = {"f32", "q8", "q4", "q5", "q6"};
constexpr const char* kScalings[] = {"halves", "factors"};
constexpr const char* kOffsets[] = {"none", "minimum", "zero"};

Form form(const Matrix& m) {
  std::vector<int8_t> table;
  if (m.has_table) table.assign(m.table, m.table + 16);
  const char *kind = kKinds[static_cast<size_t>(m.kind)], *scaling = kScalings[static_cast<size_t>(m.scaling)];
  return {kind, scaling, kOffsets[static_cast<size_t>(m.offset)], std::move(table), m.unit, m.zero, m.n, m.k};
}

template <class E, size_t count>
E named(const std::string& name, const char* const (&names)[count]) {
  for (size_t i = 0; i < count; ++i) {
    if (name == names[i]) return static_cast<E>(i);
  }
  throw std::invalid_argument("a matrix's form has '" + name + "', which is unknown");
}

// A matrix over memory that holds it as packed. It keeps the memory.
std::shared_ptr<Matrix> matrix(const Form& form, nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> data) {
  auto m = std::make_shared<Matrix>();
  const auto& [kind, scaling, offset, table, unit, zero, n, k] = form;
  m->kind = named<Kind>(kind, kKinds), m->scaling = named<Scaling>(scaling, kScalings), m->offset = named<Offset>(offset, kOffsets);
  m->unit = unit, m->zero = zero, m->n = n, m->k = k;
  require(table.empty() || (table.size() == 16 && m->kind == Kind::Q4), "a table has 16 values, for codes of 4 bits");
  m->has_table = !table.empty();
  std::copy(table.begin(), table.end(), m->table);
  m->lay_out();
  require(static_cast<int64_t>(data.size()) == m->bytes(), "the memory of a matrix has another size than its form says");
  require(reinterpret_cast<uintptr_t>(data.data()) % 64 == 0, "the memory of a matrix must lie on a cache line");
  uint8_t* at = const_cast<uint8_t*>(data.data());  // the kernels only read it
  auto* kept = new auto(std::move(data));
  m->data = {at, [kept](uint8_t*) {
               nb::gil_scoped_acquire acquire;
               delete kept;
             }};
  return m;
}

nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>> contents(std::shared_ptr<Matrix> m) {
  auto* held = new std::shared_ptr<Matrix>(std::move(m));
  nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::shared_ptr<Matrix>*>(p); });
  return {(*held)->data.get(), {static_cast<size_t>((*held)->bytes())}, owner};
}

std::shared_ptr<Matrix> py_pack(const std::string& format, const std::string& target, In<uint8_t, 2> rows, int64_t k,
                                std::optional<In<int64_t, 1>> order, int threads) {
  const int64_t stored = static_cast<int64_t>(rows.shape(0)), n = order ? static_cast<int64_t>(order->size()) : stored;
  if (order) {
    for (int64_t i = 0; i < n; ++i) require(order->data()[i] >= 0 && order->data()[i] < stored, "order names a row that is not there");
  }
  if (needs_grid(format)) {
    const auto grid = nb::cast<In<int8_t, 2>>(nb::module_::import_("shoal.native.grids").attr("grid")(format));
    set_grid(format, grid.data(), static_cast<int64_t>(grid.shape(0)), static_cast<int64_t>(grid.shape(1)));
  }
  const uint8_t* data = rows.data();
  const int64_t row_bytes = static_cast<int64_t>(rows.shape(1));
  const int64_t* order_data = order ? order->data() : nullptr;
  nb::gil_scoped_release release;
  return pack(format, target, data, row_bytes, n, k, order_data, threads);
}

nb::ndarray<nb::numpy, uint64_t, nb::ndim<1>> counts(const Experts& block) {
  auto* copy = new std::vector<uint64_t>(block.counts());
  nb::capsule owner(copy, [](void* p) noexcept { delete static_cast<std::vector<uint64_t>*>(p); });
  return {copy->data(), {copy->size()}, owner};
}

}  // namespace
}  // namespace shoal

NB_MODULE(_kernels, m) {
  using namespace shoal;
  nb::set_leak_warnings(false);  // what a thread still holds when the process ends is no fault
  m.def("isa", [](const std::string& wanted) { return std::string(choose(wanted).name); }, "wanted"_a = "");
  m.def("argmax", [](In<float, 1> x) { return choose("").argmax(x.data(), static_cast<int64_t>(x.size())); }, "x"_a);
  m.def("pack", &py_pack, "format"_a, "target"_a, "rows"_a, "k"_a, "order"_a = nb::none(), "threads"_a = 1);
  m.attr("BLOCK_TOKENS") = kTokens;

  nb::class_<Matrix>(m, "Matrix")
      .def(nb::new_(&matrix), "form"_a, "data"_a)
      .def_prop_ro("form", &form)
      .def_prop_ro("data", &contents, nb::rv_policy::automatic)
      .def_prop_ro("shape", [](const Matrix& x) { return nb::make_tuple(x.n, x.k); })
      .def_prop_ro("nbytes", &Matrix::bytes);
  nb::class_<Linear>(m, "Linear").def(nb::new_(&linear), "weight"_a, "bias"_a = nb::none()).def_prop_ro("nbytes", &Linear::bytes);
  nb::class_<Norm>(m, "Norm").def(nb::new_(&norm), "weight"_a, "eps"_a, "bias"_a = nb::none(), "centred"_a = false);
  nb::class_<Block::Around>(m, "Around")
      .def(nb::new_(&around), "before"_a = nb::none(), "after"_a = nb::none(), "scale"_a = 1.0f, "same_input"_a = false);

  nb::class_<Block>(m, "Block").def_prop_ro("nbytes", &Block::bytes);
  nb::class_<AttentionBlock, Block>(m, "AttentionBlock");
  nb::class_<FeedForwardBlock, Block>(m, "FeedForwardBlock");
  nb::class_<GroupedQuery, AttentionBlock>(m, "GroupedQuery")
      .def(nb::new_(&grouped_query), "around"_a, "q"_a.none(), "k"_a.none(), "v"_a.none(), "o"_a.none(), nb::kw_only(), "q_heads"_a,
           "kv_heads"_a, "key_dim"_a, "value_dim"_a, "q_norm"_a = nb::none(), "k_norm"_a = nb::none(), "scale"_a, "cap"_a = 0.0f,
           "clip"_a = 0.0f, "window"_a = 0, "rotation"_a = -1, "rotated"_a = 0, "sinks"_a = nb::none());
  nb::class_<Latent, AttentionBlock>(m, "Latent")
      .def(nb::new_(&latent), "around"_a, "q_a"_a.none(), "q"_a, "kv_a"_a, "k_b"_a, "v_b"_a, "o"_a, nb::kw_only(),
           "q_a_norm"_a = nb::none(), "kv_a_norm"_a, "heads"_a, "rank"_a, "nope"_a, "rope"_a, "value_dim"_a, "scale"_a, "rotation"_a = -1);
  nb::class_<Dense, FeedForwardBlock>(m, "Dense").def(nb::new_(&dense), "around"_a, "mlp"_a, "activation"_a = "silu");
  nb::class_<Experts, FeedForwardBlock>(m, "Experts")
      .def(nb::new_(&experts), "around"_a, "router"_a, "experts"_a, nb::kw_only(), "chosen"_a, "width"_a = 0, "activation"_a = "silu",
           "selection_bias"_a = nb::none(), "shared"_a = nb::none(), "shared_gate"_a = nb::none(), "sigmoid"_a = false,
           "softmax_after"_a = false, "renormalised"_a = false, "scale"_a = 1.0f, "groups"_a = 1, "groups_chosen"_a = 1,
           "group_by_two"_a = false)
      .def("place", [](Experts& block, int64_t expert, const std::optional<Mlp>& of) { block.set.place(expert, of ? mlp(*of) : GatedMlp{}); },
           "expert"_a, "mlp"_a.none())
      .def_prop_ro("counts", &counts, nb::rv_policy::automatic);  // not as part of the block: it is a copy
  nb::class_<ExpertSet>(m, "ExpertSet")
      .def(nb::new_([](const std::vector<std::optional<Mlp>>& matrices, int64_t width, int64_t hidden, const std::string& kind) {
             return expert_set(matrices, width, hidden, kind, std::nullopt);
           }),
           "experts"_a, nb::kw_only(), "width"_a, "hidden"_a, "activation"_a = "silu")
      .def("place", [](ExpertSet& set, int64_t expert, const std::optional<Mlp>& of) { set.place(expert, of ? mlp(*of) : GatedMlp{}); },
           "expert"_a, "mlp"_a.none())
      .def_prop_ro("nbytes", &ExpertSet::bytes);
  nb::class_<Head>(m, "Head").def(nb::new_(&head), "norm"_a, "linear"_a).def_prop_ro("nbytes", [](const Head& h) {
    return h.linear.bytes();
  });

  nb::class_<PyStage>(m, "Stage")
      .def(nb::init<int64_t, int, const std::string&>(), "hidden"_a, "threads"_a, "isa"_a = "")
      .def("forward", &PyStage::forward, "hidden"_a, "starts"_a, "positions"_a, "tables"_a, "rotations"_a, "attention"_a, "feed_forward"_a,
           "pools"_a, "kv_type"_a)
      .def("route", &PyStage::route, "hidden"_a, "starts"_a, "positions"_a, "tables"_a, "rotations"_a, "attention"_a, "experts"_a,
           "pool"_a, "kv_type"_a, nb::rv_policy::automatic)
      .def("compute", &PyStage::compute, "hidden"_a, "experts"_a, "places"_a)
      .def("dispatch", &PyStage::dispatch, "experts"_a, "places"_a, "floats"_a, nb::rv_policy::automatic)
      .def("add", &PyStage::add, "hidden"_a, "experts"_a, "places"_a, "rows"_a, "sums"_a)
      .def("drop", &PyStage::drop, "hidden"_a, "experts"_a, "places"_a, nb::rv_policy::automatic)
      .def("partial", &PyStage::partial, "set"_a, "body"_a, "rows"_a, "experts"_a, "entries"_a, "rounded"_a,
           nb::rv_policy::automatic)
      .def_prop_ro("awaited", &PyStage::awaited)
      .def("logits", &PyStage::logits, "hidden"_a, "head"_a, "picked"_a, "out"_a)
      .def("attend", &PyStage::attend, "block"_a, "qkv"_a, "starts"_a, "positions"_a, "tables"_a, "rotations"_a, "pool"_a, "kv_type"_a, "out"_a)
      .def_prop_ro("isa", &PyStage::isa)
      .def_prop_ro("spent", &PyStage::spent);
}
