"""A frozen dataclass becomes the settings of a command: its flags, the keys of its YAML file, keywords in Python.

    @dataclass(frozen=True, kw_only=True)
    class TrainConfig(Settings):
        "Train a model on labelled images."

        data: str = argument("a folder with train/ and val/, or a name such as digits")
        batch_size: int = option(64, "images per step", short="b", at_least=1)
        lr: float = option(5e-4, "peak learning rate", above=0)
        min_lr: float = option(1e-5, "learning rate at the end", at_least=0, at_most="lr")
        amp: bool = option(True, "half precision")
        amp_dtype: Literal["bfloat16", "float16"] = option("bfloat16", "type of half precision", needs="amp")

    config = configure(TrainConfig, data="digits", batch_size=128, amp=False)
    assert config.given == {"data", "batch_size", "amp"}

`flags.parse` makes the same of the words `digits -b 128 --no-amp`.

A field is a str, int, float or bool, a `Literal` of strings, a tuple of these (`tuple[str, ...]`, `tuple[int, int]`),
or a union of such types and None. Its rule stands beside it. One error tells all the rules that are broken.
"""

import dataclasses
import difflib
import functools
import glob
import math
import operator
import os
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, TypeVar, Unpack, get_args, get_origin

import yaml

from t2t_vit.errors import UserError, abbreviate, closest

