"""Reads a file, folder or URL of any known format into a `Checkpoint` with this network's names.

No file runs code: torch files are read with `weights_only`, and a file that needs more is refused.
"""

import argparse
import dataclasses
import hashlib
import http.client
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors
import torch
from timm.data.transforms import str_to_interp_mode
from timm.models._hub import check_cached_file, download_cached_file, load_model_config_from_path
from torch import Tensor

from t2t_vit.errors import UserError, abbreviate
from t2t_vit.models.names import RELEASES, SHIPPED, VARIANTS, plain_spelling
from t2t_vit.runtime.downloads import is_url

FORMAT, VERSION = "t2t_vit", 1
"""Our own files hold these under `format` and `version`; safetensors metadata as JSON under `t2t_vit`."""

OURS = "t2t_vit checkpoint"
OFFICIAL = "official T2T-ViT checkpoint"
OFFICIAL_CIFAR = "official CIFAR checkpoint"
TOKEN_LABELLING = "token-labelling checkpoint"
MMPRETRAIN = "mmpretrain checkpoint"
SAFETENSORS = "safetensors file"
HUB_FOLDER = "timm hub folder"
TRAINING_STATE = "training checkpoint"
STATE_DICT = "bare state dict"
SQUARE_KINDS = (OFFICIAL, OFFICIAL_CIFAR, TOKEN_LABELLING, MMPRETRAIN)
"""Formats whose writers know square grids only."""

RAW_KEYS = ("state_dict", "model", "net")
EMA_KEYS = ("state_dict_ema", "model_ema")
DATA_KEYS = ("input_size", "mean", "std", "crop_pct", "interpolation")
NO_MODEL_ARGS = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Arguments of `timm.create_model` that open other files: no checkpoint gives them."""
MAX_SIDE = 16384
"""Pixels. Larger images no network here takes."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile add to names."""

MMPRETRAIN_NAMES = (
    (r"^backbone\.", ""),
    (r"^head\.layers\.head\.", "head."),
    (r"^encoder\.(\d+)\.", r"blocks.\1."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
"""mmpretrain's names as patterns, and ours. It has no performer: its T2T modules are transformers or convolutions."""


@dataclasses.dataclass
class LoadReport:
    """How a checkpoint went into a network.

    Attributes:
        path: the file, folder or URL.
        kind: its format, in words.
        loaded: number of tensors loaded.
        changed: a sentence for each thing that was resized, rebuilt or adapted.
        left: tensors of the file that the network has no place for.
        used_ema: whether the weights are the exponential moving average.
    """

    path: str
    kind: str
    loaded: int
    changed: list[str]
    left: list[str]
    used_ema: bool

    def __str__(self) -> str:
        average = " (moving average of the weights)" if self.used_ema else ""
        lines = [f"Loaded {self.loaded} tensors of the {self.kind} {self.path}{average}"]
        lines += [f"  changed: {change}" for change in self.changed]
        lines += [f"  left out: {abbreviate(self.left)}"] if self.left else []
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: the file, folder or URL.
        kind: its format, in words.
        state_dict: the weights, under this network's names.
        used_ema: whether the weights are the exponential moving average.
        model, class_names: None if the file does not hold them.
        model_args: arguments for `timm.create_model` that the file holds.
        data_config: timm's input_size, mean, std, crop_pct and interpolation, if the file holds them.
        extra: everything else in the file, such as `epoch`, `optimizer`, `args`.
        report: how the weights went into a network, if `load_model` read the file.
    """

    path: str
    kind: str
    state_dict: dict[str, Tensor]
    used_ema: bool = False
    model: str | None = None
    model_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    class_names: list[str] | None = None
    data_config: dict[str, Any] | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    report: LoadReport | None = None


def read_checkpoint(path: str | Path, use_ema: bool = True) -> Checkpoint:
    """Reads a checkpoint of any known format.

    Args:
        path: a file; a run's folder, whose best.pt is read; a timm hub folder (config.json beside model.safetensors or
            pytorch_model.bin); an http(s) URL, which is downloaded once into torch.hub's cache; or "formulas", the
            weights that come with this package.
        use_ema: take the exponential moving average of the weights if the file has one.

    Raises:
        UserError: there is no such file, the download fails, or the file is cut off, no checkpoint, or would run code.
    """
    source = str(path)
    if source in SHIPPED:
        if Path(source).exists():
            raise UserError(
                f"{source} names weights of this package, and there is a file or folder of that name here: give "
                f"./{source} for that one, or rename it."
            )
        return _read(Path(__file__).with_name(SHIPPED[source]), source, use_ema)
    if not is_url(source):
        return _read(Path(path).expanduser(), source, use_ema)
    file = _download(source)
    try:
        return _read(file, source, use_ema)
    except UserError as error:
        file.unlink(missing_ok=True)  # a broken download must not stay in the cache
        raise UserError(f"{error} The copy in the cache was removed.") from None


def _download(url: str) -> Path:
    """Downloads a URL into torch.hub's cache, unless it is there; returns the file."""
    name = Path(urlparse(url).path).name
    if not url.startswith(RELEASES):  # names such as best.pt are many; the released ones are shared with timm
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    if not check_cached_file((url, name), check_hash=False):
        print(f"Downloading {url}", file=sys.stderr)  # a bar with its size follows
    try:
        return Path(download_cached_file((url, name), check_hash=False, progress=True))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"The checkpoint at {url} could not be downloaded: {error}.") from error


