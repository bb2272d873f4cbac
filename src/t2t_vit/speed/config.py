"""Settings of the commands that measure speed."""

from dataclasses import dataclass
from typing import Literal

from t2t_vit.inference.config import RUNTIME_HELP, TRUST_HELP
from t2t_vit.options import Settings, argument, option


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Settings):
    """Measure the speed and memory of models side by side, on random images."""

    models: tuple[str, ...] = argument(
        "names of this package or of timm, and exported files (default: t2t_vit_14 vit_small_patch16_224)",
        default=("t2t_vit_14", "vit_small_patch16_224"),
        metavar="MODEL",
    )
    mode: tuple[Literal["infer", "train"], ...] = option(("infer",), "inference, or whole steps of training")
    precision: tuple[Literal["float32", "bfloat16", "float16", "amp_bfloat16", "amp_float16"], ...] = option(
        ("float32",), "of weights and images; amp: autocast"
    )
    batch_size: tuple[int, ...] = option((32,), "images in a step", short="b", at_least=1)
    img_size: tuple[int, ...] = option((), "side in pixels; by default each model's own", at_least=1)
    compile: Literal["no", "yes", "both"] = option("no", "torch.compile")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = option(
        "default", "mode of torch.compile", needs="compile"
    )
    channels_last: bool = option(False, "channels-last layout")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    runtime: Literal["onnxruntime", "openvino"] | None = option(None, RUNTIME_HELP)
    trust_code: bool = option(False, TRUST_HELP)
    threads: int | None = option(None, "of each process on the CPU; by default torch's choice", at_least=1)
    rounds: int = option(5, "how often each model has its turn", at_least=1)
    seconds: float = option(1.0, "how long a turn lasts at least", above=0)
    baseline: str | None = option(None, "the model that ratios refer to; by default the first", metavar="NAME")
    csv: str | None = option(None, "write the table to this file", metavar="FILE", writes=())
    plot: str | None = option(None, "draw the table", metavar="FILE", writes=(".png", ".svg"))
