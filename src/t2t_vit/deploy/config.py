"""Settings of the commands that use a trained network."""

from dataclasses import dataclass

from t2t_vit.data.config import BACKGROUND_HELP
from t2t_vit.models.names import SHIPPED
from t2t_vit.options import URLS, Settings, argument, option


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Settings):
    """Name what is on images, with probabilities."""

    images: tuple[str, ...] = argument("image files, folders of them, and http(s) URLs", metavar="IMAGE", exists=URLS)
    checkpoint: str = option(
        ..., "weights, in any known format: a path or an http(s) URL", metavar="PATH", exists=(*URLS, *SHIPPED)
    )
    top_k: int | None = option(
        None,
        "labels to show for each image, the likeliest first; by default 5, or 1 where many images get a line each",
        metavar="K",
        at_least=1,
    )
    background: str | None = option(None, f"{BACKGROUND_HELP}; by default the checkpoint's", metavar="COLOUR")
    json: bool = option(False, "print JSON")
    csv: str | None = option(None, "write the labels to this file as well, an image a row", metavar="FILE", writes=())
    batch_size: int = option(32, "images per step", short="b", at_least=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
