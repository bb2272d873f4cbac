"""Settings of the commands that look into networks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from t2t_vit.data.config import BACKGROUND_HELP
from t2t_vit.inference.config import IMAGES, IMAGES_HELP
from t2t_vit.models.names import SHIPPED
from t2t_vit.options import URLS, Settings, argument, option


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(Settings):
    """List the models: structure, parameters, multiply-accumulates, published accuracy."""

    names: tuple[str, ...] = argument("timm models to list besides", default=(), metavar="NAME")
    img_size: int | tuple[int, int] | None = option(
        None, "side, or height and width, in pixels; by default each model's own", at_least=1
    )
    json: bool = option(False, "print JSON instead of the table")
    csv: str | None = option(None, "write the table to this file as well", metavar="FILE", writes=())


@dataclass(frozen=True, kw_only=True)
class VisualizeConfig(Settings):
    """Show what networks see in images: feature maps, tokens, attention, and where the class score comes from."""

    images: tuple[str, ...] = argument(IMAGES_HELP, metavar="IMAGE", exists=IMAGES)
    checkpoint: tuple[str, ...] = option(
        (),
        "weights of the networks, in any known format: paths or http(s) URLs",
        metavar="PATH",
        exists=(*URLS, *SHIPPED),
    )
    model: tuple[str, ...] = option(
        (), "networks of this package or of timm, with their released weights, beside or instead of checkpoints"
    )
    pretrained: bool = option(True, "give those of --model their released weights, downloaded once", needs="model")
    output: str | None = option(None, "folder of the pictures; by default runs/visualize-IMAGE", metavar="DIR")
    img_size: int | tuple[int, int] | None = option(
        None,
        "side, or height and width, in pixels, to which positions are resampled; by default each network's own",
        at_least=1,
    )
    layers: tuple[str, ...] | None = option(
        None, "modules whose feature maps to show; by default five of each network", metavar="LAYER"
    )
    channels: int = option(16, "channels to show of a layer, evenly spaced among all", at_least=1)
    pixel: tuple[int, int] | None = option(
        None, "x and y, in the image as the network gets it, of the patch to follow; by default the middle", at_least=0
    )
    label: str | None = option(None, "the class to explain; by default what each network says", metavar="CLASS")
    methods: (
        tuple[
            Literal["rollout", "rollout-pixels", "legrad", "gradcam", "integrated-gradients", "occlusion"],
            ...,
        ]
        | None
    ) = option(
        None,
        "methods that explain the class; by default all that cost little, and not integrated-gradients and occlusion, "
        "which need captum",
        metavar="METHOD",
    )
    faithfulness: bool = option(
        False, "measure how far each method can be believed: deletion, insertion, SaCo, and with random weights"
    )
    max_images: int = option(16, "images to show at most, evenly spaced among all", at_least=1)
    background: str | None = option(None, f"{BACKGROUND_HELP}; by default the checkpoint's", metavar="COLOUR")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")

    def contradictions(self) -> Iterable[str]:
        """That there is no network."""
        if not self.checkpoint and not self.model:
            yield "Missing --checkpoint PATH or --model NAME: the networks to look into."
