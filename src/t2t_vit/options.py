"""A frozen dataclass becomes the flags of a command and the keys of its YAML file.

    @dataclass(frozen=True, kw_only=True)
    class TrainConfig:
        "Train a model from scratch."

        data: str = argument("a folder with train/ and val/, or a name such as digits")
        batch_size: int = option(64, "images per step", short="b", group="Schedule")
        img_size: int | tuple[int, int] | None = option(None, "side, or height and width, in pixels")
        amp: bool = option(True, "half precision where the machine has it")

    config = parse(TrainConfig, ["digits", "-b", "128", "--no-amp"], prog="t2t-vit train")

A field is a str, int, float or bool, a `Literal` of strings, a tuple of these (`tuple[str, ...]`, `tuple[int, int]`),
or a union of such types and None, which is written "none". Three sources fill it, the later ones winning: its default
(or what the class method `defaults_for(given)` returns, by which a recipe fills what the user left open), the YAML
file of `-c`, and the command line.
"""

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from t2t_vit.errors import UserError, closest

Config = TypeVar("Config")
Advise = Callable[[str, Collection[str]], str | None]
"""What to give instead of an unknown flag, in a sentence, of the flags that there are; None for no idea."""


def option(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    choices: Iterable[str] = (),
    metavar: str | None = None,
    group: str = "Options",
) -> Any:
    """A dataclass field that is a flag: `batch_size` is `--batch-size`.

    Args:
        default: the value without the flag; `...` when the flag is required.
        help: what it does: lower case, no full stop. An unknown flag whose words stand in this text is answered with
            this one, so use the words that people know.
        short: the letter of the short form.
        choices: the values that are allowed, where the type is no `Literal`.
        metavar: what stands for the value in the help.
        group: the heading under which the help lists it.
    """
    about = {"help": help, "short": short, "choices": tuple(choices), "metavar": metavar, "group": group}
    return dataclasses.field(metadata=about, **({} if default is ... else {"default": default}))


def argument(help: str, *, default: Any = ..., metavar: str | None = None) -> Any:
    """A dataclass field that the command line gives by its place; required unless it has a default."""
    about = {"help": help, "short": None, "choices": (), "metavar": metavar, "group": None}
    return dataclasses.field(metadata=about, **({} if default is ... else {"default": default}))


def parse(
    cls: type[Config], argv: Sequence[str], *, prog: str, epilog: str = "", advise: Advise = lambda flag, known: None
) -> Config:
    """The config that the command line and its YAML file ask for.

    Args:
        cls: a keyword-only dataclass of `option` and `argument` fields; its docstring opens the help. Its class method
            `defaults_for(given: dict[str, Any]) -> dict[str, Any]`, if any, gets what the user set and returns values
            for other fields; of nothing, those that the help shows.
        argv: the words after the command.
        prog: the command, as the help shows it.
        epilog: the last lines of the help.
        advise: knows the flags of other programs; asked before the closest one here is named.

    Raises:
        UserError: unknown flags or keys, values of a wrong type, or missing ones; all of a kind in one message.
        SystemExit: `-h` or `--help` was given, and the help is printed.
    """
    settings = _settings_of(cls)
    parser = _build_parser(settings.values(), prog=prog)
    namespace, others = parser.parse_known_args(argv)
    words = vars(namespace)
    fill: Callable[[dict[str, Any]], dict[str, Any]] = getattr(cls, "defaults_for", lambda given: {})
    if words.pop("help", False):
        usual = fill({})
        shown = [dataclasses.replace(s, default=usual.get(s.name, s.default)) for s in settings.values()]
        parser = _build_parser(shown, prog=prog)
        _add_text(parser, shown, description=inspect.cleandoc(cls.__doc__ or ""), epilog=epilog)
        print(parser.format_help(), end="", flush=True)
        raise SystemExit(0)
    _refuse([_unknown_flag(word, settings.values(), prog, advise) for word in others if word.startswith("-")])
    path = words.pop("config", None)
    leftover = _give_places(words, others, settings.values())
    _refuse([_unexpected(leftover, argv, settings.values(), prog)] if leftover else [])
    problems: list[str] = []
    given = _read_yaml(path, settings, problems) if path else {}
    for name, word in words.items():
        settings[name].read_into(given, word, settings[name].spelling, problems)
    _refuse(problems)

    values = fill(given) | given
    missing = [setting for setting in settings.values() if setting.required and setting.name not in values]
    sentences = [f"Missing {setting.spelling}: {setting.help}." for setting in missing]
    _refuse([*sentences, f"See {prog} --help."] if sentences else [])
    return cls(**values)


