// Every instruction set of a processor against plain double-precision loops, without Python: for processors that are only emulated.
//
// Usage: check_kernels SET...    Exit status 0 where each SET is there and right; each failure is a line on stderr.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "stage.h"

using namespace shoal;

namespace {

int failures = 0;
std::string where;

void check(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s: %s\n", where.c_str(), what.c_str());
}

std::vector<float> normal(int64_t size, unsigned seed) {
  std::mt19937 bits(seed);  // the same numbers on every machine, which std::normal_distribution does not promise
  std::vector<float> out(static_cast<size_t>(size));
  for (float& x : out) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += bits() / 4294967296.0;
    x = static_cast<float>(sum);
  }
  return out;
}

double error(const std::vector<float>& got, const std::vector<double>& wanted) {  // relative, of the whole
  double difference = 0, size = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    difference += (got[i] - wanted[i]) * (got[i] - wanted[i]), size += wanted[i] * wanted[i];
  }
  return std::sqrt(difference / size);
}

bool same(const float* a, const float* b, int64_t n) { return std::memcmp(a, b, static_cast<size_t>(n) * 4) == 0; }

// Weights

struct Format {
  const char *name, *target;
  int64_t block_bytes, block;  // block: weights of one
};
constexpr Format kFormats[] = {{"f32", "f32", 4, 1},    {"f32", "q8", 4, 1},      {"f32", "q4", 4, 1},      {"q4_0", "q4", 18, 32},
                               {"q4_1", "q4", 20, 32},  {"q5_0", "q5", 22, 32},   {"q5_1", "q5", 24, 32},   {"q8_0", "q8", 34, 32},
                               {"q4_k", "q4", 144, 256}, {"q5_k", "q5", 176, 256}, {"q6_k", "q6", 210, 256}, {"q6_k", "q8", 210, 256},
                               {"q2_k", "q4", 84, 256},  {"q3_k", "q4", 110, 256}, {"mxfp4", "q4", 17, 32},  {"iq4_nl", "q4", 18, 32}, {"iq4_xs", "q4", 136, 256},
                               {"u4g64", "q4", 35, 64}};

// Stored rows: random bits, with sane scales where a format has them.
std::vector<uint8_t> stored(const Format& format, int64_t n, int64_t k) {
  const int64_t blocks = n * k / format.block, size = blocks * format.block_bytes;
  std::vector<uint8_t> out(static_cast<size_t>(size));
  if (format.block == 1) {
    const std::vector<float> values = normal(n * k, 7);
    std::memcpy(out.data(), values.data(), out.size());
    return out;
  }
  std::mt19937 bits(11);
  for (uint8_t& byte : out) byte = static_cast<uint8_t>(bits());
  const std::string name = format.name;
  const bool last = name == "q6_k" || name == "q3_k";
  const int halves = format.block == 256 && name[0] == 'q' && !last ? 2 : name.back() == '1' ? 2 : 1;
  for (int64_t b = 0; b < blocks; ++b) {
    if (name == "mxfp4") {
      out[size_t(b * 17)] = static_cast<uint8_t>(115 + bits() % 8);
      continue;
    }
    for (int i = 0; i < halves; ++i) {
      const uint16_t scale = float_to_half(0.001f + 0.009f * static_cast<float>(bits() / 4294967296.0));
      std::memcpy(out.data() + b * format.block_bytes + (last ? format.block_bytes - 2 : name == "q2_k" ? 80 + 2 * i : 2 * i), &scale, 2);
    }
  }
  return out;
}

