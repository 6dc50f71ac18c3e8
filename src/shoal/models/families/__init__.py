"""The families of models that shoal runs, a file each: what their files say, and what they call their tensors.

Nothing outside this package names a family.
"""

from __future__ import annotations

from shoal.models.families import llama, mistral, qwen2, qwen3
from shoal.models.families.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)}
"""By `model_type`."""
