"""The words of a command line, read into settings; and the help that lists its flags.

    config = parse(TrainConfig, ["digits", "-b", "128", "--img-size", "64", "96"], prog="t2t-vit train")

A flag takes as many words as its type has, or all that follow; `--img-size 64 digits` takes one, since digits is no
number. A switch takes none: `--amp` or `--no-amp`. Words that no flag takes fill the arguments in order.
"""

import dataclasses
import inspect
import math
import shutil
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from t2t_vit.errors import UserError
from t2t_vit.options import Config, Option, Settings, build, in_words, nearest, options_of, read_yaml

Advise = Callable[[str, Collection[str]], str | None]
"""Maps an unknown flag and the known ones to a sentence that says what to give instead, or to None."""

GENERAL = "General"
CONFIG_HELP = "YAML file that sets flags, one 'name: value' a line"
CONFIG = Option(name="config", help=CONFIG_HELP, short="c", metavar="FILE", heading=GENERAL)
HELP_COLUMN = 30
"""The column of the explanations, for flags that are short enough."""


def parse(
    cls: type[Config], argv: Sequence[str], *, prog: str, epilog: str = "", advise: Advise = lambda flag, known: None
) -> Config:
    """The settings that the command line and its YAML file ask for.

    Args:
        cls: the class of the settings; its docstring opens the help.
        argv: the words after the command.
        prog: the command, for the help.
        epilog: the last lines of the help.
        advise: asked about an unknown flag, before the closest known one is named.

    Raises:
        UserError: unknown flags; or unknown keys, missing settings, and values that break a rule, all in one message.
        SystemExit: after printing the help for `-h` or `--help`, or for `--help-all`.
    """
    if {"-h", "--help", "--help-all"} & {*argv}:
        print(_help(cls, prog, epilog, whole="--help-all" in argv or not cls.essential), flush=True)
        raise SystemExit(0)
    options = options_of(cls)
    words = _read_words(argv, [*options.values(), CONFIG], prog, advise)
    path = words.pop(CONFIG.name, None)
    values, sources = read_yaml(Path(path)) if path else ({}, {})
    flags = {name: options[name].flag for name in words}
    return build(cls, {**values, **words}, sources={**sources, **flags}, advice=f"See {prog} --help.")


def _read_words(argv: Sequence[str], options: Sequence[Option], prog: str, advise: Advise) -> dict[str, Any]:
    """The words of each given setting: true or false for a switch, a list for several words."""
    by_flag = {flag: option for option in options for flag in option.spellings}
    segments: list[tuple[str, list[str]]] = [("", [])]  # a flag, and the words up to the next one
    for word in argv:
        if word.startswith("-") and word != "-" and not _is_number(word):
            segments.append((word, []))
        else:
            segments[-1][1].append(word)
    given: dict[str, Any] = {}
    unknown, places = [], segments[0][1]
    for word, following in segments[1:]:
        flag, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        option = by_flag.get(flag)
        if option is None:
            unknown.append(_unknown_flag(word, options, prog, advise))
            continue
        taken = [value.removeprefix("=")] if equals else _words_of(option, following)
        places += following if equals else following[len(taken) :]
        if option.kind is bool:
            if equals:
                raise UserError(_takes_no_value(option, flag, value))
            given[option.name] = not flag.startswith("--no-")
        elif taken:
            given[option.name] = _one_or_many(taken)
        else:
            raise UserError(f"{flag} needs a value: {option.help}. See {prog} --help.")
    if unknown:
        raise UserError(" ".join(unknown))

    for option in options:
        if option.is_argument and places:
            count = len(places) if _takes_many(option) else 1
            given[option.name], places = _one_or_many(places[:count]), places[count:]
    if places:
        switch = by_flag.get(argv[argv.index(places[0]) - 1])
        if switch and switch.kind is bool:
            raise UserError(_takes_no_value(switch, switch.flag, places[0]))
        raise UserError(f"Unexpected {' '.join(places)!r}. See {prog} --help.")
    return given