double weight(const Matrix& m, int64_t row, int64_t column) {  // as matrix.h says that it lies
  const int64_t p = row / kPanel, lane = row % kPanel, b = column / kBlock, i = column % kBlock;
  if (m.kind == Kind::F32) return reinterpret_cast<const float*>(m.panel(p))[column * kPanel + lane];
  int q;
  if (m.kind == Kind::Q8) {
    q = m.panel(p)[b * 512 + i / 4 * 64 + lane * 4 + i % 4];
  } else if (m.kind == Kind::Q6) {
    const uint8_t* byte = m.panel(p) + b * 384 + i / 16 * 192 + lane * 4 + i % 4;
    q = i % 16 < 12 ? byte[i % 16 / 4 * 64] & 63 : byte[0] >> 6 | byte[64] >> 6 << 2 | byte[128] >> 6 << 4;
  } else {
    const uint8_t* byte = m.panel(p) + b * (m.kind == Kind::Q5 ? 320 : 256) + lane * 4 + i % 4;
    q = byte[i % 16 / 4 * 64];
    q = i < 16 ? q & 15 : q >> 4;
    if (m.kind == Kind::Q5) q |= (byte[256] >> i / 4 & 1) << 4;
  }
  if (m.scaling == Scaling::Factors) {
    const double scale = m.factors(p)[(b * 2 + i / 16) * kPanel + lane] * double(half_to_float(m.supers(p)[b / 8 * kPanel + lane]));
    if (m.offset == Offset::Minimum) {
      const double minimum = m.minimum_factors(p)[(b * 2 + i / 16) * kPanel + lane] * double(half_to_float(m.minimum_supers(p)[b / 8 * kPanel + lane]));
      return scale * m.table[q] + minimum;
    }
    return m.has_table ? m.unit * scale * m.table[q] : scale * double(q - m.zero);
  }
  const double scale = half_to_float(m.scales(p)[b * kPanel + lane]);
  const double offset = m.offset != Offset::None ? half_to_float(m.offsets(p)[b * kPanel + lane]) : 0;
  if (m.has_table) return m.unit * scale * m.table[q];
  return m.offset == Offset::Zero ? scale * (q - offset) : scale * double(q - m.zero) + offset;
}

struct Inputs {
  int64_t rows, k;
  std::vector<float> x, scale;
  std::vector<int8_t> q;
  std::vector<int32_t> sum, less;

  Inputs(const Kernels& kernels, int64_t rows_, int64_t k_) : Inputs(kernels, rows_, k_, normal(rows_ * k_, 3)) {}
  Inputs(const Kernels& kernels, int64_t rows_, int64_t k_, std::vector<float> x_) : rows(rows_), k(k_), x(std::move(x_)) {
    scale.resize(static_cast<size_t>(rows * k / kBlock)), sum.resize(scale.size()), less.resize(2 * scale.size()), q.resize(x.size());
    for (int64_t r = 0; r < rows; ++r) {
      kernels.quantise(&x[size_t(r * k)], k, &q[size_t(r * k)], &scale[size_t(r * k / kBlock)], &sum[size_t(r * k / kBlock)], &less[size_t(r * k / 16)]);
    }
  }
  Activations all() const { return {x.data(), q.data(), scale.data(), sum.data(), less.data()}; }
  double at(int64_t i, bool quantised) const { return quantised ? double(q[size_t(i)]) * scale[size_t(i / kBlock)] : x[size_t(i)]; }
};

void check_quantise(const Kernels& kernels) {
  const Inputs in(kernels, 1, 256);
  for (size_t b = 0; b < in.scale.size(); ++b) {
    int32_t sum = 0;
    double furthest = 0;
    for (size_t i = b * 32; i < b * 32 + 32; ++i) {
      sum += in.q[i];
      furthest = std::max(furthest, std::fabs(in.x[i] - double(in.q[i]) * in.scale[b]) / in.scale[b]);
    }
    check(sum == in.sum[b] && in.less[2 * b] + in.less[2 * b + 1] == -32 * sum, "quantise: the sum of a block");
    check(furthest <= 0.5 + 1e-4, "quantise: a value is rounded to its neighbour");
  }
}

