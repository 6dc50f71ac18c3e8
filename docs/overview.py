"""The overview of the docs site is the README, whose links into docs/ are links of the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    text = (Path(config["config_file_path"]).parent / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=text.replace("](docs/", "](")))
    return files
