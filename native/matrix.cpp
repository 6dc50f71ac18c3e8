#include "matrix.h"

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>
#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif

#include "formats.h"
#include "team.h"

namespace shoal {

namespace {

constexpr int64_t kHugePage = 2 << 20, kArena = 16 << 20;

std::shared_ptr<uint8_t> pages(int64_t bytes) {
#if defined(_WIN32)
  void* p = _aligned_malloc(static_cast<size_t>(bytes), static_cast<size_t>(kHugePage));
  const auto release = [](uint8_t* q) { _aligned_free(q); };
#else
  void* p = std::aligned_alloc(static_cast<size_t>(kHugePage), static_cast<size_t>(bytes));
  const auto release = [](uint8_t* q) { std::free(q); };
#endif
  if (p == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // only advice: it may be refused
#endif
  return {static_cast<uint8_t*>(p), release};
}

}  // namespace

Buffer allocate(int64_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<uint8_t> current;  // lives as long as a matrix in it
  static int64_t used = 0;
  const int64_t size = (bytes + 63) / 64 * 64;
  if (size > kArena / 2) return pages((size + kHugePage - 1) / kHugePage * kHugePage);
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<uint8_t> arena = current.lock();
  if (!arena || used + size > kArena) current = arena = pages(kArena), used = 0;
  uint8_t* at = arena.get() + used;
  used += size;
  return {arena, at};
}

float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  uint32_t exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else if (mantissa == 0) {
    bits = sign;
  } else {
    exponent = 113;
    while (!(mantissa & 1024)) mantissa <<= 1, --exponent;
    bits = sign | (exponent << 23) | ((mantissa & 1023) << 13);
  }
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint16_t float_to_half(float f) {  // round to nearest even
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffffu;
  if (bits >= 0x47800000u) return sign | (bits > 0x7f800000u ? 0x7e00 : 0x7c00);
  if (bits < 0x38800000u) {  // subnormal halves: let the float adder round
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &magnitude, 4);
    return sign | static_cast<uint16_t>(rounded - 0x3f000000u);
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return sign | static_cast<uint16_t>((bits - 0x38000000u) >> 13);
}

namespace {

// Symmetric rounding; the stored half is the same scale that was used for rounding. `levels`: 128 for eight bits, 8 for four.
void round_block(const float* w, int levels, Weights32& out) {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  F v[kBlock / 4], peaks{};
  std::memcpy(v, w, sizeof v);
  for (const F& x : v) {
    const F size = x < -x ? -x : x;
    peaks = size > peaks ? size : peaks;
  }
  float peak = 0;
  for (int i = 0; i < 4; ++i) peak = peaks[i] > peak ? peaks[i] : peak;
  float wanted = peak / 127.f;
  if (levels == 8) {  // four bits reach from -8 to 7: put the extreme value at -8, as llama.cpp's Q4_0 does
    float extreme = 0;
    for (int i = kBlock - 1; i >= 0; --i) extreme = std::fabs(w[i]) == peak ? w[i] : extreme;
    wanted = extreme / -8.f;
  }
  out.scale = half_to_float(float_to_half(wanted)), out.offset = 0;
  const float inverse = out.scale != 0 ? 1.f / out.scale : 0.f;
  const float low = levels == 8 ? -8.f : -127.f, high = levels == 8 ? 7.f : 127.f;
  for (int i = 0; i < kBlock; i += 4) {
    F x = v[i / 4] * inverse;
    x = x > high ? F{} + high : x, x = x > low ? x : F{} + low;
    const I q = __builtin_convertvector((x + 12582912.f) - 12582912.f, I) + levels;  // adding 1.5 * 2^23 rounds to nearest even
    for (int l = 0; l < 4; ++l) out.q[i + l] = static_cast<uint8_t>(q[l]);
  }
}

void to_floats(const Format& stored, const Weights32& block, float* w) {
  for (int64_t i = 0; i < kBlock; ++i) {
    if (stored.scaling == Scaling::Factors) {
      const float scale = block.scale * stored.unit * static_cast<float>(block.factors[i / 16]);
      w[i] = scale * static_cast<float>(stored.table ? stored.table[block.q[i]] : block.q[i] - stored.zero);
      if (stored.offset == Offset::Minimum) w[i] += block.offset * static_cast<float>(block.minimums[i / 16]);
    } else if (stored.table) {
      w[i] = block.scale * static_cast<float>(stored.table[block.q[i]]);
    } else if (stored.offset == Offset::Zero) {
      w[i] = block.scale * (static_cast<float>(block.q[i]) - block.offset);
    } else {
      w[i] = block.scale * static_cast<float>(block.q[i] - stored.zero);
      if (stored.offset == Offset::Minimum) w[i] += block.offset;
    }
  }
}

// Writes the block of a panel's row. Returns false if the matrix's unit cannot bring the scale into the range of a half.
bool store(Matrix& m, int64_t panel, int64_t lane, int64_t b, const Weights32& block) {
  uint8_t* base = m.data.get() + panel * m.panel_bytes + b * m.block_bytes() + lane * 4;
  if (m.kind == Kind::Q8) {
    for (int64_t g = 0; g < 8; ++g) std::memcpy(base + g * 64, block.q + g * 4, 4);
  } else if (m.kind == Kind::Q6) {
    for (int64_t i = 0; i < kBlock / 2 - 4; ++i) {
      const int64_t fourth = i % 4 + 12;  // the place of the weight that this byte has two bits of
      for (int64_t half = 0; half < 2; ++half) {
        const uint8_t *q = block.q + half * 16;
        base[half * 192 + i / 4 * 64 + i % 4] = static_cast<uint8_t>(q[i] | (q[fourth] >> (i / 4 * 2) & 3) << 6);
      }
    }
  } else {
    uint8_t both[16];
    for (int i = 0; i < 16; ++i) both[i] = static_cast<uint8_t>((block.q[i] & 15) | (block.q[i + 16] << 4));
    for (int64_t g = 0; g < 4; ++g) std::memcpy(base + g * 64, both + g * 4, 4);
  }
  for (int64_t i = 0; m.kind == Kind::Q5 && i < kBlock; ++i) base[256 + i % 4] |= static_cast<uint8_t>(block.q[i] >> 4 << i / 4);
  if (m.scaling == Scaling::Factors) {
    const auto put = [&](const int8_t* factors, const uint16_t* supers, const int8_t* of, float half) {
      int8_t* to = const_cast<int8_t*>(factors) + b * 2 * kPanel + lane;
      to[0] = of[0], to[kPanel] = of[1];
      const_cast<uint16_t*>(supers)[b * kBlock / kSuper * kPanel + lane] = float_to_half(half);
    };
    put(m.factors(panel), m.supers(panel), block.factors, block.scale);
    if (m.offset == Offset::Minimum) put(m.minimum_factors(panel), m.minimum_supers(panel), block.minimums, block.offset);
    return true;
  }
  uint16_t* scales = const_cast<uint16_t*>(m.scales(panel)) + b * kPanel + lane;
  const float scale = block.scale / m.unit;
  *scales = float_to_half(scale);
  if (m.offset != Offset::None) scales[m.blocks() * kPanel] = float_to_half(block.offset);
  return half_to_float(*scales) == scale;
}

class Packing {
 public:
  Packing(std::shared_ptr<Matrix> matrix, const Format& stored, const uint8_t* rows, int64_t row_bytes, const int64_t* order)
      : m_(std::move(matrix)), stored_(stored), parts_(stored.weights / kBlock), rows_(rows), row_bytes_(row_bytes), order_(order) {}

