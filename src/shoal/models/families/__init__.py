"""The families of models that shoal runs, a file each: what their files say, and what they call their tensors.

Nothing outside this package names a family.
"""

from __future__ import annotations

from shoal.models.families import (
    cohere,
    cohere2,
    dbrx,
    deepseek_v2,
    deepseek_v3,
    dots1,
    ernie4_5,
    ernie4_5_moe,
    exaone4,
    gemma,
    gemma2,
    gemma3_text,
    glm,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    granite,
    granitemoe,
    granitemoehybrid,
    llama,
    minimax_m2,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    seed_oss,
    smollm3,
)
from shoal.models.families.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        llama,
        mistral,
        mixtral,
        qwen2,
        qwen2_moe,
        qwen3,
        qwen3_moe,
        olmo2,
        olmo3,
        olmoe,
        deepseek_v2,
        deepseek_v3,
        gpt_oss,
        glm,
        glm4,
        glm4_moe,
        glm4_moe_lite,
        gemma,
        gemma2,
        gemma3_text,
        phi3,
        granite,
        granitemoe,
        granitemoehybrid,
        smollm3,
        cohere,
        cohere2,
        dbrx,
        minimax_m2,
        ernie4_5,
        ernie4_5_moe,
        seed_oss,
        dots1,
        exaone4,
    )
}
"""By `model_type`."""
BY_MODEL_TYPE = {name: family for family in FAMILIES.values() for name in (family.name, *family.aliases)}
ARCHITECTURES = {family.architecture or family.name: family for family in FAMILIES.values() if family.from_metadata}
"""By what GGUF files say."""