void check_gemm(const Kernels& kernels, const Format& format) {
  const int64_t n = 40, k = 512, rows = 19, stride = 48;
  const std::vector<uint8_t> raw = stored(format, n, k);
  const auto m = pack(format.name, format.target, raw.data(), static_cast<int64_t>(raw.size()) / n, n, k, nullptr);
  const Inputs in(kernels, rows, k);
  const std::string name = std::string(format.name) + " as " + format.target;
  std::vector<float> bias = normal(stride, 5), out = normal(rows * stride, 6);
  std::vector<double> wanted;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < stride; ++o) {
      double sum = double(out[size_t(r * stride + o)]) + bias[size_t(o)];
      for (int64_t i = 0; o < n && i < k; ++i) sum += weight(*m, o, i) * in.at(r * k + i, m->kind != Kind::F32);
      wanted.push_back(sum);
    }
  }
  const std::vector<float> before = out;
  for (int64_t p = 0; p < m->panels(); ++p) kernels.gemm(*m, p, in.all(), 0, rows, &bias[size_t(p * kPanel)], true, &out[size_t(p * kPanel)], stride);
  check(error(out, wanted) < 1e-5, "a product with " + name + " is off by " + std::to_string(error(out, wanted)));
  const int64_t parts[][2] = {{0, 1}, {3, 5}, {7, 11}, {2, 19}};
  for (const auto& part : parts) {
    std::vector<float> again = before;
    for (int64_t p = 0; p < m->panels(); ++p) {
      kernels.gemm(*m, p, in.all(), part[0], part[1], &bias[size_t(p * kPanel)], true, &again[size_t(p * kPanel)], stride);
    }
    check(same(&again[size_t(part[0] * stride)], &out[size_t(part[0] * stride)], (part[1] - part[0]) * stride),
          "a row of a product with " + name + " depends on its batch");
  }
}

// Where a stored block has its codes.
std::pair<int64_t, int64_t> codes_of(const Format& format) {
  const std::string name = format.name;
  if (name == "q6_k") return {0, 192};
  if (name == "q3_k") return {0, 96};
  if (name == "q2_k") return {16, 80};
  const int64_t begin = name == "q4_k" || name == "q5_k" ? 16 : name == "iq4_xs" ? 8 : name.back() == '1' ? 4 : name == "u4g64" ? 3 : name == "mxfp4" ? 1 : 2;
  return {begin, format.block_bytes};
}

// Weights and inputs that are as large as they can be, of like and of unlike signs: sums of pairs of products in 16 bits would overflow.
void check_extremes(const Kernels& kernels, const Format& format) {
  if (std::string(format.name) == "f32") return;
  const int64_t n = 32, k = 256, rows = 5;
  std::vector<uint8_t> raw = stored(format, n, k);
  const auto [begin, end] = codes_of(format);
  std::mt19937 bits(17);
  const uint8_t most[] = {0x00, 0xff, 0x80, 0x7f, 0xf0, 0x0f, 0x88};
  for (size_t i = 0; i < raw.size(); ++i) {
    const int64_t at = int64_t(i) % format.block_bytes;
    const size_t block = i / size_t(format.block_bytes);
    if (at >= begin && at < end) raw[i] = block % 2 ? most[bits() % 7] : most[block / 2 % 7];
  }
  const auto m = pack(format.name, format.target, raw.data(), static_cast<int64_t>(raw.size()) / n, n, k, nullptr);
  std::vector<float> x(size_t(rows * k));
  for (int64_t i = 0; i < rows * k; ++i) x[size_t(i)] = i / k == 0 ? 1.0f : i / k == 1 ? -1.0f : bits() % 2 ? 1.0f : -1.0f;
  const Inputs in(kernels, rows, k, std::move(x));
  std::vector<float> out(size_t(rows * n));
  for (int64_t p = 0; p < m->panels(); ++p) kernels.gemm(*m, p, in.all(), 0, rows, nullptr, false, &out[size_t(p * kPanel)], n);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < n; ++o) {
      double sum = 0, size = 0;
      for (int64_t i = 0; i < k; ++i) sum += weight(*m, o, i) * in.at(r * k + i, true), size += std::fabs(weight(*m, o, i));
      check(std::fabs(out[size_t(r * n + o)] - sum) <= 1e-5 * size + 1e-6, std::string("a product of extremes with ") + format.name);
    }
  }
}

// What runs over a row

