"""Folders as other tools leave them: the cache of the hub's tools, Ollama's store, LM Studio's models."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.hub_server import git_hash, sha256


def hub_cache(cache: Path, name: str, commit: str, files: dict[str, bytes], large: int = 100) -> Path:
    """The snapshot. As huggingface_hub leaves it: links by name to blobs that are called by SHA-256, or by git's hash."""
    folder = cache / f"models--{name.replace('/', '--')}"
    home = folder / "snapshots" / commit
    for path, content in files.items():
        blob = folder / "blobs" / (sha256(content) if len(content) >= large else git_hash(content))
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        place = home / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(Path(*[".."] * (2 + path.count("/")), "blobs", blob.name))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return home


def ollama_store(folder: Path, models: dict[str, bytes], *, adapter: bool = False, host: str = "registry.ollama.ai/library") -> Path:
    """models: GGUF files by 'name:tag'."""

    def blob(content: bytes) -> tuple[str, int]:
        digest = sha256(content)
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / f"sha256-{digest}").write_bytes(content)
        return f"sha256:{digest}", len(content)

    def layer(kind: str, content: bytes) -> dict[str, object]:
        digest, size = blob(content)
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": size}

    for text, content in models.items():
        name, _, tag = text.partition(":")
        layers = [layer("model", content), layer("template", b"{{ .Prompt }}"), layer("params", b"{}")]
        layers += [layer("adapter", b"lora")] if adapter else []
        config = json.dumps({"model_format": "gguf", "model_family": "llama", "model_type": "135M", "file_type": "Q4_1"}).encode()
        manifest = {"schemaVersion": 2, "config": {**layer("config", config), "mediaType": "application/json"}, "layers": layers}
        place = folder / "manifests" / host / name / (tag or "latest")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(manifest))
    return folder


def lmstudio_models(home: Path, name: str, files: dict[str, bytes]) -> Path:
    """The repository's folder. home: the user's."""
    folder = home / ".lmstudio" / "models" / name
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder
