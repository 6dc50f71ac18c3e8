#include "team.h"

namespace shoal {
namespace {

constexpr int kSpins = 1000;  // about 20 us: longer than a gap between phases, much shorter than a scheduler tick

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until the value differs from `old`. It spins longer than the usual gap between two phases, then sleeps, which frees the core
// for a member that the system has queued behind this one.
uint32_t wait_past(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    relax();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

Team::Team(int threads) : size_(threads) {
  for (int member = 1; member < size_; ++member) threads_.emplace_back([this, member] { work(member); });
}

Team::~Team() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    round_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Team::run(const std::function<void(int)>& body) {
  if (size_ == 1) return body(0);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    done_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  body(0);
  uint32_t done = done_.load(std::memory_order_acquire);
  while (done != static_cast<uint32_t>(size_ - 1)) done = wait_past(done_, done);
}

void Team::work(int member) {
  uint64_t seen = 0;
  for (;;) {
    for (int i = 0; i < kSpins && round_.load(std::memory_order_acquire) == seen; ++i) relax();
    const std::function<void(int)>* body;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
      if (stop_) return;
      seen = round_.load(std::memory_order_acquire);
      body = body_;
    }
    (*body)(member);
    done_.fetch_add(1, std::memory_order_release);
    done_.notify_one();
  }
}

void Team::barrier() {
  if (size_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    // The count restarts before the phase opens: until then nobody can arrive at the next barrier.
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
    return;
  }
  wait_past(phase_, phase);
}

}  // namespace shoal
