#include "block.h"

namespace shoal {

void Block::take(Member& member, Step& step, bool quantised) const {
  const int64_t width = step.width;
  Rows& to = step.space.input;
  if (around_.same_input) {  // the block before may not have needed it rounded
    if (!quantised) return;
    member.each(step.batch.rows, [&](int64_t r) { to.quantise(step.kernels, r * width, width); });
    member.barrier();
    return;
  }
  member.each(step.batch.rows, [&](int64_t r) {
    const float* x = step.hidden + r * width;
    if (around_.before) {
      around_.before.apply(step.kernels, x, to.x.data() + r * width);
    } else {
      std::copy(x, x + width, to.x.data() + r * width);
    }
    if (quantised) to.quantise(step.kernels, r * width, width);
  });
  member.barrier();
}

void Block::settle(Member& member, Step& step) const {
  if (direct()) return;
  const int64_t width = step.width;
  member.each(step.batch.rows, [&](int64_t r) {
    float *branch = step.space.branch.data() + r * width, *hidden = step.hidden + r * width;
    if (around_.after) around_.after.apply(step.kernels, branch, branch);
    for (int64_t i = 0; i < width; ++i) hidden[i] += around_.scale * branch[i];
  });
  member.barrier();
}

void Block::product(Member& member, Step& step, const Linear& linear, const Activations& x, bool add, float* out, int64_t stride) {
  const Matrix& w = *linear.weight;
  member.each(w.panels(), [&](int64_t p) {
    step.kernels.gemm(w, p, x, 0, step.batch.rows, linear.bias_at(p), add, out + p * kPanel, stride);
  });
}

}  // namespace shoal
