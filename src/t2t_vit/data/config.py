"""Settings of the commands that look after data."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from t2t_vit.options import Settings, argument, option
from t2t_vit.runtime.durations import wrong_duration

SOURCES = {
    "digits": "t2t_vit.data.digits:digits_splits",
    "formulas": "t2t_vit.data.formula_sets:formula_splits",
    "cifar10": "t2t_vit.data.cifar:cifar_splits",
    "cifar100": "t2t_vit.data.cifar:cifar_splits",
    "wds/": "t2t_vit.data.shards:shard_splits",
    "hfds/": "t2t_vit.data.huggingface:hugging_face_splits",
    "tfds/": "t2t_vit.data.sources:refuse_stream",
    "hfids/": "t2t_vit.data.sources:refuse_stream",
}
"""The name of the data, or how that begins, to the function that finds the splits. All else is a folder or a tar."""

DATA_HELP = (
    "a folder with train/ and val/ (and test/), or only class folders; a .tar of one, digits, formulas, cifar10, "
    "cifar100, wds/FOLDER or hfds/NAME"
)
DATA_DIR_HELP = "folder of cifar10 and cifar100, by default data; cache of hfds/NAME"
IN_CHANS_HELP = "channels of the images: 3 colour, 1 grey; any other number reads .npy, .npz and TIFF files of so many"
BACKGROUND_HELP = "colour behind transparent pixels: a name or #rrggbb"
GROUP_BY_HELP = (
    "regular expression that finds, in the path of an image below DATA, the group that stays on one side of the split: "
    "a video, a patient, a day"
)
EXCLUDE_HELP = "list of images to leave out: suspects.csv of t2t-vit data, or a path below DATA on each line"
VAL_FRACTION_HELP = "share of the images kept for validation where the data has no val/"


class DataSettings(Protocol):
    """The settings that say which images a command works on, and how they are read and split."""

    @property
    def data(self) -> str: ...
    @property
    def data_dir(self) -> str | None: ...
    @property
    def val_fraction(self) -> float: ...
    @property
    def group_by(self) -> str | None: ...
    @property
    def exclude(self) -> str | None: ...
    @property
    def in_chans(self) -> int: ...
    @property
    def background(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class PrepareImagenetConfig(Settings):
    """Make the ImageNet folders, train/ and val/ by synset, from the three published archives."""

    train_tar: str = option(..., "ILSVRC2012_img_train.tar, a tar of 1,000 tars", metavar="TAR")
    val_tar: str = option(..., "ILSVRC2012_img_val.tar", metavar="TAR")
    devkit: str = option(..., "ILSVRC2012_devkit_t12.tar.gz: the classes, and those of the val images", metavar="TAR")
    output: str = option(..., "folder to fill; a run that was stopped there is continued", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Look at labelled images before training: classes, sizes, whether labels agree, and which images look wrong."""

    data: str = argument("what to train on, as for train", exists=SOURCES)
    data_dir: str | None = option(None, DATA_DIR_HELP, metavar="DIR")
    val_fraction: float = option(0.2, VAL_FRACTION_HELP, above=0, below=1)
    group_by: str | None = option(None, GROUP_BY_HELP, metavar="REGEX")
    exclude: str | None = option(None, EXCLUDE_HELP, metavar="FILE", exists=())
    in_chans: int = option(3, IN_CHANS_HELP, at_least=1)
    background: str = option("white", BACKGROUND_HELP, metavar="COLOUR")
    max_time: str = option("60s", "time to look at images for; what follows takes a minute at most", metavar="TIME")
    output: str | None = option(None, "folder for suspects.csv and its page; by default runs/DATA-data", metavar="DIR")
    show: str | None = option(
        None,
        "picture to write, with images of up to 24 classes in rows, instead of the report",
        metavar="FILE.png",
        writes=(".png",),
        unless="verify or json or output",
    )
    verify: bool = option(False, "decode every image and list those that cannot be read; any makes the exit code 2")
    workers: int | None = option(
        None, "processes that decode; by default one a core", short="j", at_least=0, needs="verify"
    )
    json: bool = option(False, "print JSON instead of the report")

    def contradictions(self) -> Iterable[str]:
        """A time limit that is none."""
        yield from wrong_duration("--max-time", self.max_time)
