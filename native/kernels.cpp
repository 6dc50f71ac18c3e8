#include "kernels.h"

#include <cmath>

#include "paged_attention.h"
#include "products.h"
#include "vectors.h"

namespace shoal {
namespace SHOAL_ISA {
namespace {

void quantise(const float* x, int64_t k, int8_t* q, float* scale, int32_t* sum, int32_t* less) {
  for (int64_t b = 0; b < k / kBlock; ++b, x += kBlock, q += kBlock) {
    V peaks{};
    for (int i = 0; i < kBlock; i += L) {
      const V v = load(x + i);
      peaks = larger(peaks, larger(v, -v));
    }
    const float peak = max_of(peaks);
    const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
    scale[b] = peak / 127.0f;
    I total{};
    int32_t first = 0;
    for (int i = 0; i < kBlock; i += L) {
      // Adding 1.5 * 2^23 rounds to nearest even.
      const I v = __builtin_convertvector((load(x + i) * inverse + 12582912.0f) - 12582912.0f, I);
      total += v;
      if (i + L == kBlock / 2) first = sum_of(total), total = I{};
      keep_bytes(q + i, v);
    }
    const int32_t second = sum_of(total);
    sum[b] = first + second, less[2 * b] = -32 * first, less[2 * b + 1] = -32 * second;
  }
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  V squares{};
  int64_t i = 0;
  for (; i + L <= n; i += L) squares += load(x + i) * load(x + i);
  float total = sum_of(squares);
  for (; i < n; ++i) total += x[i] * x[i];
  const float inverse = 1.0f / std::sqrt(total / static_cast<float>(n) + eps);
  for (i = 0; i + L <= n; i += L) keep(out + i, load(x + i) * inverse * load(weight + i));
  for (; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* out) {
  const auto total = [n](auto&& at) {
    V sums{};
    int64_t i = 0;
    for (; i + L <= n; i += L) sums += at(i);
    float all = sum_of(sums);
    for (; i < n; ++i) all += at(i)[0];
    return all;
  };
  // A tail shorter than a vector is read value by value, into the first lane.
  const auto value = [n, x](int64_t i) { return i + L <= n ? load(x + i) : V{} + x[i]; };
  const float mean = total(value) / static_cast<float>(n);
  const float variance = total([&](int64_t i) { return (value(i) - mean) * (value(i) - mean); }) / static_cast<float>(n);
  const float inverse = 1.0f / std::sqrt(variance + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - mean) * inverse * weight[i] + (bias ? bias[i] : 0.0f);
}

inline V sigmoid_of(V x) { return 1.0f / (exp_of(-x) + 1.0f); }

template <class F>
void gated(float* gate, const float* up, int64_t n, F&& f) {
  for (int64_t i = 0; i < n; i += L) keep(gate + i, f(load(gate + i), load(up + i)));
}

void activate(Activation kind, float* gate, const float* up, int64_t n) {
  switch (kind) {
    case Activation::Silu:
      return gated(gate, up, n, [](V g, V u) { return g / (exp_of(-g) + 1.0f) * u; });
    case Activation::Gelu:  // 0.5 * (1 + tanh(y)) is the sigmoid of 2 * y
      return gated(gate, up, n, [](V g, V u) { return g * sigmoid_of(1.5957691216f * (g + 0.044715f * g * g * g)) * u; });
    case Activation::Clamped:
      return gated(gate, up, n, [](V g, V u) {
        g = g > 7.0f ? all(7.0f) : g;
        u = u > 7.0f ? all(7.0f) : u < -7.0f ? all(-7.0f) : u;
        return (u + 1.0f) * (g * sigmoid_of(g * 1.702f));
      });
  }
}

void rope(float* head, const float* cos, const float* sin, int64_t rotated) {
  const int64_t half = rotated / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cos[i] - b * sin[i];
    head[half + i] = b * cos[i] + a * sin[i];
  }
}

void weigh(const float* part, const float* weights, const int32_t* index, int64_t count, double* sums) {
  // Added to a double, this leaves no bits below the grid; the product of two floats is exact in a double.
  constexpr double kRound = 1.5 * static_cast<double>(int64_t{1} << (52 - kGrid));
  for (int64_t i = 0; i < count; ++i) {
    const double weight = weights[i];
    double* sum = sums + index[i] * kPanel;
    for (int64_t lane = 0; lane < kPanel; ++lane) sum[lane] += (weight * static_cast<double>(part[i * kPanel + lane]) + kRound) - kRound;
  }
}

int64_t argmax(const float* x, int64_t n) {  // the first among equals
  V best = all(-INFINITY);
  int64_t i = 0;
  for (; i + L <= n; i += L) best = larger(best, load(x + i));
  float peak = max_of(best);
  for (; i < n; ++i) peak = x[i] > peak ? x[i] : peak;
  for (i = 0; i < n; ++i) {
    if (x[i] == peak) return i;
  }
  return 0;
}

#define SHOAL_TEXT(x) #x
#define SHOAL_NAME(x) SHOAL_TEXT(x)

}  // namespace

const Kernels& kernels() {
  static const Kernels table{SHOAL_NAME(SHOAL_ISA), kQueries, gemm,   quantise, rms_norm, layer_norm,
                             activate,              rope,     append, attend,   merge,    weigh, argmax};
  return table;
}

}  // namespace SHOAL_ISA
}  // namespace shoal
