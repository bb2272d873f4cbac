"""Our checkpoint files: written whole or not at all, and enough to be used alone or to go on training."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from t2t_vit.errors import UserError
from t2t_vit.models.checkpoint_formats import FORMAT, VERSION


def model_section(
    name: str, model_args: Mapping[str, Any], *, class_names: Sequence[str], data_config: Mapping[str, Any]
) -> dict[str, Any]:
    """What a checkpoint says of its network, so that it can be rebuilt without anything else.

    Args:
        name: its registered name.
        model_args: arguments of `timm.create_model` that differ from the registered ones.
        class_names: labels in the order of the head's outputs.
        data_config: input_size, mean, std, crop_pct and interpolation of evaluation.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": name,
        "model_args": plain(model_args),
        "class_names": list(class_names),
        "data_config": plain(data_config),
    }


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose tuples are lists, as JSON, YAML and our checkpoints hold them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


@contextmanager
def told(path: Path) -> Iterator[None]:
    """A write to this path inside that fails, as on a full disk, is a `UserError` with its cause."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__  # torch says only where in its own code the write failed
        if cause is None:
            raise
        stands = " What was there before stands." if path.exists() else ""
        raise UserError(f"{path} could not be written: {cause.strerror or cause}.{stands}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that is whole whenever it has its name: what was there before stands until then.

    Raises:
        UserError: when it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with told(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError):
            with suppress(OSError):
                temporary.unlink()
            raise


def write_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Writes a `whole_file` of tensors and plain Python values."""
    with whole_file(path) as file:
        torch.save(contents, file)


def link_checkpoint(path: Path, name: Path) -> None:
    """Gives a checkpoint a second name, whole or not at all; the file is not written twice where the disk has links.

    Raises:
        UserError: when it cannot be done.
    """
    temporary = name.with_name(name.name + ".tmp")
    with told(name):
        temporary.unlink(missing_ok=True)
        try:
            temporary.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, temporary)
        temporary.replace(name)
        temporary.unlink(missing_ok=True)  # a rename between two names of one file does nothing


def read_training_state(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, to go on training from.

    Raises:
        UserError: when there is none, or it is damaged or another file.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no {path} to continue from: start without --resume.") from None
    except Exception as error:
        raise UserError(f"{path} is damaged and cannot be continued from: {error}") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT or "progress" not in contents:
        raise UserError(
            f"{path} is no checkpoint that a run left to be continued from. To start from its weights, "
            "give it to --checkpoint, with another --output."
        )
    return contents
