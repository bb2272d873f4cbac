"""Settings of the commands that use a trained network."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from t2t_vit.data.config import BACKGROUND_HELP
from t2t_vit.inference.config import IMAGES, IMAGES_HELP
from t2t_vit.models.names import SHIPPED
from t2t_vit.options import URLS, Settings, argument, option


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Settings):
    """Name what is on images, with probabilities."""

    images: tuple[str, ...] = argument(IMAGES_HELP, metavar="IMAGE", exists=IMAGES)
    checkpoint: str = option(
        ..., "weights, in any known format: a path or an http(s) URL", metavar="PATH", exists=(*URLS, *SHIPPED)
    )
    top_k: int | None = option(
        None,
        "labels to show for each image, the likeliest first; by default 5, or 1 where several are printed",
        metavar="K",
        at_least=1,
    )
    threshold: float = option(0.0, "least probability of a label that is shown", at_least=0, below=1)
    flip: bool = option(False, "average the answers for each image and its mirror image")
    embed: bool = option(False, "give the features before the classifier too", needs="json or jsonl or parquet or csv")
    background: str | None = option(None, f"{BACKGROUND_HELP}; by default the checkpoint's", metavar="COLOUR")
    json: bool = option(False, "print JSON")
    csv: str | None = option(
        None, "write comma-separated values, an image a row, instead of printing", metavar="FILE", writes=()
    )
    jsonl: str | None = option(
        None, "write JSON, an image a line, instead of printing", metavar="FILE", writes=(), unless="csv"
    )
    parquet: str | None = option(
        None, "write a folder of Parquet files, instead of printing", metavar="FOLDER", unless="csv or jsonl"
    )
    resume: bool = option(False, "go on after the last image that was written", needs="csv or jsonl or parquet")
    batch_size: int | None = option(None, "images per step; by default 32, on a GPU 256", short="b", at_least=1)
    workers: int | None = option(None, "processes that load images; by default one a core", short="j", at_least=0)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")

    def contradictions(self) -> Iterable[str]:
        """Printing and writing exclude each other, and what is there is not overwritten."""
        output = self.csv or self.jsonl or self.parquet
        if self.json and output:
            yield "--json prints, and has no effect beside a file to write: leave it out."
        if output and not self.resume and os.path.exists(output):  # noqa: PTH110 (it may be too long for a Path)
            yield f"{output} is there already: go on with it by --resume, remove it, or choose another name."