def _read(file: Path, source: str, use_ema: bool) -> Checkpoint:
    try:
        if not file.is_dir():
            return _read_file(file, source, use_ema)
        if (file / "best.pt").exists():
            return _read_file(file / "best.pt", str(file / "best.pt"), use_ema)
        return _read_hub_folder(file, source, use_ema)
    except FileNotFoundError as error:
        raise UserError(f"No checkpoint at {source}: there is no such file or folder.") from error
    except OSError as error:
        raise UserError(f"The checkpoint {source} cannot be read: {error.strerror or error}.") from error


def _read_hub_folder(folder: Path, source: str, use_ema: bool) -> Checkpoint:
    """The weights with the entries of timm's config.json; the weights' own metadata takes precedence."""
    # timm would find the weights too, but neither our metadata in them nor a sentence for a file that cannot be read
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).exists()]
    if not files or not (folder / "config.json").exists():
        raise UserError(
            f"No checkpoint in the folder {source}: expected a best.pt, or a config.json beside a model.safetensors or "
            "a pytorch_model.bin. Name the file if it is another one."
        )
    try:
        cfg, model, model_args = load_model_config_from_path(folder)
    except (ValueError, KeyError) as error:
        raise UserError(f"The config.json in {source} is not timm's: {error!r}.") from error
    if "num_classes" in cfg:  # some writers leave it out of model_args, for transformers' sake
        model_args.setdefault("num_classes", cfg["num_classes"])
    labels = cfg.get("label_names") or []
    weights = _read_file(files[0], str(files[0]), use_ema)
    return dataclasses.replace(
        weights,
        path=source,
        kind=HUB_FOLDER,
        model=weights.model or model,
        model_args=weights.model_args or model_args,
        class_names=weights.class_names or list(labels.values() if isinstance(labels, dict) else labels) or None,
        data_config=weights.data_config or {key: cfg[key] for key in DATA_KEYS if key in cfg} or None,
    )


def _read_file(file: Path, source: str, use_ema: bool) -> Checkpoint:
    with file.open("rb") as stream:
        head = stream.read(9)
    try:
        if head[8:] == b"{":  # a safetensors header: its length, then JSON
            return _read_safetensors(file, source)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # on pickle protocols: what cannot be read raises
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, UserError):
        raise
    except Exception as error:  # bytes that anyone wrote can fail in any way
        if needed := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"The checkpoint {source} was refused: it needs {needed[1]}, and unpickling that may run code. Only "
                "tensors and plain values are read: where the file was made, save the state dict alone, or as "
                "safetensors."
            ) from error
        raise UserError(
            f"{source} is no checkpoint, or is cut off or damaged: expected a state dict written by torch.save (.pt, "
            ".pth, .pth.tar, .bin) or a safetensors file. Copy or download a damaged file again, fetch a Git LFS "
            "pointer with git lfs pull, unpack an archive."
        ) from error
    return recognise(content, source, use_ema)


def _read_safetensors(file: Path, source: str) -> Checkpoint:
    with safetensors.safe_open(file, framework="pt") as stream:
        metadata = stream.metadata() or {}
        state = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (no mapping)
    if FORMAT in metadata:
        return dataclasses.replace(about_network(metadata[FORMAT], source), state_dict=_tensors(state))
    checkpoint = recognise(state, source, use_ema=False)
    return dataclasses.replace(checkpoint, kind=SAFETENSORS if checkpoint.kind == STATE_DICT else checkpoint.kind)


