"""The command line. `COMMANDS` names each command's config class and function and imports neither.

So `t2t-vit --help` imports no torch, and `t2t-vit train --help` only the module of its config.
"""

import io
import os
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from t2t_vit import __version__
from t2t_vit.errors import UserError, closest
from t2t_vit.runtime.memory import keep_freed_memory


@dataclass(frozen=True)
class Command:
    """One command of `t2t-vit`.

    Attributes:
        config: "module:class" of its settings; the module must not import torch.
        run: "module:function" that takes the settings and returns None or an exit code.
        example: words after `t2t-vit` that a user can paste.
    """

    config: str
    run: str
    summary: str
    example: str


COMMANDS = {
    "train": Command(
        "t2t_vit.training.config:TrainConfig",
        "t2t_vit.training.train:train_command",
        "train a model on a folder of images, ImageNet, CIFAR or digits",
        "train digits --model t2t_vit_7 --output runs/digits",
    ),
    "transfer": Command(
        "t2t_vit.training.config:TransferConfig",
        "t2t_vit.training.train:train_command",
        "train a checkpoint on other classes",
        "transfer cifar10 --model t2t_vit_14 --checkpoint 81.5_T2T_ViT_14.pth.tar",
    ),
    "pretrain": Command(
        "t2t_vit.training.config:PretrainConfig",
        "t2t_vit.training.train:train_command",
        "train a model on images drawn from formulas, for others to start from",
        "pretrain --max-time 2h --output runs/formulas",
    ),
    "eval": Command(
        "t2t_vit.inference.config:EvalConfig",
        "t2t_vit.inference.evaluate:evaluate_command",
        "accuracy of a checkpoint on labelled images",
        "eval digits --checkpoint runs/digits/best.pt",
    ),
    "predict": Command(
        "t2t_vit.deploy.config:PredictConfig",
        "t2t_vit.deploy.predict:predict",
        "labels of images, with their probabilities",
        "predict cat.jpg dog.jpg --checkpoint runs/pets/best.pt",
    ),
    "export": Command(
        "t2t_vit.deploy.config:ExportConfig",
        "t2t_vit.deploy.export:export",
        "write a network for other programs: ONNX, OpenVINO, safetensors",
        "export --checkpoint runs/pets --format onnx --output pets-onnx",
    ),
    "serve": Command(
        "t2t_vit.deploy.config:ServeConfig",
        "t2t_vit.deploy.serve:serve",
        "answer images over HTTP, with a page to try it",
        "serve --checkpoint runs/pets",
    ),
    "visualize": Command(
        "t2t_vit.insight.config:VisualizeConfig",
        "t2t_vit.pictures.visualize:visualize",
        "what networks see in images, as pictures and numbers",
        "visualize cat.jpg --checkpoint runs/pets/best.pt",
    ),
    "compare": Command(
        "t2t_vit.experiments.config:CompareConfig",
        "t2t_vit.experiments.compare:compare",
        "what models cost and, given data, how well each learns it",
        "compare digits --models t2t_vit_7 t2t_vit_7_no_t2t",
    ),
    "benchmark": Command(
        "t2t_vit.speed.config:BenchmarkConfig",
        "t2t_vit.speed.benchmark:benchmark",
        "speed and memory of models, side by side",
        "benchmark t2t_vit_14 vit_small_patch16_224 --mode infer train --precision amp_bfloat16",
    ),
    "data": Command(
        "t2t_vit.data.config:DataConfig",
        "t2t_vit.pictures.inspection:data_command",
        "look at labelled images before training",
        "data digits --verify",
    ),
    "report": Command(
        "t2t_vit.training.config:ReportConfig",
        "t2t_vit.training.hindsight:report_command",
        "the report of a run, finished or not",
        "report runs/digits-t2t_vit_7",
    ),
    "prepare-imagenet": Command(
        "t2t_vit.data.config:PrepareImagenetConfig",
        "t2t_vit.data.imagenet:prepare_imagenet",
        "the ImageNet folders, from the three published archives",
        "prepare-imagenet --train-tar ILSVRC2012_img_train.tar --val-tar ILSVRC2012_img_val.tar "
        "--devkit ILSVRC2012_devkit_t12.tar.gz --output imagenet",
    ),
    "models": Command(
        "t2t_vit.insight.config:ModelsConfig",
        "t2t_vit.insight.complexity:models",
        "the table of models",
        "models",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. An error that is ours passes through.

    0: done. 2: the user's mistake, told in one line. 130: Ctrl-C, and 141: the reader of the output has gone; both
    are silent, as in the shell's own tools.

    Args:
        argv: the words after `t2t-vit`; by default those of this process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names need not be valid text
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()  # here a broken pipe is caught; when Python shuts down it is not
        return code
    except UserError as error:
        # Several processes on a machine all find the same mistake: only the first tells it.
        if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
            print("t2t-vit: error:", *str(error).splitlines(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python flushes standard output once more when it ends, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(argv: Sequence[str]) -> int:
    name, *words = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"t2t-vit {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"{closest(name, COMMANDS, 'command')} See t2t-vit --help.")

    # Before torch starts its threads. By default they spin for long while they wait for one another, and where loader
    # workers or other programs share the cores, training slows down several times (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    keep_freed_memory()

    # here, so that `t2t-vit --help` does not wait for YAML
    from t2t_vit import old_flags
    from t2t_vit.flags import parse
    from t2t_vit.options import refuse_missing

    command = COMMANDS[name]
    config = parse(
        pkgutil.resolve_name(command.config),
        words,
        prog=f"t2t-vit {name}",
        epilog=f"Example: t2t-vit {command.example}",
        advise=old_flags.advise,
    )
    if not getattr(config, "show", False):  # which opens nothing
        refuse_missing(config)
    return pkgutil.resolve_name(command.run)(config) or 0


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items())
    return f"""usage: t2t-vit COMMAND ... | --help | --version

Tokens-to-Token ViT: train it, compare it, use it.

{commands}

t2t-vit COMMAND --help shows the flags of one. Try: t2t-vit {COMMANDS["train"].example}"""
