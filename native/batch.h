// The rows of one step, grouped by sequence. All arrays are read only during the call.
#pragma once
#include <cstdint>
#include <vector>

namespace shoal {

// Cosines and sines of every row's position: [rows, half] each.
struct Rotation {
  const float *cos, *sin;
  int64_t half;
};

struct Batch {
  int64_t rows, sequences;
  const int32_t* starts;     // [sequences + 1] first row of each sequence
  const int32_t* positions;  // [sequences] position of that row in its sequence
  const int32_t* tables;     // [sequences, width] KV blocks
  int64_t width;
  std::vector<Rotation> rotations;  // those that the layers name by their index
};

}  // namespace shoal
