"""Sphinx settings: the notebooks as web pages, from their committed outputs.

Build: `sphinx-build -W nbs _docs` (needs the `docs` extra's packages, but neither PyTorch nor bierase).
"""

import json
import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

_parser = ConfigParser(delimiters=["="])
_parser.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")
_cfg = _parser["DEFAULT"]

project = _cfg["lib_name"]
author = _cfg["author"]
copyright = _cfg["copyright"]
version = release = _cfg["version"]

extensions = ["myst_nb"]
root_doc = "toc"
exclude_patterns = ["_*", "**/_*", "**/.ipynb_checkpoints", "images"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = _cfg["title"]
html_copy_source = False
html_theme_options = {
    "source_repository": _cfg["git_url"],
    "source_branch": _cfg["branch"],
    "source_directory": "nbs/",
}

_DIRECTIVE = re.compile(r"^\s*#\s*\|")
_HIDE = re.compile(r"^\s*#\s*\|\s*(hide|default_exp)\b", re.MULTILINE)


def _unless_empty(block: re.Match[str]) -> str:
    """A toctree, or nothing if no notebook matches its last line."""
    pattern = block[0].splitlines()[-2]
    return block[0] if any(Path(__file__).parent.glob(f"{pattern}.ipynb")) else ""


def _for_readers(app: Any, docname: str, text: list[str]) -> None:
    """Drop hidden cells and directive lines from a notebook's source, and empty parts from the contents."""
    if docname == root_doc:
        text[0] = re.sub(r"```{toctree}.*?```", _unless_empty, text[0], flags=re.DOTALL)
    if not str(app.env.doc2path(docname)).endswith(".ipynb"):
        return
    nb = json.loads(text[0])
    nb["cells"] = [c for c in nb["cells"] if c["cell_type"] != "code" or not _HIDE.search("".join(c["source"]))]
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = [s for s in "".join(cell["source"]).splitlines(True) if not _DIRECTIVE.match(s)]
    text[0] = json.dumps(nb)


def setup(app: Any) -> dict[str, bool]:
    """Register the hook."""
    app.connect("source-read", _for_readers)
    return {"parallel_read_safe": True}