void check_rows(const Kernels& kernels) {
  const int64_t n = 176;
  const std::vector<float> x = normal(n, 1), w = normal(n, 2);
  std::vector<float> out(static_cast<size_t>(n)), gate = x;
  double squares = 0;
  for (float v : x) squares += double(v) * v;
  std::vector<double> normed, mixed, turned;
  for (int64_t i = 0; i < n; ++i) {
    normed.push_back(x[size_t(i)] / std::sqrt(squares / double(n) + 1e-6) * w[size_t(i)]);
    mixed.push_back(x[size_t(i)] / (1 + std::exp(-double(x[size_t(i)]))) * w[size_t(i)]);
  }
  kernels.rms_norm(x.data(), w.data(), 1e-6f, n, out.data());
  check(error(out, normed) < 1e-6, "rms_norm");
  kernels.activate(Activation::Silu, gate.data(), w.data(), n);
  check(error(gate, mixed) < 1e-6, "activate: SiLU");
  std::vector<float> edges(16, -200.0f), ones(16, 1.0f);
  std::fill(edges.begin() + 8, edges.end(), 200.0f);
  kernels.activate(Activation::Silu, edges.data(), ones.data(), 16);
  check(std::fabs(edges[0]) < 1e-30f && edges[15] == 200, "activate: SiLU far from 0");
  std::vector<double> gelu, clamped;
  std::vector<float> wide = x, up = w;
  for (float& value : wide) value *= 5;
  for (float& value : up) value *= 5;
  for (size_t i = 0; i < x.size(); ++i) {
    const double g = wide[i], u = up[i], low = std::min(g, 7.0);
    gelu.push_back(0.5 * g * (1 + std::tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))) * u);
    clamped.push_back((std::clamp(u, -7.0, 7.0) + 1) * low / (1 + std::exp(-1.702 * low)));
  }
  std::vector<float> first = wide, second = wide;
  kernels.activate(Activation::Gelu, first.data(), up.data(), n), kernels.activate(Activation::Clamped, second.data(), up.data(), n);
  check(error(first, gelu) < 2e-6, "activate: GELU");
  check(error(second, clamped) < 2e-6, "activate: the clamped one");

  for (int64_t size : {5, 16, 176}) {  // a tail shorter than a vector, too
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < size; ++i) mean += x[size_t(i)] / double(size);
    for (int64_t i = 0; i < size; ++i) variance += (x[size_t(i)] - mean) * (x[size_t(i)] - mean) / double(size);
    std::vector<double> centred;
    for (int64_t i = 0; i < size; ++i) centred.push_back((x[size_t(i)] - mean) / std::sqrt(variance + 1e-6) * w[size_t(i)] + up[size_t(i)]);
    kernels.layer_norm(x.data(), w.data(), up.data(), 1e-6f, size, out.data());
    check(error(out, centred) < 1e-6, "layer_norm");
  }

  std::vector<float> head(x.begin(), x.begin() + 64), c, s;
  for (int i = 0; i < 32; ++i) c.push_back(std::cos(0.3f * float(i))), s.push_back(std::sin(0.3f * float(i)));
  for (int i = 0; i < 64; ++i) turned.push_back(i < 32 ? double(head[size_t(i)]) * c[size_t(i)] - double(head[size_t(i + 32)]) * s[size_t(i)] : double(head[size_t(i)]) * c[size_t(i - 32)] + double(head[size_t(i - 32)]) * s[size_t(i - 32)]);
  kernels.rope(head.data(), c.data(), s.data(), 64);
  check(error(head, turned) < 1e-6, "rope");

  for (int64_t size : {1, 15, 16, 17, 176}) {
    check(kernels.argmax(x.data(), size) == std::max_element(x.begin(), x.begin() + size) - x.begin(), "argmax");
    check(kernels.argmax(std::vector<float>(size_t(size), -1.0f).data(), size) == 0, "argmax takes the first of equals");
  }
}

// Rows of experts

