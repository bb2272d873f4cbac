"""Settings of the command that counts what networks cost."""

from dataclasses import dataclass

from t2t_vit.options import Settings, argument, option


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(Settings):
    """List the models: structure, parameters, multiply-accumulates, published accuracy."""

    names: tuple[str, ...] = argument("timm models to list besides", default=(), metavar="NAME")
    img_size: int | tuple[int, int] | None = option(
        None, "side, or height and width, in pixels; by default each model's own", at_least=1
    )
    json: bool = option(False, "print JSON instead of the table")
    csv: str | None = option(None, "write the table to this file as well", metavar="FILE", writes=())
