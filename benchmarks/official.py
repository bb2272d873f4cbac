"""`t2t-vit benchmark` with the official code beside it.

    git clone https://github.com/yitu-opensource/T2T-ViT
    python benchmarks/official.py T2T-ViT t2t_vit_14 t2t_vit_t_14 --precision float32 amp_bfloat16 --mode infer train

Behind the folder of the official code stand the models and flags of `t2t-vit benchmark`. Each of these models that the
official code has competes a second time, as `official t2t_vit_14`. The official code runs unchanged. It cannot hold its
weights in half precision: where `bfloat16` or `float16` is asked for, it runs under autocast, and its row says so.
"""

import argparse
import contextlib
import dataclasses
import importlib
import re
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import timm.layers
from torch import nn

from t2t_vit.errors import UserError
from t2t_vit.flags import parse
from t2t_vit.speed.benchmark import compare_speed, contender_groups
from t2t_vit.speed.config import BenchmarkConfig
from t2t_vit.speed.contenders import Contender


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", help="a copy of the official repository")
    options, words = parser.parse_known_args()
    try:
        config = parse(BenchmarkConfig, words, prog="official.py FOLDER")
        compare_speed(config, groups_with_official(config, options.folder))
    except UserError as error:
        parser.error(str(error))


def groups_with_official(config: BenchmarkConfig, folder: str) -> Iterator[list[Contender]]:
    """The groups of `t2t-vit benchmark`, with the official models at the end of each.

    Raises:
        UserError: when the official code has none of the models.
    """
    for group in contender_groups(config):
        official = [official_contender(folder, one) for one in group if one.name in official_models(folder)]
        if not official:
            raise UserError(f"{folder} holds none of these models: {', '.join(one.name for one in group)}.")
        yield group + official


def official_contender(folder: str, ours: Contender) -> Contender:
    """The official model of the same name in the same setting, with autocast in the place of half-precision weights."""
    precision = f"amp_{ours.precision}" if ours.precision in ("bfloat16", "float16") else ours.precision
    build = partial(build_official, folder, ours.name, ours.input_size[-1])
    return dataclasses.replace(ours, name=f"official {ours.name}", build=build, precision=precision)


def official_models(folder: str) -> dict[str, str]:
    """Name -> module of the models in a copy of the official repository.

    Raises:
        UserError: when the folder is no copy of it.
    """
    found = {
        name: f"models.{path.stem}"
        for path in sorted(Path(folder, "models").glob("*.py"))
        for name in re.findall(r"^def (t2t_vit_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    if not found:
        raise UserError(
            f"{folder} is no copy of the official repository: expected models/t2t_vit.py in it. "
            "Clone https://github.com/yitu-opensource/T2T-ViT, and name its folder."
        )
    return found


def build_official(folder: str, model: str, img_size: int) -> nn.Module:
    """The model of this name from a copy of the official repository, with random weights.

    That code was written for timm 0.3.4. The three modules of timm that it imports from are replaced in this process:
    with timm's layers of today, and with a `register_model` and a `load_pretrained` that do nothing.
    """
    registry, helpers = types.ModuleType("timm.models.registry"), types.ModuleType("timm.models.helpers")
    registry.register_model = lambda function: function  # type: ignore[attr-defined]
    helpers.load_pretrained = lambda *args, **kwargs: None  # type: ignore[attr-defined]
    sys.modules |= {"timm.models.registry": registry, "timm.models.helpers": helpers, "timm.models.layers": timm.layers}
    sys.path.insert(0, str(Path(folder).resolve()))
    module = importlib.import_module(official_models(folder)[model])
    with contextlib.redirect_stdout(None):  # it tells which tokens it adopts
        return getattr(module, model)(img_size=img_size)


if __name__ == "__main__":
    main()
