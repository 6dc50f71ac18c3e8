// The Python interface: checks arrays and passes them to the kernels. shoal.native wraps it; nothing else imports it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
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

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

std::vector<float> floats(const std::optional<In<float, 1>>& a, int64_t padded = 0) {
  if (!a) return {};
  std::vector<float> out(a->data(), a->data() + a->size());
  if (static_cast<int64_t>(out.size()) < padded) out.resize(static_cast<size_t>(padded));
  return out;
}

Linear linear(std::shared_ptr<Matrix> weight, const std::optional<In<float, 1>>& bias, int64_t n, int64_t k) {
  require(weight && weight->n == n && weight->k == k, "a weight matrix has the wrong shape");
  require(!bias || static_cast<int64_t>(bias->size()) == n, "a bias has the wrong length");
  auto b = floats(bias, weight->panels() * kPanel);
  return {std::move(weight), std::move(b)};
}

// KV blocks of one layer in Python's form: uint8 [blocks, bytes of a block].
using PoolArray = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

struct Rows {
  In<int32_t, 1> starts, positions;
  In<int32_t, 2> tables;
  In<float, 2> cos, sin;
};

// Refuses anything that would read or write outside the arrays, so that a wrong plan is an error and not a crash.
Batch checked(const Rows& in, int64_t rows, int64_t blocks, int64_t head_dim) {
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
  for (const auto* a : {&in.cos, &in.sin}) {
    require(static_cast<int64_t>(a->shape(0)) == rows && static_cast<int64_t>(a->shape(1)) == head_dim / 2, "cos and sin are [rows, head_dim / 2]");
  }
  return {rows, sequences, in.starts.data(), in.positions.data(), in.tables.data(), width, in.cos.data(), in.sin.data()};
}

class PyStage {
 public:
  PyStage(int64_t hidden, int64_t q_heads, int64_t kv_heads, int64_t head_dim, int64_t intermediate, float eps, float scale,
          int threads, const std::string& isa)
      : shape_{hidden, q_heads, kv_heads, head_dim, intermediate, eps, scale}, stage_(choose(isa), shape_, threads) {
    require(threads >= 1 && kv_heads >= 1 && q_heads % kv_heads == 0, "threads and heads must be positive, q_heads a multiple of kv_heads");
  }

  void add_layer(In<float, 1> attention_norm, In<float, 1> mlp_norm, std::optional<In<float, 1>> q_norm,
                 std::optional<In<float, 1>> k_norm, const std::vector<std::shared_ptr<Matrix>>& w,
                 const std::vector<std::optional<In<float, 1>>>& b, int32_t window) {
    const int64_t h = shape_.hidden, q = shape_.q_heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim, m = shape_.intermediate;
    require(w.size() == 7 && b.size() == 7, "a layer has seven matrices: q k v o gate up down");
    require(static_cast<int64_t>(attention_norm.size()) == h && static_cast<int64_t>(mlp_norm.size()) == h, "a norm has the wrong length");
    Layer layer;
    layer.attention_norm = floats(attention_norm), layer.mlp_norm = floats(mlp_norm);
    layer.q_norm = floats(q_norm), layer.k_norm = floats(k_norm);
    layer.q = linear(w[0], b[0], q, h), layer.k = linear(w[1], b[1], kv, h), layer.v = linear(w[2], b[2], kv, h);
    layer.o = linear(w[3], b[3], h, q), layer.gate = linear(w[4], b[4], m, h), layer.up = linear(w[5], b[5], m, h);
    layer.down = linear(w[6], b[6], h, m);
    layer.window = window;
    stage_.add(std::move(layer));
    ++layers_;
  }

  void set_head(In<float, 1> norm, std::shared_ptr<Matrix> head) {
    require(static_cast<int64_t>(norm.size()) == shape_.hidden, "the final norm has the wrong length");
    const int64_t n = head ? head->n : 0;
    stage_.set_head(floats(norm), linear(std::move(head), std::nullopt, n, shape_.hidden));
  }