Config = TypeVar("Config", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a command.

    Attributes:
        given: the names of the settings that the user gave, in Python, in a YAML file or on the command line.
        essential: the flags that the help shows; the rest is for `--help-all`. Empty where it shows all.
    """

    essential: ClassVar[frozenset[str]] = frozenset()
    if TYPE_CHECKING:
        given: frozenset[str] = frozenset()
    else:
        # No field, so that `asdict` leaves it out; `dataclasses.replace` keeps it all the same.
        given: InitVar[frozenset[str]] = frozenset()

        def __post_init__(self, given):
            object.__setattr__(self, "given", given)

    @classmethod
    def defaults_for(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values that replace the fields' defaults, depending on what the user gave."""
        return {}

    def contradictions(self) -> Iterable[str]:
        """A sentence for every problem that no field's rule covers."""
        return ()

    @functools.cached_property  # defaults may follow from a file
    def changed(self) -> set[str]:
        """The names of the settings that the user gave a value other than the default."""
        given = {name: getattr(self, name) for name in self.given}
        usual = _usual(type(self), given)
        return {name for name, value in given.items() if value not in (None, usual.get(name))}


class Rule(TypedDict, total=False):
    """What a value must be, and when it has an effect. None is always allowed.

    Attributes:
        at_least, above, at_most, below: bounds of a number, or of each number of a tuple; a number or the name of
            another setting.
        ascending: the numbers of a tuple must not fall.
        writes: the value is a file to be written, with one of these endings; () allows any.
        needs: what must be switched on for an effect: "teacher", "mixup or cutmix", "mixup and cutmix".
        unless: what must be switched off for an effect: "crop_padding", "freeze_backbone or layer_decay".
        exists: the value is a file or a folder, or one of these names; a name that ends in / stands for all that begin
            so, and * for patterns that some file fits. `refuse_missing` checks it.
    """

    at_least: float | str
    above: float | str
    at_most: float | str
    below: float | str
    ascending: bool
    writes: tuple[str, ...]
    needs: str
    unless: str
    exists: Collection[str]


URLS = ("http://", "https://")
"""What `exists` allows where an address may stand for a path."""
ARGUMENTS = "Arguments"
RELATIONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def option(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    choices: Iterable[str] = (),
    metavar: str | None = None,
    heading: str | None = None,
    commas: bool = False,
    **rule: Unpack[Rule],
) -> Any:
    """A dataclass field that is a flag: `batch_size` is `--batch-size`.

    Args:
        default: the value without the flag; `...` makes the flag required.
        help: what it does: lower case, no full stop. An unknown flag is answered with the flag whose help has its
            words, so use the words that people know.
        short: the letter of the short form.
        choices: the allowed values, if the type is no `Literal`.
        metavar: the placeholder of the value in the help; by default N for a whole number, X for a number.
        heading: the help's heading over this flag and the next ones.
        commas: whether commas may stand between words, instead of spaces.
        rule: a `Rule`.
    """
    about = {"help": help, "short": short, "choices": tuple(choices), "metavar": metavar, "heading": heading}
    return _field(default, {**about, "commas": commas, "rule": rule})


def argument(help: str, *, default: Any = ..., metavar: str | None = None, **rule: Unpack[Rule]) -> Any:
    """A dataclass field that the command line gives by its place; required unless it has a default."""
    return _field(default, {"help": help, "metavar": metavar, "heading": ARGUMENTS, "rule": rule})


def _field(default: Any, about: dict[str, Any]) -> Any:
    return dataclasses.field(metadata=about, **({} if default is ... else {"default": default}))


def configure(cls: type[Config], /, **given: Any) -> Config:
    """The settings of a command as its flags would make them, with the recipe's values.

    Args:
        cls: the class of the settings.
        given: values by name; the others are defaults.

    Raises:
        UserError: settings are unknown, missing, or break a rule; one message has them all.
    """
    return build(cls, given, sources={name: name for name in given})


def build(cls: type[Config], given: Mapping[str, Any], *, sources: Mapping[str, str], advice: str = "") -> Config:
    """`configure` for values that may be words.

    Args:
        cls: the class of the settings.
        given: values by name.
        sources: their names in messages, such as "--lr" or "lr in run.yaml".
        advice: what to do if a setting is missing.
    """
    options = options_of(cls)
    typed, wrong = _read_values(options, given, sources)
    usual = _usual(cls, typed)
    values = {**usual, **typed}
    missing = [name for name in options if name not in values and name not in wrong]
    wrong |= {name: f"Missing {options[name].flag}: {options[name].help}." for name in missing}

    known = {name: value for name, value in values.items() if name not in wrong}  # nobody is held to a wrong value
    for name, value in known.items():
        option, source = options[name], sources.get(name, options[name].flag)
        if why := _without_effect(option, options, known, typed):
            if name in typed and value not in (None, usual.get(name)):
                wrong[name] = f"{source} has no effect {why}."
        elif rule := option.broken_rule(value, known):
            wrong[name] = f"{source} must be {rule}, got {in_words(value)}{'' if name in typed else ' by default'}."
    _refuse([*wrong.values(), *([advice] if missing and advice else [])])
    config = cls(**values, given=frozenset(typed))
    _refuse(config.contradictions())
    return config


def refuse_missing(config: Settings) -> None:
    """Refuses settings that were given and name files that do not exist, before anything is imported to read them.

    Raises:
        UserError: when there are some; all in one message.
    """
    problems = []
    for name, option in options_of(type(config)).items():
        value, names = getattr(config, name), option.rule.get("exists")
        if name not in config.given or value is None or names is None:
            continue
        if absent := [path for path in (value if isinstance(value, tuple) else [value]) if missing(path, names)]:
            near = difflib.get_close_matches(absent[0], [name for name in names if name.isalnum()], n=1)
            meant = f"Did you mean {near[0]}?" if near else f"Expected {option.help}."
            problems.append(f"{option.flag}: there is no file or folder {abbreviate(absent)}. {meant}")
    _refuse(problems)


def missing(path: str, names: Collection[str]) -> bool:
    """Whether a path exists neither as a file or a folder nor among these names, as `Rule` has them."""
    if path in names or path.startswith(tuple(name for name in names if name.endswith("/"))):
        return False
    full = os.path.expanduser(path)  # noqa: PTH111 (a name may be too long for a Path)
    fits = "*" in names and any(True for _ in glob.iglob(full, recursive=True))  # noqa: PTH207
    return not fits and not os.path.exists(full)  # noqa: PTH110


def _usual(cls: type[Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of settings that are not given."""
    defaults = {option.name: option.default for option in options_of(cls).values() if not option.required}
    return {**defaults, **cls.defaults_for(given)}


def read_settings(cls: type[Settings], path: Path) -> dict[str, Any]:
    """The typed values of a YAML file of settings, such as a run's own.

    Raises:
        UserError: the file cannot be read, or has unknown settings or wrong values; one message has them all.
    """
    typed, wrong = _read_values(options_of(cls), *read_yaml(path))
    _refuse(wrong.values())
    return typed


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a YAML file by the names of their settings, and their names in messages."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the settings file {path}: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no YAML file: {error}.") from None
    if not isinstance(content, dict | None):
        raise UserError(f"{path} must hold lines such as 'batch_size: 64', but holds {content!s:.60}.")
    named = {str(key).replace("-", "_"): (value, f"{key} in {path}") for key, value in (content or {}).items()}
    return {name: value for name, (value, _) in named.items()}, {name: source for name, (_, source) in named.items()}


def nearest(word: str, options: Mapping[str, "Option"]) -> str | None:
    """The setting that an unknown flag, key or keyword probably means, by its letters or its help."""
    name = word.lstrip("-").replace("-", "_").removeprefix("no_").lower()
    meant = set(name.split("_"))
    near = [
        *difflib.get_close_matches(name, options, n=1, cutoff=0.85),
        *(known for known in options if known.startswith(name)),
        *(known for known in options if meant <= set(re.findall(r"\w+", options[known].help.lower()))),
        *difflib.get_close_matches(name, options, n=1, cutoff=0.6),
    ]
    return near[0] if near else None


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of a class of settings: what `option` says of it, and its type.

    Attributes:
        kind: int, float, bool or str: the type of each item of a value.
        counts: how many items a value may have; infinity stands for any number.
        always_tuple: whether a single item is a tuple too.
        nullable: whether the value may be None.
    """

    name: str
    default: Any = None
    help: str
    short: str | None = None
    choices: tuple[str, ...] = ()
    metavar: str
    heading: str
    commas: bool = False
    rule: Rule = dataclasses.field(default_factory=Rule)
    kind: type = str
    counts: tuple[float, ...] = (1,)
    always_tuple: bool = False
    nullable: bool = False

    @property
    def is_argument(self) -> bool:
        return self.heading == ARGUMENTS

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def flag(self) -> str:
        return self.metavar if self.is_argument else _flag(self.name)

    @property
    def spellings(self) -> list[str]:
        """The ways to give the flag; an argument has none."""
        long = [self.flag, self.written(False)] if self.kind is bool else [self.flag]
        return [] if self.is_argument else [f"-{self.short}", *long] if self.short else long

    def read(self, value: Any, source: str) -> Any:
        """The typed value of words, of a YAML value or of a Python value.

        Raises:
            UserError: the value has another type, is none of the choices, or breaks a bound that is a number.
        """
        if self.nullable and value in (None, "none", "auto"):
            return None
        items = value if isinstance(value, list | tuple) else [value]
        if self.commas:
            items = [word for item in items for word in str(item).split(",") if word]
        try:
            typed = tuple(_read_item(item, self.kind) for item in items)
        except ValueError:
            typed = None
        if typed is None or not {len(items), math.inf} & {*self.counts}:
            got = repr(value) if len(items) == 1 else f"{len(items)} values: {in_words(items)}"
            raise UserError(f"{source}: expected {self.expected}, got {got}.")
        for item in typed:
            if self.choices and item not in self.choices:
                raise UserError(closest(item, self.choices, f"value of {source}:"))
        result = typed if self.always_tuple or len(typed) != 1 else typed[0]
        if rule := self.broken_rule(result, {}):
            raise UserError(f"{source} must be {rule}, got {in_words(result)}.")
        return result

    @property
    def expected(self) -> str:
        """The type as a user reads it: "1 or 2 whole numbers or none"."""
        if self.kind is bool:
            return "true or false"
        noun = {int: "whole number", float: "number", str: "word"}[self.kind]
        counts = "" if math.inf in self.counts else " or ".join(map(str, self.counts)) + " "
        return (f"a {noun}" if self.counts == (1,) else f"{counts}{noun}s") + " or none" * self.nullable

    def written(self, value: Any) -> str:
        """The words that give the setting this value on a command line: "--lr 0.1", "--no-amp"."""
        if isinstance(value, bool):
            return self.flag if value else self.flag.replace("--", "--no-", 1)
        return f"{self.flag} {in_words(value)}"

    def is_on(self, value: Any) -> bool:
        """Whether the value switches something on. A switch that is left open may be on."""
        return self.kind is bool if value is None else value not in (False, (), "no")

    def broken_rule(self, value: Any, known: Mapping[str, Any]) -> str | None:
        """What the value must be, in words, if it is not that. A bound that is a setting counts if that is known."""
        if value is None:
            return None
        items = value if isinstance(value, tuple) else (value,)
        parts: list[tuple[str, bool]] = []
        for name, relation in RELATIONS.items():
            bound: Any = self.rule.get(name)
            limit = known.get(bound) if isinstance(bound, str) else bound
            if limit is not None:
                limit_in_words = f"{_flag(bound)} {limit}" if isinstance(bound, str) else str(limit)
                holds = all(relation(item, limit) for item in items)
                parts.append((f"{name.replace('_', ' ')} {limit_in_words}", holds))
        if self.rule.get("ascending"):
            parts.append(("the smaller one first", list(items) == sorted(items)))
        if (endings := self.rule.get("writes")) is not None:
            path = Path(value)
            can_be_written = not path.is_dir() and os.access(path.parent, os.W_OK)
            kind = f"a {' or '.join(endings)} file" if endings else "a file"
            parts.append(
                (f"{kind} in a folder that is there", can_be_written and path.suffix in (endings or path.suffix))
            )
        return None if all(holds for _, holds in parts) else " and ".join(words for words, _ in parts)


def options_of(cls: type[Settings]) -> dict[str, Option]:
    """The fields of a class of settings, by name."""
    hints = typing.get_type_hints(cls)
    options: dict[str, Option] = {}
    heading = "Options"
    for field in dataclasses.fields(cls):
        about, shape = dict(field.metadata), _type_of(hints[field.name])
        heading = about["heading"] or (heading if heading != ARGUMENTS else "Options")
        metavar = {int: "N", float: "X"}.get(shape["kind"], field.name.split("_")[-1].upper())
        about |= {
            "heading": heading,
            "metavar": about["metavar"] or metavar,
            "choices": about.get("choices") or shape.pop("choices"),
        }
        options[field.name] = Option(name=field.name, default=field.default, **{**shape, **about})
    return options


def _read_values(
    options: Mapping[str, Option], given: Mapping[str, Any], sources: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The typed values, and a sentence for each unknown setting and wrong value."""
    typed, wrong = {}, {}
    for name, value in given.items():
        if name in options:
            try:
                typed[name] = options[name].read(value, sources[name])
            except UserError as error:
                wrong[name] = str(error)
        else:
            near = nearest(name, options)
            advice = f"Did you mean {near}?" if near else f"Known: {abbreviate(options, limit=10)}."
            wrong[name] = f"Unknown setting {sources[name]}. {advice}"
    return typed, wrong


def _without_effect(
    option: Option, options: Mapping[str, Option], known: Mapping[str, Any], given: Collection[str]
) -> str | None:
    """The settings, in words, whose presence or absence leaves this one without effect; unknown ones do not count."""
    if needs := option.rule.get("needs"):
        all_or_any, word = (all, " and ") if " and " in needs else (any, " or ")
        names = needs.split(word)
        if not all_or_any(name not in known or options[name].is_on(known[name]) for name in names):
            if len(names) == 1 and needs in given:
                return f"beside {options[needs].written(known[needs])}"
            return f"without {word.join(options[name].flag for name in names)}"
    for name in option.rule.get("unless", "").split(" or "):
        if name in known and options[name].is_on(known[name]):
            return f"beside {options[name].written(known[name])}"
    return None


def _refuse(problems: Iterable[str]) -> None:
    if sentences := list(problems):
        raise UserError(" ".join(sentences))


# Types and values


def _type_of(hint: Any) -> dict[str, Any]:
    """What `Option` tells of a type: a str, int, float, bool or `Literal`, tuples of it, None, or a union of these."""
    members = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    shapes = [member for member in members if member is not types.NoneType]
    parts = [get_args(shape) if get_origin(shape) is tuple else (shape,) for shape in shapes]
    item = parts[0][0]
    return {
        "kind": str if get_origin(item) is Literal else item,
        "choices": get_args(item),
        "counts": tuple(math.inf if ... in part else len(part) for part in parts),
        "always_tuple": all(get_origin(shape) is tuple for shape in shapes),
        "nullable": types.NoneType in members,
    }


def _read_item(value: Any, kind: type) -> Any:
    """A word or a value as its type has it, or a ValueError."""
    if kind in (int, float):
        # A file's words may be numbers too: YAML reads 1e-3, which has no point, as a word.
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number: float = float(value) if kind is float else int(str(value))
        if not math.isfinite(number):
            raise ValueError
        return number
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, kind):
        raise ValueError
    return value


def in_words(value: Any) -> str:
    """A value as it is written on a command line."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "none" if value is None else str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