void check_sums(const Kernels& kernels) {
  // Any order of the terms, and sums of sums, give the same bits.
  const std::vector<float> parts = normal(8 * kPanel, 3), weights = normal(8, 4);
  const int32_t index[8] = {0, 1, 0, 1, 1, 0, 0, 1}, row[1] = {0};
  std::vector<double> together(size_t(2 * kPanel)), backwards = together, first = together, second = together;
  kernels.weigh(parts.data(), weights.data(), index, 8, together.data());
  for (int i = 7; i >= 0; --i) kernels.weigh(&parts[size_t(i * kPanel)], &weights[size_t(i)], index + i, 1, backwards.data());
  kernels.weigh(parts.data(), weights.data(), index, 5, first.data());
  kernels.weigh(&parts[size_t(5 * kPanel)], &weights[5], index + 5, 3, second.data());
  for (size_t i = 0; i < together.size(); ++i) {
    double exact = 0;
    for (int t = 0; t < 8; ++t) exact += index[t] == int32_t(i / kPanel) ? double(weights[size_t(t)]) * parts[size_t(t) * kPanel + i % kPanel] : 0;
    check(std::fabs(together[i] - exact) <= 8 * std::ldexp(1.0, -kGrid - 1), "weigh");
    check(together[i] == backwards[i] && together[i] == first[i] + second[i], "weigh depends on the order");
  }
  const std::vector<float> odd = {INFINITY, NAN, 3e38f, -3e38f, 1e-38f, 0.5f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  std::vector<double> sums(size_t(kPanel), 1.0);
  const float one = 1;
  kernels.weigh(odd.data(), &one, row, 1, sums.data());
  check(std::isinf(sums[0]) && std::isnan(sums[1]) && std::fabs(sums[2] / 3e38 - 1) < 1e-6 && sums[4] == 1 && sums[5] == 1.5, "weigh: what is no usual number");
}

// Attention, through the cache

float widened(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

// More of what may differ: the width of values, a cap of the scores, a sink.
struct Other {
  int64_t value = 0;  // 0: as the keys
  float cap = 0;
  bool sink = false;
};

// Number i of a key or value of q8 or q4 in its block, of which `base` is the first byte: see RoundedCells.
double rounded(const uint8_t* base, bool q8, int64_t keys, int64_t slot, int64_t i, bool value) {
  const bool wide = q8 || !value;  // only values have 4 bits
  const int64_t bytes = wide ? 32 : 16, at = i % 32;
  const uint8_t* group = base + (value ? (keys + 31) / 32 * kTokens * 34 : 0) + i / 32 * kTokens * (2 + bytes);
  const double scale = widened(reinterpret_cast<const uint16_t*>(group)[slot]);
  const int64_t byte = wide ? at : at % 16;
  const uint8_t code = group[2 * kTokens + (value ? (slot / 2 * bytes + byte) * 2 + slot % 2 : (byte / 4 * kTokens + slot) * 4 + byte % 4)];
  if (wide) return scale * (value ? static_cast<int8_t>(code) : code - 128);
  return scale * ((at < 16 ? code & 15 : code >> 4) - 8);
}

void check_attend(const Kernels& kernels, KvType type, int64_t d, int32_t length, int32_t window, Other other = {}) {
  const int64_t dv = other.value ? other.value : d;
  constexpr const char* kTypes[] = {"fp32", "bf16", "q8", "q4"};
  constexpr double kOff[] = {0, 0.02, 0.02, 0.7};  // of the numbers that are stored
  const double off = kOff[static_cast<int>(type)], most = type < KvType::Q8 ? 1e-5 : 0.02;  // rounded keys meet rounded queries
  const Scoring scoring{0.125f, other.cap};
  const float sink = 1.5f;
  const int64_t blocks = (length + kTokens - 1) / kTokens, kv_heads = 2, head = 1;
  const std::string name = std::string("attend ") + kTypes[static_cast<int>(type)] + ", heads of " + std::to_string(d) + ", " +
                           std::to_string(length) + " tokens, window " + std::to_string(window) +
                           ", values of " + std::to_string(dv) + (other.sink ? ", a sink" : "");
  std::vector<uint8_t> memory(static_cast<size_t>(blocks * kv_heads * kv_head_bytes(type, d, dv)));
  const Pool pool{memory.data(), type, kv_heads, d, dv};
  std::vector<int32_t> table;
  for (int64_t b = 0; b < blocks; ++b) table.push_back(static_cast<int32_t>(blocks - 1 - b));  // scattered
  const std::vector<float> keys = normal(length * d, 21), values = normal(length * dv, 22);
  for (int64_t t = 0; t < length; ++t) {
    kernels.append(pool, table[size_t(t / kTokens)], t % kTokens, head, &keys[size_t(t * d)], &values[size_t(t * dv)]);
  }
  const auto cached = [&](int64_t t, int64_t i, bool value) -> double {
    const int64_t at = value ? kTokens * d + t % kTokens * dv + i : i * kTokens + t % kTokens;
    const uint8_t* base = pool.at(table[size_t(t / kTokens)], head);
    if (type >= KvType::Q8) return rounded(base, type == KvType::Q8, d, t % kTokens, i, value);
    if (type == KvType::Bf16) return widened(reinterpret_cast<const uint16_t*>(base)[at]);
    return reinterpret_cast<const float*>(base)[at];
  };
  for (int64_t i = 0; i < d; ++i) {
    check(std::fabs(cached(length - 1, i, false) - keys[size_t((length - 1) * d + i)]) <= off, name + ": a key in the cache");
  }
  for (int64_t i = 0; i < dv; ++i) {
    check(std::fabs(cached(length - 1, i, true) - values[size_t((length - 1) * dv + i)]) <= off, name + ": a value in the cache");
  }

  constexpr int kCount = 7;
  const std::vector<float> q = normal(kCount * d, 23);
  std::vector<float> out(static_cast<size_t>(kCount * dv));
  std::vector<double> wanted;
  std::vector<Query> queries;
  for (int32_t i = 0; i < kCount; ++i) {
    const int32_t end = std::max(1, length - kCount + 1 + i), first = window && end > window ? end - window : 0;
    queries.push_back({&q[size_t(i * d)], &out[size_t(i * dv)], nullptr, other.sink ? &sink : nullptr, first, end});
    std::vector<double> weights, sum(static_cast<size_t>(dv));
    double total = other.sink ? std::exp(double(sink)) : 0;
    for (int32_t t = first; t < end; ++t) {
      double score = 0;
      for (int64_t j = 0; j < d; ++j) score += q[size_t(i * d + j)] * cached(t, j, false);
      score *= 0.125;
      if (other.cap > 0) score = other.cap * std::tanh(score / other.cap);
      weights.push_back(std::exp(score)), total += weights.back();
      for (int64_t j = 0; j < dv; ++j) sum[size_t(j)] += weights.back() * cached(t, j, true);
    }
    for (double value : sum) wanted.push_back(value / total);
  }
  kernels.attend(pool, head, table.data(), 0, length, scoring, queries.data(), kCount);
  check(error(out, wanted) < most, name + " is off by " + std::to_string(error(out, wanted)));

  const std::vector<float> together = out;
  for (const Query& query : queries) kernels.attend(pool, head, table.data(), 0, length, scoring, &query, 1);
  check(same(out.data(), together.data(), kCount * dv), name + ": a query depends on those beside it");

  // In pieces, which are joined afterwards.
  const int32_t piece = 64, splits = (length + piece - 1) / piece;
  std::vector<float> partial(static_cast<size_t>(kCount * splits * (dv + 2)));
  for (int32_t split = 0; split < splits; ++split) {
    for (int i = 0; i < kCount; ++i) queries[size_t(i)].partial = &partial[size_t((i * splits + split) * (dv + 2))];
    kernels.attend(pool, head, table.data(), split * piece, std::min(length, (split + 1) * piece), scoring, queries.data(), kCount);
  }
  for (int i = 0; i < kCount; ++i) kernels.merge(&partial[size_t(i * splits * (dv + 2))], splits, dv, queries[size_t(i)].sink, &out[size_t(i * dv)]);
  check(error(out, wanted) < most, name + " in pieces is off by " + std::to_string(error(out, wanted)));
}

// A stage

Linear linear(int64_t n, int64_t k, const char* target, unsigned seed) {
  std::vector<float> values = normal(n * k, seed);
  for (float& value : values) value *= 0.05f;
  return {pack("f32", target, reinterpret_cast<const uint8_t*>(values.data()), k * 4, n, k, nullptr), {}};
}

GatedMlp mlp(int64_t hidden, int64_t width, const char* target, unsigned seed) {
  return {linear(width, hidden, target, seed), linear(width, hidden, target, seed + 1), linear(hidden, width, target, seed + 2)};
}

// A layer with grouped-query attention and a dense part, and one with latent attention and experts.
std::vector<float> stepped(const Kernels& kernels, int threads) {
  const int64_t hidden = 64, rows = 40, blocks = 2;
  Stage stage(kernels, hidden, threads);
  const Norm norm{std::vector<float>(size_t(hidden), 1.0f), {}, 1e-6f}, of_rank{std::vector<float>(32, 1.0f), {}, 1e-6f};
  const Block::Around around{norm, {}};
  const GroupedQuery grouped(around,
                             {linear(64, hidden, "q8", 31), linear(32, hidden, "q8", 41), linear(32, hidden, "q8", 51),
                              linear(hidden, 64, "q8", 61), {}, {}, std::vector<float>(4, 0.5f)},
                             {{4, 2, 16, 16}, {0.25f, 20.0f}, 0, 24, 0, 16});
  Dense dense(around, mlp(hidden, 96, "q4", 71), Activation::Gelu);
  const Latent latent(around,
                      {linear(32, hidden, "q8", 101), linear(4 * 48, 32, "q8", 102), linear(48, hidden, "q8", 103),
                       linear(4 * 32, 32, "q8", 104), linear(4 * 16, 32, "q8", 105), linear(hidden, 64, "q8", 106), of_rank, of_rank},
                      {4, 32, 32, 16, 16, {0.2f, 0}, 0});
  std::vector<GatedMlp> routed;
  for (unsigned i = 0; i < 8; ++i) routed.push_back(mlp(hidden, 32, "q4", 200 + 3 * i));
  Routing routing;
  routing.chosen = 3, routing.renormalised = true;
  const ExpertSet set(routed, mlp(hidden, 32, "q8", 310), 32, hidden, Activation::Silu);
  Experts experts(around, {linear(8, hidden, "f32", 301), {}, {}}, set, routing);
  std::vector<std::vector<uint8_t>> memory;
  for (const AttentionBlock* block : std::initializer_list<const AttentionBlock*>{&grouped, &latent}) {
    memory.emplace_back(static_cast<size_t>(blocks * block->heads().block_bytes(KvType::Fp32)));
  }
  std::vector<float> x = normal(rows * hidden, 13), c, s;
  for (int64_t r = 0; r < rows; ++r) {
    for (int i = 0; i < 8; ++i) c.push_back(std::cos(float(r) * 0.1f * float(i))), s.push_back(std::sin(float(r) * 0.1f * float(i)));
  }
  const int32_t starts[] = {0, static_cast<int32_t>(rows)}, positions[] = {0}, table[] = {1, 0};
  stage.forward(x.data(), {rows, 1, starts, positions, table, 2, {{c.data(), s.data(), 8}}},
                {{&grouped, &dense, memory[0].data()}, {&latent, &experts, memory[1].data()}}, KvType::Fp32);
  return x;
}

void check_stage(const Kernels& kernels) {
  const std::vector<float> one = stepped(kernels, 1), portable = stepped(choose("portable"), 1);
  check(one == stepped(kernels, 3), "a stage: threads change its result");
  check(error(one, std::vector<double>(portable.begin(), portable.end())) < 0.01, "a stage: the portable kernels come to another result");
}

}  // namespace

int main(int count, char** names) {
  for (int i = 1; i < count; ++i) {
    where = names[i];
    try {
      const Kernels& kernels = choose(where);
      check_quantise(kernels);
      for (const Format& format : kFormats) check_gemm(kernels, format), check_extremes(kernels, format);
      check_rows(kernels);
      check_sums(kernels);
      for (KvType type : {KvType::Fp32, KvType::Bf16, KvType::Q8, KvType::Q4}) {
        check_attend(kernels, type, 16, 1, 0), check_attend(kernels, type, 64, 33, 0), check_attend(kernels, type, 128, 200, 0);
        check_attend(kernels, type, 256, 70, 7), check_attend(kernels, type, 48, 200, 40);
        check_attend(kernels, type, 64, 70, 0, {48, 0, false}), check_attend(kernels, type, 16, 200, 40, {0, 2.0f, true});
        check_attend(kernels, type, 576, 70, 0, {512, 0, true});
      }
      check_stage(kernels);
    } catch (const std::exception& error) {
      check(false, error.what());
    }
    std::printf("%s: checked\n", names[i]);
  }
  std::printf("best: %s\n", choose("").name);
  return failures != 0;
}
