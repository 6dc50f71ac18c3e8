// Weights in the kernels' layout.
//
// A matrix [n, k] is cut into panels of 16 output rows. A panel is contiguous in memory and is read front to back:
//
//   F32   [k][16] float
//   Q8    [k/32][8][16][4] u8, then [k/32][16] f16 scales, then the minimums in the same layout if the format has them
//   Q4    [k/32][4][16][4] u8 (low nibble: the first 16 of the block, high nibble: the last 16), scales, minimums
//
// A weight is scale * (q - zero) + minimum. Four consecutive inputs of one output row are adjacent, because a dot-product
// instruction takes them together. GGUF's Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K and Q8_0 map onto this without rounding q again.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace shoal {

constexpr int64_t kPanel = 16;   // output rows of a panel
constexpr int64_t kBlock = 32;   // inputs that share a scale

enum class Kind : uint8_t { F32, Q8, Q4 };

// 64-byte aligned memory from large blocks of huge pages, so that reading weights front to back is not slowed by a page
// walk every 4 KiB; matrices packed one after another are stored one after another. Throws std::bad_alloc.
using Buffer = std::shared_ptr<uint8_t>;
Buffer allocate(int64_t bytes);

struct Matrix {
  Kind kind;
  bool has_min = false;
  int32_t zero = 0;
  int64_t n = 0, k = 0;
  int64_t panel_bytes = 0;
  Buffer data;

  int64_t panels() const { return (n + kPanel - 1) / kPanel; }
  int64_t blocks() const { return k / kBlock; }
  int64_t bytes() const { return panels() * panel_bytes; }
  const uint8_t* panel(int64_t p) const { return data.get() + p * panel_bytes; }
  const uint16_t* scales(int64_t p) const {
    return reinterpret_cast<const uint16_t*>(panel(p) + blocks() * (kind == Kind::Q8 ? 512 : 256));
  }
  const uint16_t* mins(int64_t p) const { return scales(p) + blocks() * kPanel; }
};

// Packs rows [n, k] of a stored format: "f32", or a GGUF type name ("q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q8_0").
// From "f32" the target may be "f32", "q8" or "q4", from "q6_k" one of the last two, by rounding; the others keep their own
// precision and `target` must name it.
// `order`, if not null, gives for each output row the stored row that it comes from.
std::shared_ptr<Matrix> pack(const std::string& format, const std::string& target, const uint8_t* rows, int64_t row_bytes,
                             int64_t n, int64_t k, const int64_t* order);

float half_to_float(uint16_t h);
uint16_t float_to_half(float f);

}  // namespace shoal