def read_settings(cls: type, path: Path) -> dict[str, Any]:
    """The typed values of a YAML file of settings, such as a run's own.

    Raises:
        UserError: the file cannot be read, or holds what is no setting or no value of it; all in one message.
    """
    problems: list[str] = []
    values = _read_yaml(str(path), _settings_of(cls), problems)
    _refuse(problems)
    return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Setting:
    """One field of a config class."""

    name: str
    hint: Any
    default: Any
    help: str
    short: str | None
    choices: tuple[str, ...]
    metavar: str
    group: str | None  # None: given by its place

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def spelling(self) -> str:
        return "--" + self.name.replace("_", "-") if self.group else self.metavar

    @property
    def max_words(self) -> float:
        """How many words a value may have."""
        tuples = [typing.get_args(member) for member in _members(self.hint) if typing.get_origin(member) is tuple]
        return max((math.inf if ... in parts else len(parts) for parts in tuples), default=1)

    def read_into(self, given: dict[str, Any], value: Any, source: str, problems: list[str]) -> None:
        """Puts the typed value of words from the command line, or of a YAML value, into `given`."""
        try:
            typed = _convert(value, self.hint)
        except ValueError:
            problems.append(f"{source}: expected {_in_words(self.hint)}, got {value!r}.")
            return
        items = typed if isinstance(typed, tuple) else (typed,)
        strangers = [item for item in items if self.choices and item is not None and item not in self.choices]
        problems += [closest(item, self.choices, f"value of {source}:") for item in strangers]
        given[self.name] = typed


def _settings_of(cls: type) -> dict[str, _Setting]:
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    settings = {}
    for field in dataclasses.fields(cls):
        hint, about = hints[field.name], dict(field.metadata)
        about["choices"] = about["choices"] or _literals(hint)
        short_metavar = {int: "N", float: "X"}.get(_kind(hint), field.name.split("_")[-1].upper())
        about["metavar"] = about["metavar"] or short_metavar
        settings[field.name] = _Setting(name=field.name, hint=hint, default=field.default, **about)
    return settings


# From words to values


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _kind(hint: Any) -> type:
    """int, float, bool or str: what each word of a value is."""
    if hint in (int, float, bool):
        return hint
    return next((kind for kind in map(_kind, typing.get_args(hint)) if kind is not str), str)


