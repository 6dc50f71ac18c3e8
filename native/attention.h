// The attention of a layer: grouped-query, or latent as in DeepSeek.
#pragma once
#include "block.h"

namespace shoal {

class GroupedQuery : public AttentionBlock {
 public:
  struct Parts {
    Linear q, k, v, o;       // none where only `attend` is used
    Norm q_norm, k_norm;     // of a head, or of all heads at once
    std::vector<float> sinks;  // [q heads], or empty
  };
  struct Form {
    Heads heads;
    Scoring scoring;
    float clip = 0;       // bounds of queries, keys and values; 0: none
    int32_t window = 0;   // tokens that a query sees, including itself; 0: all
    int rotation = -1;
    int64_t rotated = 0;  // values of a head that are rotated
  };
  GroupedQuery(Around around, Parts parts, Form form);

  int64_t bytes() const override;
  int64_t hidden() const override { return parts_.q.weight ? parts_.q.weight->k : 0; }
  Heads heads() const override { return form_.heads; }
  int rotation() const override { return form_.rotation; }
  int64_t rotated() const override { return form_.rotated; }
  void reserve(Step& step) const override;
  void run(Member& member, Step& step, const Pool& pool) const override;

  // Only rotation, append and attention, for runtimes whose products run elsewhere: qkv [rows, width()] in `space.qkv`, the
  // result [rows, q heads * value] in `space.attended.x`.
  void attend(Member& member, Step& step, const Pool& pool) const;
  int64_t width() const { return form_.heads.q * form_.heads.key + form_.heads.kv * (form_.heads.key + form_.heads.value); }

 private:
  void store(Step& step, const Pool& pool, int64_t sequence) const;

  Parts parts_;
  Form form_;
};

// Keys and values are one latent vector per token, [rank], and a rotated key, [rope]; the matrices that would make a head's keys and
// values from it are applied to the queries and to the result instead (DeepSeek-V2, arXiv 2405.04434, section 2.1).
class Latent : public AttentionBlock {
 public:
  struct Parts {
    Linear q_a, q, kv_a, k_b, v_b, o;  // q: of the hidden states, or of q_a's result. k_b: [heads * rank, nope], v_b: [heads * value, rank]
    Norm q_a_norm, kv_a_norm;
  };
  struct Form {
    int64_t heads, rank, nope, rope, value;
    Scoring scoring;
    int rotation = -1;
  };
  Latent(Around around, Parts parts, Form form);

  int64_t bytes() const override;
  int64_t hidden() const override { return parts_.kv_a.weight->k; }
  Heads heads() const override { return {form_.heads, 1, form_.rank + form_.rope, form_.rank}; }
  int rotation() const override { return form_.rotation; }
  int64_t rotated() const override { return form_.rope; }
  void reserve(Step& step) const override;
  void run(Member& member, Step& step, const Pool& pool) const override;

 private:
  void store(Step& step, const Pool& pool, int64_t sequence) const;

  Parts parts_;
  Form form_;
};

}  // namespace shoal