  // The power of two by which the scales are divided, so that the largest is at most 2^15 and the others lose as little as can be.
  float unit() const {
    int most = INT_MIN;
    for (int64_t i = 0; stored_.exponent && i < m_->n; ++i) {
      for (const uint8_t *p = row(i), *end = p + row_bytes_; p < end; p += stored_.bytes) most = std::max(most, stored_.exponent(p));
    }
    return most == INT_MIN ? stored_.unit : std::ldexp(1.f, most - 15);
  }

  void floats(int64_t panel) {
    auto* out = reinterpret_cast<float*>(m_->data.get() + panel * m_->panel_bytes);
    if (lanes(panel) < kPanel) std::fill(out, out + m_->k * kPanel, 0.f);
    for (int64_t j = 0; j < m_->k; j += kBlock) {
      const int64_t count = std::min(kBlock, m_->k - j);
      for (int64_t lane = 0; lane < lanes(panel); ++lane) {
        const uint8_t* from = row(panel * kPanel + lane);
        float w[kBlock];
        if (count < kBlock) {  // only rows of floats end in mid-block
          uint8_t padded[kBlock * 4] = {};
          std::memcpy(padded, from + j / kBlock * stored_.bytes, static_cast<size_t>(count * stored_.bytes / kBlock));
          stored_.floats(padded, 0, w);
        } else {
          read(from, j / kBlock, w);
        }
        for (int64_t i = 0; i < count; ++i) out[(j + i) * kPanel + lane] = w[i];
      }
    }
  }

  // Returns whether each scale is the stored one.
  bool blocks(int64_t panel, bool kept) {
    std::memset(m_->data.get() + panel * m_->panel_bytes, 0, static_cast<size_t>(m_->panel_bytes));
    bool exact = true;
    for (int64_t b = 0; b < m_->blocks(); ++b) {
      for (int64_t lane = 0; lane < lanes(panel); ++lane) {
        const uint8_t* from = row(panel * kPanel + lane);
        Weights32 block;
        if (kept) {
          stored_.codes(from + b / parts_ * stored_.bytes, b % parts_, block);
        } else {
          float w[kBlock];
          read(from, b, w);
          round_block(w, m_->zero, block);
        }
        exact &= store(*m_, panel, lane, b, block);
      }
    }
    return exact;
  }

