"""The model card of an export: README.md beside it, as Hugging Face's hub shows it."""

import importlib.resources
from pathlib import Path

import jinja2

from t2t_vit.deploy.fidelity import Fidelity
from t2t_vit.deploy.formats import Source
from t2t_vit.runtime.files import write_text


def write_card(folder: Path, source: Source, found: Fidelity, *, format: str) -> None:
    """Writes what is known of the network: its data, accuracy, calibration and limits, and how it was checked."""
    template = importlib.resources.files("t2t_vit.deploy").joinpath("card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    num_parameters = sum(parameter.numel() for parameter in source.network.parameters())
    text = environment.from_string(template).render(
        about=source.about,
        files=sorted(file.name for file in folder.iterdir()),
        found=found,
        format=format,
        num_parameters=num_parameters,
        any_size=source.any_size,
        classes=[_in_line(name) for name in source.about["class_names"]],
    )
    write_text(folder / "README.md", text)


def _in_line(name: str) -> str:
    """A class name that cannot end its line or become markup."""
    return "`" + " ".join(name.replace("`", "'").replace("|", "\\|").split()) + "`"
