"""Settings of an evaluation."""

from dataclasses import dataclass

from t2t_vit.data.config import DATA_HELP
from t2t_vit.options import argument, option


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measure a checkpoint's accuracy on labelled images."""

    data: str = argument(DATA_HELP)
    checkpoint: str = option(..., "weights, in any known format: a path or an http(s) URL", metavar="PATH")
    data_dir: str | None = option(
        None, "folder of cifar10 and cifar100, by default data; cache of hfds/NAME", metavar="DIR"
    )
    model: str | None = option(None, "the network; by default the one that the file is for")
    img_size: int | tuple[int, int] | None = option(None, "side, or height and width, in pixels", metavar="N")
    batch_size: int = option(64, "images at a time", short="b")
    use_ema: bool = option(True, "take the moving average of the weights where the file has one")
    skip_unreadable: bool = option(False, "leave out images that cannot be read, instead of refusing")
    json: bool = option(False, "print JSON instead of lines")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    amp: bool = option(False, "half precision")
    amp_dtype: str = option("bfloat16", "type of half precision", choices=("bfloat16", "float16"))
    workers: int | None = option(None, "processes that load images; by default one a core", short="j")
