#include "feed_forward.h"

namespace shoal {

void GatedMlp::check(int64_t hidden) const {
  if (!gate || !up || !down) throw std::invalid_argument("a matrix of the MLP is missing");
  const int64_t n = gate.weight->n;
  if (n % 16 || up.weight->n != n || down.weight->k != n || gate.weight->k != hidden || up.weight->k != hidden || down.weight->n != hidden) {
    throw std::invalid_argument("a matrix of the MLP has the wrong shape");
  }
}

void GatedMlp::columns(const Kernels& kernels, Activation activation, int64_t pair, const Activations& x, int64_t rows, Rows& out,
                       float* up_out, int64_t at) const {
  const int64_t n = width(), column = pair * kBlock, columns = std::min(kBlock, n - column);
  float* gated = out.x.data() + at;
  for (int64_t p = pair * 2; p < pair * 2 + columns / kPanel; ++p) {
    kernels.gemm(*gate.weight, p, x, 0, rows, gate.bias_at(p), false, gated + p * kPanel, n);
    kernels.gemm(*up.weight, p, x, 0, rows, up.bias_at(p), false, up_out + at + p * kPanel, n);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t here = r * n + column;
    kernels.activate(activation, gated + here, up_out + at + here, columns);
    if (down.quantised()) out.quantise(kernels, at + here, kBlock);
  }
}

Dense::Dense(Around around, GatedMlp mlp, Activation activation)
    : FeedForwardBlock(std::move(around)), mlp_(std::move(mlp)), activation_(activation) {
  mlp_.check(mlp_.gate ? mlp_.gate.weight->k : 0);
}

void Dense::reserve(Step& step) const {
  reserve_branch(step);
  step.space.mid.reserve(step.batch.rows * mlp_.width());
  grow(step.space.scratch, step.batch.rows * mlp_.width());
}

void Dense::run(Member& member, Step& step) const {
  const int64_t rows = step.batch.rows;
  take(member, step, mlp_.gate.quantised() || mlp_.up.quantised());
  const Activations x = step.space.input.from();
  member.each((mlp_.width() + kBlock - 1) / kBlock, [&](int64_t pair) {
    mlp_.columns(step.kernels, activation_, pair, x, rows, step.space.mid, step.space.scratch.data(), 0);
  });
  member.barrier();
  product(member, step, mlp_.down, step.space.mid.from(), direct(), target(step), step.width);
  member.barrier();
  settle(member, step);
}

}  // namespace shoal
