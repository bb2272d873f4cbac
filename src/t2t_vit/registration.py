"""Registers the models with timm, although t2t_vit does not import timm, which would import torch."""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_timm() -> None:
    """Registers the models now if timm is imported already, otherwise as soon as it is."""
    if sys.modules.get("timm"):
        importlib.import_module("t2t_vit.models.variants")
    elif _watcher not in sys.meta_path:
        sys.meta_path.insert(0, _watcher)


class _TimmWatcher:
    """An import finder that registers our models at the end of timm's import; if that fails, at the next one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "timm":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_then_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            if "t2t_vit.models.variants" not in sys.modules:  # else its import is under way, and waits for timm's
                importlib.import_module("t2t_vit.models.variants")

        # A loader belongs to one spec, so this changes no other import.
        spec.loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec


_watcher = _TimmWatcher()