def recognise(content: Any, source: str, use_ema: bool) -> Checkpoint:
    """The checkpoint in what `torch.load` returned.

    Args:
        content: a dictionary of any known format.
        source: the file's name, for messages.
        use_ema: take the exponential moving average of the weights if there is one.

    Raises:
        UserError: the content is no checkpoint.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{source} is no checkpoint: expected a state dict, found a {type(content).__name__}.")
    if content.get("format") == FORMAT:
        return _ours(dict(content), source, use_ema)

    rest = dict(content)
    raw, ema = _take_weights(rest, RAW_KEYS), _take_weights(rest, EMA_KEYS)
    if raw is not None and isinstance(rest.get("ema_state_dict"), Mapping):
        raw, ema = rest.pop("ema_state_dict"), raw  # mmengine swaps them when it saves: state_dict is the average
    kind = TRAINING_STATE
    if raw is None and ema is None:
        raw, rest, kind = content, {}, STATE_DICT
    used_ema = ema is not None and (use_ema or raw is None)
    state = _tensors((ema if used_ema else raw) or {})
    if not state:
        raise UserError(
            f"{source} is no checkpoint: it holds no tensors, neither at the top nor under "
            f"{', '.join(EMA_KEYS + RAW_KEYS)}, only {', '.join(map(str, content)) or 'nothing'}."
        )

    if any(key.startswith("backbone.tokens_to_token.") for key in state):
        state, kind = _rename_mmpretrain(state), MMPRETRAIN
    elif any(key.startswith("aux_head.") for key in state):
        kind = TOKEN_LABELLING
    elif kind == TRAINING_STATE and "cls_token" in state and any(key.startswith("tokens_to_token.") for key in state):
        kind = OFFICIAL_CIFAR if "net" in content else OFFICIAL
    if isinstance(rest.get("args"), argparse.Namespace):
        rest["args"] = vars(rest["args"])
    arch = plain_spelling(str(rest.get("arch")).partition(".")[0])  # which timm's saver notes
    return Checkpoint(source, kind, state, used_ema, model=arch if arch in VARIANTS else None, extra=rest)


def about_network(text: str, source: str) -> Checkpoint:
    """What the metadata of an exported or safetensors file say: a checkpoint without weights.

    Args:
        text: JSON.
        source: the file's name, for messages.

    Raises:
        UserError: the metadata are damaged, or of a later version.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"What {source} says of its network is no JSON: it is damaged. Export it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"What {source} says of its network is damaged: expected an object. Export it again.")
    return _ours({**content, "state_dict": {}}, source, use_ema=False)


def _ours(content: dict[str, Any], source: str, use_ema: bool) -> Checkpoint:
    version = content.get("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise UserError(f"{source} is of version {version} of our format, this t2t-vit reads {VERSION}: upgrade it.")
    if wrong := [name for name, is_right in OUR_ENTRIES.items() if not is_right(content.get(name))]:
        raise UserError(f"What {source} says of its {abbreviate(wrong)} is damaged. Write it again.")
    raw, ema = content.pop("state_dict"), content.pop("state_dict_ema", None)
    used_ema = use_ema and ema is not None
    return Checkpoint(
        source,
        OURS,
        _tensors(ema if used_ema else raw),
        used_ema,
        model=content.pop("model", None),
        model_args={
            name: value for name, value in (content.pop("model_args", None) or {}).items() if name not in NO_MODEL_ARGS
        },
        class_names=content.pop("class_names", None),
        data_config=content.pop("data_config", None),
        extra=content,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _is_interpolation(name: Any) -> bool:
    try:
        return name is None or bool(str_to_interp_mode(name))
    except (KeyError, TypeError):
        return False


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(map(_is_number, values))


def _is_data_config(config: Any) -> bool:
    """Whether it is timm's data configuration, or none."""
    if config is None:
        return True
    if not isinstance(config, Mapping):
        return False
    size, share = config.get("input_size"), config.get("crop_pct")
    means, deviations = config.get("mean"), config.get("std")
    channels = size[0] if size else 3
    return (
        set(config) <= {*DATA_KEYS, "background"}
        and all(values is None or _are_numbers(values) for values in (size, means, deviations))
        and (size is None or (len(size) == 3 and all(isinstance(axis, int) and 0 < axis <= MAX_SIDE for axis in size)))
        and all(values is None or len(values) == channels or channels == 1 for values in (means, deviations))
        and all(value > 0 for value in deviations or ())
        and (share is None or (_is_number(share) and 0.05 <= share <= 10))
        and _is_interpolation(config.get("interpolation"))
        and isinstance(config.get("background", ""), str | None)
    )


OUR_ENTRIES: Mapping[str, Callable[[Any], bool]] = {
    "version": lambda value: value is None or (isinstance(value, int) and value > 0),
    "model": lambda value: isinstance(value, str | None),
    "model_args": lambda value: value is None or isinstance(value, Mapping),
    "class_names": lambda value: (
        value is None or (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value))
    ),
    "data_config": _is_data_config,
    "calibration": lambda value: (
        value is None
        or (isinstance(value, Mapping) and _is_number(value.get("temperature")) and value["temperature"] > 0)
    ),
    "state_dict": lambda value: isinstance(value, Mapping),
    "state_dict_ema": lambda value: isinstance(value, Mapping | None),
}
"""What our own files may hold under a name. Anyone may have written them."""


def _take_weights(content: dict[str, Any], keys: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Removes and returns the first of these entries that is a state dict."""
    return next((content.pop(key) for key in keys if isinstance(content.get(key), Mapping)), None)


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among the entries, without the prefixes of wrappers in their names."""
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for prefix in (*WRAPPERS, *WRAPPERS):  # in either order
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _rename_mmpretrain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for pattern, ours in MMPRETRAIN_NAMES:
            key = re.sub(pattern, ours, key)
        renamed[key] = value
    return renamed
