"""The flags of the official code's main.py and transfer_learning.py, and what to give instead.

The table answers an unknown flag and fills the list in docs/from-the-official-code.md.
"""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class OldFlag:
    """One or several flags of the official code, with one answer.

    Attributes:
        names: their spellings there.
        here: the flag, command or argument to give instead; empty if there is none.
        note: how the meaning differs or, if there is nothing instead, why.
    """

    names: tuple[str, ...]
    here: str
    note: str


UNCHANGED = (
    "-c", "--config", "--crop-pct", "--opt", "--momentum", "--weight-decay", "--clip-grad", "--warmup-lr",
    "--min-lr", "--warmup-epochs", "--scale", "--ratio", "--hflip", "--vflip", "--aa", "--reprob", "--mixup",
    "--cutmix", "--mixup-switch-prob", "--mixup-off-epoch", "--smoothing", "--drop", "--drop-path",
    "--model-ema-decay", "--pretrained", "--seed", "-j", "--workers", "--channels-last",
)  # fmt: skip
"""Flags that mean here what they mean there."""

_ROWS = (
    ("--model", "--model", "T2t_vit_14 is understood too"),
    ("--initial-checkpoint", "--checkpoint", ""),
    ("-r --resume", "--resume", "without a path: it continues the run in --output"),
    ("--eval_checkpoint", "t2t-vit eval --checkpoint", ""),
    ("--no-resume-opt", "--checkpoint", "starts a new run from these weights"),
    ("--num-classes", "", "the data tells how many classes there are"),
    ("--gp", "", "the head sees the class token"),
    ("--img-size", "--img-size", "two numbers make a rectangle"),
    ("--mean --std", "", "the model and its checkpoint tell how images are normalised"),
    ("--interpolation", "", "the model and its checkpoint tell how images are resized"),
    ("-b --batch-size", "--batch-size", "images over all processes, there for each: -b 64 on 8 GPUs is -b 512"),
    ("-vb --validation-batch-size-multiplier", "", "validation takes batches of the same size"),
    ("--opt-eps --opt-betas", "", "the optimiser's defaults in timm hold"),
    ("--sched --decay-epochs --patience-epochs --decay-rate --dr", "", "the schedule is a cosine"),
    ("--lr", "--lr", "taken as given; the recipe's own follows the batch size"),
    ("--lr-noise --lr-noise-pct --lr-noise-std", "", "the schedule has no noise"),
    ("--lr-cycle-mul --lr-cycle-limit", "", "the schedule has one cycle"),
    ("--epochs", "--epochs", "all of them, there without the 10 of the cool-down: 300 there is 310 here"),
    ("--start-epoch", "--resume", "the run knows its epoch"),
    ("--cooldown-epochs", "--cooldown-epochs", "part of --epochs"),
    ("--no-aug", "", "each augmentation is switched off by its own flag"),
    ("--color-jitter", "--color-jitter", "of no effect beside --aa, there too"),
    ("--aug-splits --jsd --resplit", "", "a batch is not split into clean and augmented images"),
    ("--remode", "", "random erasing fills in random pixels"),
    ("--recount", "", "random erasing erases one rectangle"),
    ("--cutmix-minmax", "", "the size of the patch follows --cutmix"),
    ("--mixup-prob", "", "every batch is mixed"),
    ("--mixup-mode", "", "a batch is mixed as a whole"),
    ("--train-interpolation", "", "training images are resized bilinearly or bicubically, at random"),
    ("--drop-connect", "--drop-path", ""),
    ("--drop-block", "", "T2T-ViT has no convolutions whose maps could lose blocks"),
    ("--bn-tf --bn-momentum --bn-eps --sync-bn --dist-bn --split-bn", "", "T2T-ViT has no batch norm"),
    ("--model-ema", "--model-ema", "--no-model-ema switches it off"),
    ("--model-ema-force-cpu", "", "the average is where the model is"),
    ("--log-interval", "", "the progress bar shows every step"),
    ("--recovery-interval", "--checkpoint-every", ""),
    ("--num-gpu", "torchrun --nproc-per-node", ""),
    ("--save-images", "", "batches of images are not saved"),
    ("--amp", "--amp", "bfloat16, and without the flag on where the hardware has it; --no-amp switches it off"),
    ("--apex-amp", "--amp", ""),
    ("--native-amp", "--amp", "--amp-dtype float16 is what it meant there"),
    ("--pin-mem", "", "memory is pinned wherever a GPU trains"),
    ("--no-prefetcher", "", "there is no prefetcher to switch off"),
    ("--output", "--output", "the folder of the run, there the folder of all runs"),
    ("--eval-metric", "", "best.pt is the epoch of the highest top-1"),
    ("--tta", "", "an image is evaluated once"),
    ("--local_rank", "", "torchrun tells each process its rank without a flag"),
    ("--use-multi-epochs-loader", "", "workers always live on from epoch to epoch"),
    # transfer_learning.py, where it differs
    ("--wd", "--weight-decay", ""),
    ("--dataset", "the argument DATA", "t2t-vit transfer cifar10"),
    ("--b", "--batch-size", ""),
    ("--transfer-learning", "t2t-vit transfer", "the command, without a value"),
    ("--transfer-model", "--checkpoint", ""),
    ("--transfer-ratio", "--backbone-lr-scale", ""),
)
FLAGS = tuple(OldFlag(tuple(names.split()), here, note) for names, here, note in _ROWS)

_BY_NAME = {name.replace("_", "-"): flag for flag in FLAGS for name in flag.names}


def advise(name: str, known: Collection[str]) -> str | None:
    """What to give instead of an unknown flag; None if it is not the official code's.

    Args:
        known: the flags that the command has.
    """
    flag = _BY_NAME.get(name.replace("_", "-"))
    if flag is None:
        return None
    if not flag.here:
        return f"The official code's {name} has no counterpart here: {flag.note}."
    if flag.here.startswith("--") and flag.here not in known:
        return None  # it is another command's
    return f"The official code's {name} is {flag.here} here."
