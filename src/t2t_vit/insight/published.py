"""What was published of our networks, of the paper's rivals and of today's. Importing it does not import torch."""

import dataclasses
from typing import Any

from t2t_vit.models.names import list_models

PAPER = "arXiv 2101.11986"
OFFICIAL = "github.com/yitu-opensource/T2T-ViT"
TIMM = "timm's results, of January 2026"  # results-imagenet.csv and benchmark-infer-amp-nchw-pt291-cu128-4090.csv
TORCHVISION = "torchvision's documentation"
MAX_DIFFERENCE = 0.02  # of a counted figure from the published one, that needs no reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """What was published of a network, at its own image size.

    Attributes:
        title: its name in the literature.
        family: those that a picture shows alike.
        top1_percent: on ImageNet-1k, trained on nothing else; None for ours, whose accuracy is in `VARIANTS`.
        params_m: million parameters.
        gmacs: 1e9 multiply-accumulates of one image.
        source: who published it.
        note: what else must be known of the figures.
        why: the reason for a difference of more than MAX_DIFFERENCE between the counted and the published figure.
        library: "timm", where our networks are registered too, or "torchvision"; "" where neither has the network.
        img_size: height and width in pixels, if it is not of timm.
    """

    title: str = ""
    family: str = ""
    top1_percent: float | None = None
    params_m: float | None = None
    gmacs: float | None = None
    source: str = ""
    note: str = ""
    why: str = ""
    library: str = "timm"
    img_size: tuple[int, int] = (224, 224)

    @property
    def is_of_others(self) -> bool:
        """Whether others than the paper's authors published it."""
        return self.source not in ("", PAPER, OFFICIAL)

    def differs_from(self, parameters: int, macs: int) -> str:
        """A sentence for each figure that differs by more than MAX_DIFFERENCE from the counted one, with the reason."""
        figures = (("M parameters", parameters / 1e6, self.params_m), ("GMACs", macs / 1e9, self.gmacs))
        sentences = []
        for unit, counted, figure in figures:
            if figure is not None and abs(counted / figure - 1) > MAX_DIFFERENCE:
                num_digits = len(str(figure).partition(".")[2])
                is_rounded = f"{counted:.{num_digits}f}" == str(figure)
                why = "the published figure is rounded" if is_rounded else self.why or "counted otherwise by the source"
                sentences.append(f"{counted:.3g} {unit} counted, {figure} published: {why}.")
        return " ".join(sentences)


NOT_PUBLISHED = Published()


def _ours(title: str, family: str, params_m: float | None = None, gmacs: float | None = None) -> Published:
    source = (OFFICIAL if family != "T2T variant" else PAPER) if params_m or gmacs else ""
    return Published(title=title, family=family, params_m=params_m, gmacs=gmacs, source=source)


def _rival(
    title: str, family: str, top1_percent: float, params_m: float, gmacs: float, source: str = PAPER, **more: Any
) -> Published:
    return Published(
        title=title, family=family, top1_percent=top1_percent, params_m=params_m, gmacs=gmacs, source=source, **more
    )


def _with_t2t_recipe(first_published: float) -> str:
    return f"Trained with the T2T recipe; {first_published} as first published."


_T2T_RECIPE = "Trained with the T2T recipe."
_NOWHERE = "Published, not counted: neither timm nor torchvision has it."

# fmt: off
_OURS = {
    "t2t_vit_7": _ours("T2T-ViT-7", "T2T-ViT", 4.3, 1.1),
    "t2t_vit_10": _ours("T2T-ViT-10", "T2T-ViT", 5.9, 1.5),
    "t2t_vit_12": _ours("T2T-ViT-12", "T2T-ViT", 6.9, 1.8),
    "t2t_vit_14": _ours("T2T-ViT-14", "T2T-ViT", 21.5, 4.8),
    "t2t_vit_19": _ours("T2T-ViT-19", "T2T-ViT", 39.2, 8.5),
    "t2t_vit_24": _ours("T2T-ViT-24", "T2T-ViT", 64.1, 13.8),
    "t2t_vit_14.in1k_384": _ours("T2T-ViT-14, 384 px", "T2T variant", 21.7),
    "t2t_vit_t_14": _ours("T2T-ViT_t-14", "T2T-ViT_t", 21.5, 6.1),
    "t2t_vit_t_19": _ours("T2T-ViT_t-19", "T2T-ViT_t", 39.2, 9.8),
    "t2t_vit_t_24": _ours("T2T-ViT_t-24", "T2T-ViT_t", 64.1, 15.0),
    "t2t_vit_14_resnext": _ours("T2T-ViT-14, ResNeXt", "T2T variant"),
    "t2t_vit_14_wide": _ours("T2T-ViT-14, wide", "T2T variant"),
    "t2t_vit_14_se": _ours("T2T-ViT-14, SE", "T2T variant"),
    "t2t_vit_16_ghost": _ours("T2T-ViT-16, Ghost", "T2T variant"),
    "t2t_vit_dense": _ours("T2T-ViT, dense", "T2T variant"),
    "t2t_vit_14_conv": _ours("T2T-ViT-14, convolutions", "T2T variant", 21.3, 4.6),
    "t2t_vit_14_no_t2t": _ours("T2T-ViT-14 without T2T", "T2T variant"),
}
_OURS |= {name: _ours(name, "T2T variant") for name in list_models() if name not in _OURS}

