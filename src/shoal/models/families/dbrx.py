"""DBRX: layer norms, queries, keys and values in one matrix and clipped, 16 experts of which 4 are chosen."""

from __future__ import annotations

from shoal.models.families.config import ConfigJson
from shoal.models.families.family import Family, Stored
from shoal.models.families.layer_count import layer_count
from shoal.models.families.metadata import GgufMetadata
from shoal.models.families.tensor_names import FUSED_QKV, TensorPiece, gguf, hugging_face, rows_of
from shoal.models.spec import Experts, GroupedQuery, LayerSpec, ModelSpec, Rope, Routing


def _from_config(config: ConfigJson) -> ModelSpec:
    attention, feed_forward = config.under("attn_config"), config.under("ffn_config")
    heads, hidden = config.whole("n_heads"), config.whole("d_model")
    if int(feed_forward.get("moe_normalize_expert_weights", 1) or 0) not in (0, 1):
        raise config.unsupported("experts' weights that are normalised by another norm than L1 are not supported")
    routing = Routing(feed_forward.whole("moe_top_k"), renormalised=bool(feed_forward.get("moe_normalize_expert_weights", 1)))
    layer = LayerSpec(
        GroupedQuery(
            heads,
            int(attention.get("kv_n_heads") or heads),
            hidden // max(heads, 1),
            Rope(theta=float(attention.get("rope_theta") or 10000.0)),
            clip=float(attention.get("clip_qkv") or 0),
        ),
        Experts(feed_forward.whole("moe_num_experts"), feed_forward.whole("ffn_hidden_size"), routing),
    )
    layers = (layer,) * layer_count(config.whole("n_layers"), config.where)
    return config.model(layers, hidden=hidden, context=config.whole("max_seq_len"), eps=1e-5, norm="layer")


def _from_metadata(meta: GgufMetadata) -> ModelSpec:
    attention = meta.grouped_query(clip=float(meta.get("attention.clamp_kqv", 0)))
    experts = meta.experts(Routing(meta.chosen, renormalised=True), meta.whole("feed_forward_length"))
    return meta.model(meta.like(attention, experts), eps=float(meta.need("attention.layer_norm_epsilon")), norm="layer")


def _experts(matrix: str, transposed: bool = False) -> TensorPiece:
    return TensorPiece(f"ffn.experts.mlp.{matrix}", stacked=True, transposed=transposed, suffix="")


_NAMES = hugging_face(
    "transformer.blocks",
    embed="transformer.wte",
    norm="transformer.norm_f",
    attention_norm="norm_attn_norm.norm_1",
    mlp_norm="norm_attn_norm.norm_2",
    **rows_of("norm_attn_norm.attn.Wqkv", FUSED_QKV),
    o="norm_attn_norm.attn.out_proj",
    router="ffn.router.layer",
    experts__gate=_experts("w1"),
    experts__up=_experts("v1"),
    experts__down=_experts("w2", transposed=True),
)
_GGUF_NAMES = gguf(**rows_of("attn_qkv", FUSED_QKV), mlp_norm="attn_output_norm")
FAMILY = Family("dbrx", "DBRX", _from_config, _from_metadata, safetensors=Stored(_NAMES), gguf=Stored(_GGUF_NAMES))