 private:
  const uint8_t* row(int64_t i) const { return rows_ + (order_ ? order_[i] : i) * row_bytes_; }
  int64_t lanes(int64_t panel) const { return std::min(kPanel, m_->n - panel * kPanel); }

  void read(const uint8_t* from, int64_t b, float* w) const {
    const uint8_t* p = from + b / parts_ * stored_.bytes;
    if (stored_.floats) return stored_.floats(p, b % parts_, w);
    Weights32 block;
    stored_.codes(p, b % parts_, block);
    to_floats(stored_, block, w);
  }

  std::shared_ptr<Matrix> m_;
  const Format& stored_;
  int64_t parts_;
  const uint8_t* rows_;
  int64_t row_bytes_;
  const int64_t* order_;
};

}  // namespace

void Matrix::lay_out() {
  constexpr int64_t kMost = int64_t{1} << 40;
  if (n < 1 || k < 1 || n > kMost || k > kMost) throw std::invalid_argument("a matrix has an impossible size");
  if (kind == Kind::F32) {
    panel_bytes = k * kPanel * 4;
  } else {
    if (k % kBlock) throw std::invalid_argument("a quantised matrix needs a multiple of 32 inputs");
    const bool factors = scaling == Scaling::Factors;
    if (factors && k % kSuper) throw std::invalid_argument("a matrix with factors needs a multiple of 256 inputs");
    if (kind == Kind::Q4 ? factors && !has_table : factors != (kind == Kind::Q6)) throw std::invalid_argument("a matrix has the wrong scales");
    const bool minimums = kind == Kind::Q4 || kind == Kind::Q5, zeros = kind == Kind::Q4 && !factors;
    if (offset == Offset::Minimum ? !minimums : offset == Offset::Zero && !zeros) throw std::invalid_argument("a matrix has the wrong offsets");
    const int64_t times = offset == Offset::None ? 1 : 2;  // scales alone, or offsets, too
    panel_bytes = (blocks() * (block_bytes() + 32 * times) + (factors ? k / kSuper * 32 * times : 0) + 63) / 64 * 64;
  }
}

std::shared_ptr<Matrix> pack(const std::string& format, const std::string& target, const uint8_t* rows, int64_t row_bytes,
                             int64_t n, int64_t k, const int64_t* order, int threads) {
  const Format stored = format_of(format);
  auto m = std::make_shared<Matrix>();
  m->n = n, m->k = k;
  if (target == "f32") {
    m->kind = Kind::F32;
  } else if (target == "q8" || target == "q4") {
    m->kind = target == "q8" ? Kind::Q8 : Kind::Q4;
  } else if ((target == "q5" && stored.kind == Kind::Q5) || (target == "q6" && stored.kind == Kind::Q6)) {
    m->kind = stored.kind;
  } else {
    throw std::invalid_argument("there is no packing of " + format + " to " + target);
  }
  const bool plain = stored.floats && stored.weights == kBlock;  // a block of floats is any number of them
  if (k < 1 || k > int64_t{1} << 40 || (!plain && k % stored.weights) || row_bytes != k * stored.bytes / stored.weights) {
    throw std::invalid_argument(format + " rows have the wrong length");
  }

  Packing packing(m, stored, rows, row_bytes, order);
  const bool kept = m->kind != Kind::F32 && stored.kind == m->kind;
  if (m->kind != Kind::F32) {
    m->zero = m->kind == Kind::Q8 ? 128 : 8;
    if (kept) {
      m->zero = stored.zero, m->offset = stored.offset, m->scaling = stored.scaling, m->unit = packing.unit();
      if (stored.table) m->has_table = true, std::memcpy(m->table, stored.table, sizeof m->table);
    }
  }
  m->lay_out();
  m->data = allocate(m->bytes());

  constexpr int64_t kWorth = 1 << 19;  // weights for which a thread is worth starting
  Team team(static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(n * k / kWorth, m->panels()), 1, std::max(threads, 1))));
  Share share;
  std::atomic<bool> exact{true};
  team.run([&](int) {
    share.each(m->panels(), 1, [&](int64_t panel) {
      if (m->kind == Kind::F32) {
        packing.floats(panel);
      } else if (!packing.blocks(panel, kept)) {
        exact = false;
      }
    });
  });
  if (kept && stored.exact && !exact) {
    throw std::invalid_argument(format + " blocks of one matrix have scales that differ by more than the range of a half float");
  }
  return m;
}

}  // namespace shoal
