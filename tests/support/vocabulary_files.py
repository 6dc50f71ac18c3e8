"""Model files that have a vocabulary and little else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from tests.support.vocabularies import byte_level

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def gguf(path: Path) -> Path:
    """A model of a vocabulary and a tensor of 64 KiB."""
    writer = GGUFWriter(path, "llama")
    for key, value in byte_level().items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    writer.add_tensor("token_embd.weight", np.zeros((128, 128), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