def _words_of(option: Option, following: list[str]) -> list[str]:
    """The words that a flag takes of those up to the next flag; several numbers end before a word that is none."""
    if option.kind is bool:
        return []
    if option.counts == (1,):
        return following[:1]
    if option.kind is str:
        return following
    return following[:1] + list(takewhile(_is_number, following[1:]))


def _takes_many(option: Option) -> bool:
    return math.inf in option.counts


def _one_or_many(words: list[str]) -> str | list[str]:
    return words if len(words) > 1 else words[0]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _takes_no_value(option: Option, flag: str, value: str) -> str:
    return f"{flag} takes no value, got {value!r}; it means: {option.help}."


def _unknown_flag(word: str, options: Iterable[Option], prog: str, advise: Advise) -> str:
    """A sentence about an unknown flag, with the flag that is probably meant."""
    flag = word.partition("=")[0]
    flags = {option.name: option for option in options if not option.is_argument}
    advice = advise(flag, [option.flag for option in flags.values()])
    near = nearest(flag, flags) if flag.startswith("--") else None
    meant = f"Did you mean {flags[near].flag}?" if near else f"See {prog} --help."
    return f"Unknown flag {flag}. {advice or meant}"


# Help


def _help(cls: type[Settings], prog: str, epilog: str, *, whole: bool) -> str:
    """The help of a command: its flags in groups, with their defaults; the essential ones alone unless it is whole."""
    usual = cls.defaults_for({})
    options = [dataclasses.replace(o, default=usual.get(o.name, o.default)) for o in options_of(cls).values()]
    sections: dict[str, list[tuple[str, str]]] = {}
    for option in [*(o for o in options if whole or o.is_argument or o.name in cls.essential), CONFIG]:
        sections.setdefault(option.heading, []).append((_form(option), _help_line(option)))
    sections[GENERAL].append(("-h, --help", "show this help" if whole else "show these flags, which matter most"))
    if not whole:
        sections[GENERAL].append(("--help-all", f"show all {len(options)} settings"))

    arguments = [form if o.required else f"[{form}]" for o in options if o.is_argument for form in [_form(o)]]
    lines = [f"usage: {' '.join([prog, *arguments, '[options]'])}", "", inspect.cleandoc(cls.__doc__ or "")]
    for heading, entries in sections.items():
        lines += ["", f"{heading}:", *(line for entry in entries for line in _columns(*entry))]
    return "\n".join([*lines, "", epilog])


def _form(option: Option) -> str:
    """A flag with placeholders for its words: "-b N, --batch-size N", "--img-size N [N]", "IMAGE..."."""
    least, most = min(option.counts), max(option.counts)
    if _takes_many(option):
        words = f"{option.metavar}..."
    else:
        words = " ".join([option.metavar] * int(least) + [f"[{option.metavar}]"] * int(most - least))
    if option.kind is bool:
        return ", ".join(option.spellings)
    return ", ".join(f"{flag} {words}" for flag in option.spellings) or words


def _help_line(option: Option) -> str:
    """What the setting does, its choices, and its default."""
    line = option.help + (f": {', '.join(option.choices)}" if option.choices else "")
    if option.required:
        return line if option.is_argument else f"{line} (required)"
    if option.default is None or option.default == ():
        return line
    switch = {True: "on", False: "off"} if option.kind is bool else {}
    return f"{line} (default: {switch.get(option.default, in_words(option.default))})"


def _columns(form: str, text: str) -> list[str]:
    """The lines of one flag: its form on the left, its explanation on the right."""
    width = shutil.get_terminal_size().columns - 2 - HELP_COLUMN
    lines = textwrap.wrap(text, max(width, 20), break_on_hyphens=False)
    if len(form) <= HELP_COLUMN - 4:
        form, lines = f"{form:<{HELP_COLUMN - 2}}{lines[0]}", lines[1:]
    return [f"  {form}", *(" " * HELP_COLUMN + line for line in lines)]
