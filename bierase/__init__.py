"""Concept erasure for diffusion models.

The public names below are loaded when first used, so `import bierase` costs nothing.
This file is written by hand; the other modules are exported from the notebooks in `nbs/`.
"""

__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see: keep in step with `_LAZY`
    from .concepts import Concept as Concept
    from .conditions import Conditions as Conditions
    from .core import UserError as UserError
    from .denoiser import Denoiser as Denoiser
    from .emoji import load as load
    from .erasing import Erasure as Erasure, erase as erase, load_erasure as load_erasure
    from .methods import ESD as ESD
    from .metrics import evaluate as evaluate

_LAZY: dict[str, str] = {  # public name -> the module that defines it
    "UserError": "core",
    "load": "emoji",
    "Concept": "concepts",
    "Conditions": "conditions",
    "Denoiser": "denoiser",
    "ESD": "methods",
    "erase": "erasing",
    "Erasure": "erasing",
    "load_erasure": "erasing",
    "evaluate": "metrics",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    """Import a public name's module on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy names too, so that completion finds them."""
    return sorted({*globals(), *_LAZY})
