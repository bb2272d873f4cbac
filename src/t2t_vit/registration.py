"""How the models reach timm's registry without t2t_vit importing timm, and with it torch."""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_timm() -> None:
    """Registers the models now if timm is imported already, and otherwise as soon as it has been."""
    if sys.modules.get("timm"):
        importlib.import_module("t2t_vit.models.variants")
    elif _watcher not in sys.meta_path:
        sys.meta_path.insert(0, _watcher)


class _TimmWatcher:
    """A finder that lets the other finders find timm, and ends the import of timm by registering our models.

    An import of timm that fails leaves the watcher to the next.
    """

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

        # A loader belongs to the one spec it came with, so that this changes one import and no other.
        spec.loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec


_watcher = _TimmWatcher()