  void trim(int64_t first, int64_t end) {
    require(0 <= first && first < end && end <= layers_, "there are no such layers to keep");
    if (end < layers_) stage_.set_head({}, {});
    stage_.trim(static_cast<size_t>(first), static_cast<size_t>(end));
    layers_ = end - first;
  }

  void forward(Out<float, 2> hidden, In<int32_t, 1> starts, In<int32_t, 1> positions, In<int32_t, 2> tables, In<float, 2> cos,
               In<float, 2> sin, const std::vector<PoolArray>& pools, bool bf16) {
    require(static_cast<int64_t>(pools.size()) == layers_ && layers_ > 0, "one pool for each layer");
    const int64_t rows = static_cast<int64_t>(hidden.shape(0)), blocks = static_cast<int64_t>(pools[0].shape(0));
    require(static_cast<int64_t>(hidden.shape(1)) == shape_.hidden, "hidden is [rows, hidden]");
    std::vector<uint8_t*> bases;
    for (const PoolArray& pool : pools) {
      require(static_cast<int64_t>(pool.shape(0)) == blocks, "the pools have different numbers of blocks");
      require(static_cast<int64_t>(pool.shape(1)) == shape_.kv_heads * 2 * kTokens * shape_.head_dim * (bf16 ? 2 : 4), "the pool's blocks have the wrong size");
      bases.push_back(pool.data());
    }
    const Rows in{starts, positions, tables, cos, sin};
    const Batch batch = checked(in, rows, blocks, shape_.head_dim);
    float* h = hidden.data();
    nb::gil_scoped_release release;
    stage_.forward(h, batch, bases, bf16);
  }

  void logits(In<float, 2> hidden, In<int32_t, 1> picked, Out<float, 2> out) {
    const int64_t count = static_cast<int64_t>(picked.size());
    require(static_cast<int64_t>(hidden.shape(1)) == shape_.hidden, "hidden is [rows, hidden]");
    for (int64_t i = 0; i < count; ++i) {
      require(picked.data()[i] >= 0 && picked.data()[i] < static_cast<int64_t>(hidden.shape(0)), "a picked row is outside hidden");
    }
    const int64_t padded = (stage_.vocabulary() + kPanel - 1) / kPanel * kPanel;
    require(static_cast<int64_t>(out.shape(0)) == count && static_cast<int64_t>(out.shape(1)) == padded, "logits are [picked rows, vocabulary padded to 16]");
    const float* h = hidden.data();
    const int32_t* rows = picked.data();
    float* o = out.data();
    nb::gil_scoped_release release;
    stage_.logits(h, rows, count, o);
  }

  int64_t bytes() const { return stage_.bytes(); }
  const char* isa() const { return stage_.isa(); }

 private:
  Shape shape_;
  int64_t layers_ = 0;
  Stage stage_;
};

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

// Only attention, for executors whose linear layers run elsewhere: rope, append and attend for one layer's rows.
class Attention {
 public:
  Attention(int64_t q_heads, int64_t kv_heads, int64_t head_dim, float eps, float scale, int threads, const std::string& isa)
      : core_(choose(isa), {16, q_heads, kv_heads, head_dim, 16, eps, scale}, threads), head_dim_(head_dim), q_heads_(q_heads), kv_heads_(kv_heads) {
    require(threads >= 1 && kv_heads >= 1 && q_heads % kv_heads == 0, "threads and heads must be positive, q_heads a multiple of kv_heads");
  }

