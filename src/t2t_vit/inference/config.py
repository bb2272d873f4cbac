"""Settings of an evaluation, and how images are named."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from t2t_vit.data.config import BACKGROUND_HELP, DATA_DIR_HELP, DATA_HELP, SOURCES
from t2t_vit.models.names import SHIPPED
from t2t_vit.options import URLS, Settings, argument, option

IMAGES = (*URLS, "-", "*")
"""What images may be called by that is no path: see `find_images`."""
IMAGES_HELP = (
    "image files, folders of them, patterns in quotes, http(s) URLs, .csv files with a column of paths, and - for "
    "paths on standard input"
)


CHECKPOINT_HELP = "weights, in any known format, or an exported file: a path or an http(s) URL"
RUNTIME_HELP = "what runs an exported file; by default ONNX Runtime runs .onnx, OpenVINO .xml"
TRUST_HELP = "open a .pt2 file, which runs code that whoever made it put there"


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Settings):
    """Measure a checkpoint's accuracy on labelled images."""

    data: str = argument(DATA_HELP, exists=SOURCES)
    checkpoint: str = option(..., CHECKPOINT_HELP, metavar="PATH", exists=(*URLS, *SHIPPED))
    data_dir: str | None = option(None, DATA_DIR_HELP, metavar="DIR")
    model: str | None = option(None, "the network; by default the one that the file is for")
    img_size: int | tuple[int, int] | None = option(None, "side, or height and width, in pixels", at_least=1)
    background: str | None = option(None, f"{BACKGROUND_HELP}; by default the checkpoint's", metavar="COLOUR")
    batch_size: int = option(64, "images at a time", short="b", at_least=1)
    use_ema: bool = option(True, "take the moving average of the weights where the file has one")
    skip_unreadable: bool = option(False, "leave out images that cannot be read, instead of refusing")
    json: bool = option(False, "print JSON instead of lines")
    runtime: Literal["onnxruntime", "openvino"] | None = option(None, RUNTIME_HELP)
    trust_code: bool = option(False, TRUST_HELP)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    amp: bool = option(False, "half precision")
    amp_dtype: Literal["bfloat16", "float16"] = option("bfloat16", "type of half precision", needs="amp")
    workers: int | None = option(None, "processes that load images; by default one a core", short="j", at_least=0)

    @classmethod
    def defaults_for(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Half precision if its type is given."""
        return {"amp": "amp_dtype" in given}