_OF_THE_PAPER = {
    "ViT-S/16": _rival("ViT-S/16", "ViT", 78.1, 48.6, 10.1, note=f"{_NOWHERE} 8 layers of width 768.", library=""),
    "vit_base_patch16_224": _rival("ViT-B/16", "ViT", 79.8, 86.4, 17.6),
    "vit_large_patch16_224": _rival(
        "ViT-L/16", "ViT", 81.1, 304.3, 63.6, why="counted otherwise by the source; timm's results have 61.6 too"
    ),
    "deit_small_patch16_224": _rival("DeiT-S", "ViT", 79.9, 22.1, 4.6),
    "alexnet": _rival("AlexNet", "other CNN", 56.522, 61.1, 0.714, TORCHVISION, library="torchvision"),
    "vgg11.tv_in1k": _rival("VGG11", "other CNN", 69.050, 132.86, 7.61, TIMM),
    "inception_v3.tv_in1k": _rival("Inception v3", "other CNN", 77.472, 23.83, 5.73, TIMM),
    "resnet50": _rival(
        "ResNet50", "ResNet", 79.1, 25.5, 4.3, note=_with_t2t_recipe(76.2),
        why="counted otherwise by the source; timm's results, which count batch norm too, have 4.11",
    ),
    "resnet101": _rival("ResNet101", "ResNet", 79.9, 44.6, 7.9, note=_with_t2t_recipe(77.4)),
    "resnet152": _rival("ResNet152", "ResNet", 80.8, 60.2, 11.6, note=_with_t2t_recipe(78.3)),
    "densenet201": _rival(
        "DenseNet201", "other CNN", 77.5, 20.1, 4.4, note=_T2T_RECIPE,
        why="batch norm is not counted here; timm's results, which count it, have 4.34",
    ),
    "seresnet50": _rival(
        "SENet50", "other CNN", 80.3, 28.1, 4.9, note=_T2T_RECIPE,
        why="counted otherwise by the source; timm's results, which count batch norm too, have 4.11",
    ),
    "resnext50_32x4d": _rival("ResNeXt50", "other CNN", 79.9, 25.0, 4.3, note=_T2T_RECIPE),
    "ResNet50-Ghost": _rival(
        "ResNet50-Ghost", "other CNN", 76.2, 19.9, 3.2, note=f"{_NOWHERE} {_T2T_RECIPE}", library=""
    ),
    "mobilenetv1_100": _rival("MobileNetV1", "MobileNet", 70.8, 4.2, 0.6, note=_T2T_RECIPE),
    "mobilenetv2_100": _rival("MobileNetV2", "MobileNet", 72.8, 3.5, 0.3, note=_T2T_RECIPE),
    "mobilenetv2_140": _rival(
        "MobileNetV2-1.4", "MobileNet", 75.6, 6.9, 0.6, note=_T2T_RECIPE,
        why="counted otherwise by the source; torchvision's network of this width has 6.11 too",
    ),
    "mobilenetv3_large_100": _rival("MobileNetV3", "MobileNet", 75.2, 5.4, 0.2),
}

_OF_TODAY = {
    "resnet50.a1_in1k": _rival("ResNet50, recipe a1", "today", 80.382, 25.56, 4.11, TIMM),
    "deit3_small_patch16_224.fb_in1k": _rival("DeiT III-S", "today", 81.382, 22.06, 4.61, TIMM),
    "vit_wee_patch16_reg1_gap_256.sbb_in1k": _rival("ViT-wee, 256 px", "today", 80.262, 13.42, 3.83, TIMM),
    "vit_little_patch16_reg4_gap_256.sbb_in1k": _rival("ViT-little, 256 px", "today", 82.520, 22.52, 6.35, TIMM),
    "swin_tiny_patch4_window7_224.ms_in1k": _rival("Swin-T", "today", 81.388, 28.29, 4.51, TIMM),
    "convnext_nano.d1h_in1k": _rival("ConvNeXt-nano", "today", 80.762, 15.59, 2.46, TIMM),
    "convnext_tiny.fb_in1k": _rival("ConvNeXt-T", "today", 82.066, 28.59, 4.47, TIMM),
    "mobilenetv4_conv_small.e1200_r224_in1k": _rival("MobileNetV4-conv-S", "today", 73.450, 3.77, 0.19, TIMM),
}
# fmt: on
COMPARED: dict[str, Published] = {**_OURS, **_OF_THE_PAPER, **_OF_TODAY}
"""The networks that `t2t-vit compare` lists, by the names of timm or torchvision; else by the paper's."""