  void run(In<float, 2> qkv, In<int32_t, 1> starts, In<int32_t, 1> positions, In<int32_t, 2> tables, In<float, 2> cos,
           In<float, 2> sin, nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> pool, bool bf16, int32_t window,
           std::optional<In<float, 1>> q_norm, std::optional<In<float, 1>> k_norm, Out<float, 2> out) {
    const int64_t rows = static_cast<int64_t>(qkv.shape(0)), blocks = static_cast<int64_t>(pool.shape(0));
    require(static_cast<int64_t>(qkv.shape(1)) == (q_heads_ + 2 * kv_heads_) * head_dim_, "qkv is [rows, (q + 2 kv heads) * head_dim]");
    require(static_cast<int64_t>(out.shape(0)) == rows && static_cast<int64_t>(out.shape(1)) == q_heads_ * head_dim_, "out is [rows, q_heads * head_dim]");
    require(static_cast<int64_t>(pool.shape(1)) == kv_heads_ * 2 * kTokens * head_dim_ * (bf16 ? 2 : 4), "the pool's blocks have the wrong size");
    const Rows in{starts, positions, tables, cos, sin};
    const Batch batch = checked(in, rows, blocks, head_dim_);
    Layer layer;
    layer.q_norm = floats(q_norm), layer.k_norm = floats(k_norm), layer.window = window;
    const float* from = qkv.data();
    float* to = out.data();
    uint8_t* p = pool.data();
    nb::gil_scoped_release release;
    core_.attention(layer, from, batch, p, bf16, to);
  }

 private:
  Stage core_;
  int64_t head_dim_, q_heads_, kv_heads_;
};

}  // namespace
}  // namespace shoal

NB_MODULE(_kernels, m) {
  using namespace shoal;
  m.def("isa", [](const std::string& wanted) { return std::string(choose(wanted).name); }, "wanted"_a = "");
  m.def("argmax", [](In<float, 1> x) { return choose("").argmax(x.data(), static_cast<int64_t>(x.size())); }, "x"_a);
  m.def("pack", &py_pack, "format"_a, "target"_a, "rows"_a, "k"_a, "order"_a = nb::none(), "threads"_a = 1);
  m.attr("BLOCK_TOKENS") = kTokens;

  nb::class_<Matrix>(m, "Matrix")
      .def_prop_ro("shape", [](const Matrix& x) { return nb::make_tuple(x.n, x.k); })
      .def_prop_ro("nbytes", &Matrix::bytes);

  nb::class_<PyStage>(m, "Stage")
      .def(nb::init<int64_t, int64_t, int64_t, int64_t, int64_t, float, float, int, const std::string&>(), "hidden"_a, "q_heads"_a,
           "kv_heads"_a, "head_dim"_a, "intermediate"_a, "eps"_a, "scale"_a, "threads"_a, "isa"_a = "")
      .def("add_layer", &PyStage::add_layer, "attention_norm"_a, "mlp_norm"_a, "q_norm"_a.none(), "k_norm"_a.none(), "weights"_a,
           "biases"_a, "window"_a = 0)
      .def("set_head", &PyStage::set_head, "norm"_a, "head"_a)
      .def("forward", &PyStage::forward, "hidden"_a, "starts"_a, "positions"_a, "tables"_a, "cos"_a, "sin"_a, "pools"_a, "bf16"_a)
      .def("trim", &PyStage::trim, "first"_a, "end"_a)
      .def("logits", &PyStage::logits, "hidden"_a, "picked"_a, "out"_a)
      .def_prop_ro("nbytes", &PyStage::bytes)
      .def_prop_ro("isa", &PyStage::isa);

  nb::class_<Attention>(m, "Attention")
      .def(nb::init<int64_t, int64_t, int64_t, float, float, int, const std::string&>(), "q_heads"_a, "kv_heads"_a, "head_dim"_a,
           "eps"_a, "scale"_a, "threads"_a, "isa"_a = "")
      .def("run", &Attention::run, "qkv"_a, "starts"_a, "positions"_a, "tables"_a, "cos"_a, "sin"_a, "pool"_a, "bf16"_a, "window"_a,
           "q_norm"_a.none(), "k_norm"_a.none(), "out"_a);
}