def _literals(hint: Any) -> tuple[str, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return tuple(word for part in typing.get_args(hint) for word in _literals(part))


def _convert(value: Any, hint: Any) -> Any:
    """The value as the type asks for it, or a ValueError; choices are the caller's to check."""
    members = _members(hint)
    if types.NoneType in members and value in (None, "none"):
        return None
    if len(members) > 1:
        for member in members:
            with contextlib.suppress(ValueError):
                return _convert(value, member)
        raise ValueError
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        items = value if isinstance(value, list) else [value]
        if ... not in parts and len(items) != len(parts):
            raise ValueError
        return tuple(_convert(item, parts[0]) for item in items)
    if hint in (int, float):
        # Numbers are read from words in a file too: YAML takes 1e-3, which has no point, for a word.
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = hint(value) if hint is float else int(str(value))
        if not math.isfinite(number):
            raise ValueError
        return number
    if hint is types.NoneType or not isinstance(value, bool if hint is bool else str):
        raise ValueError
    return value


def _in_words(hint: Any) -> str:
    """The type as a user reads it: "a whole number or 2 whole numbers"."""
    names = {int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "none"}
    words = []
    for member in _members(hint):
        parts = typing.get_args(member)
        if typing.get_origin(member) is tuple:
            item = names.get(parts[0], "a word").removeprefix("a ")
            words.append(f"{item}s" if ... in parts else f"{len(parts)} {item}s")
        else:
            words.append(names.get(member, "a word"))
    return " or ".join(words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _give_places(words: dict[str, Any], others: Sequence[str], settings: Iterable[_Setting]) -> list[str]:
    """Hands the words that follow no flag to the arguments, in their order; returns those that are too many.

    argparse gives a flag that takes several words all that follow it. Of `--img-size 64 digits` this returns `digits`
    to the arguments, since it is no number.
    """
    places = list(others)
    for setting in settings:
        if setting.name in words and setting.max_words > 1:
            taken = words[setting.name]
            words_fit = _kind(setting.hint) is str
            count = 1
            while count < min(len(taken), setting.max_words) and (words_fit or _is_number(taken[count])):
                count += 1
            words[setting.name] = taken[:count] if count > 1 else taken[0]
            places += taken[count:]
    for setting in settings:
        if not setting.group and places:
            count = int(min(setting.max_words, len(places)))
            words[setting.name] = places[:count] if setting.max_words > 1 else places[0]
            places = places[count:]
    return places


def _unexpected(words: Sequence[str], argv: Sequence[str], settings: Iterable[_Setting], prog: str) -> str:
    """The sentence for words that have no place; they may be meant for a flag that takes none."""
    before = argv[argv.index(words[0]) - 1]
    for setting in settings:
        if setting.spelling == before and _kind(setting.hint) is bool:
            return f"{before} takes no value, got {words[0]!r}; it means: {setting.help}."
    return f"Unexpected {' '.join(words)!r}. See {prog} --help."


def _read_yaml(path: str, settings: Mapping[str, _Setting], problems: list[str]) -> dict[str, Any]:
    """The typed values of the file's keys, written with underscores or dashes."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the settings file {path}: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no YAML file: {error}.") from None
    if not isinstance(content, dict | None):
        raise UserError(f"{path} must hold lines such as 'batch_size: 64', but holds {content!s:.60}.")
    given: dict[str, Any] = {}
    for key, value in (content or {}).items():
        name = str(key).replace("-", "_")
        if name in settings:
            settings[name].read_into(given, value, f"{key} in {path}", problems)
        else:
            problems.append(closest(name, settings, f"key of {path}:"))
    return given


# Flags and their help


class _Parser(argparse.ArgumentParser):
    """A parser whose errors reach the user as everybody else's do."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}. See {self.prog} --help.")


def _build_parser(settings: Iterable[_Setting], *, prog: str) -> _Parser:
    """A parser of the flags alone. It leaves words as they are; its namespace holds what was given and nothing else."""
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
    )
    groups: dict[str, Any] = {}
    for setting in settings:
        if not setting.group:
            continue
        if setting.group not in groups:
            groups[setting.group] = parser.add_argument_group(setting.group)
        spellings = [f"-{setting.short}", setting.spelling] if setting.short else [setting.spelling]
        form: dict[str, Any] = {"metavar": setting.metavar, "nargs": "+" if setting.max_words > 1 else None}
        if _kind(setting.hint) is bool:
            form = {"action": argparse.BooleanOptionalAction}
        help_line = _help_line(setting).replace("%", "%%")
        groups[setting.group].add_argument(*spellings, dest=setting.name, help=help_line, **form)
    general = parser.add_argument_group("General")
    general.add_argument("-c", "--config", metavar="FILE", help="YAML file that sets flags, one 'name: value' a line")
    general.add_argument("-h", "--help", action="store_true", help="show this help")
    return parser


def _add_text(parser: _Parser, settings: Iterable[_Setting], *, description: str, epilog: str) -> None:
    """What the help shows besides the flags."""
    places = [setting for setting in settings if not setting.group]
    names = [place.metavar + "..." * (place.max_words > 1) for place in places]
    shown = [name if place.required else f"[{name}]" for name, place in zip(names, places, strict=True)]
    parser.usage = " ".join([parser.prog, *shown, "[options]"])
    lines = [f"  {place.metavar:<28}{_help_line(place)}" for place in places]
    parser.description = "\n".join([description, *(["", "Arguments:", *lines] if lines else [])])
    parser.epilog = epilog


def _help_line(setting: _Setting) -> str:
    """What the setting does, its choices, and its default."""
    line = setting.help + (f": {', '.join(setting.choices)}" if setting.choices else "")
    if setting.required:
        return f"{line} (required)" if setting.group else line
    if setting.default is None or setting.default == ():
        return line
    if isinstance(setting.default, bool):
        return f"{line} (default: {'on' if setting.default else 'off'})"
    shown = " ".join(map(str, setting.default)) if isinstance(setting.default, tuple) else setting.default
    return f"{line} (default: {shown})"


def _unknown_flag(word: str, settings: Iterable[_Setting], prog: str, advise: Advise) -> str:
    """The sentence for a flag that does not exist, with the closest one by its letters or by its meaning."""
    given = word.partition("=")[0]
    flag = given.replace("_", "-") if word.startswith("--") else word[:2]
    helps = {setting.spelling: setting.help.lower() for setting in settings if setting.group}
    if advice := advise(given, helps):
        return f"Unknown flag {given}. {advice}"
    meant = set(re.findall(r"\w+", flag.lower()))
    near = [
        *difflib.get_close_matches(flag, helps, n=1, cutoff=0.85),
        *(name for name in helps if name.startswith(flag) and flag.startswith("--")),
        *(name for name, text in helps.items() if meant <= set(re.findall(r"\w+", text))),
        *difflib.get_close_matches(flag, helps, n=1, cutoff=0.6),
    ]
    return f"Unknown flag {given}. " + (f"Did you mean {near[0]}?" if near else f"See {prog} --help.")


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise UserError(" ".join(problems))
