"""Makes docs/python.md, the reference of the public names, from their docstrings: python docs/make_reference.py"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import t2t_vit

PAGE = Path(__file__).with_name("python.md")
INTRODUCTION = """# Python

<!-- Made from the docstrings by docs/make_reference.py. -->

`import t2t_vit` registers the networks with timm and gives the names below. Each network is a function as well:
`t2t_vit.t2t_vit_14(num_classes=10)`. A mistake of the caller's raises `t2t_vit.errors.UserError`, a `ValueError`. The
[tutorial](tutorial.md) shows the names at work.
"""
FIRST = ("train", "evaluate", "Predictor", "list_models", "create_model", "load_checkpoint")
"""The names that most people come for. The others of `t2t_vit.__all__` follow."""
METHODS = ("__call__", "forward", "forward_features", "forward_head", "forward_intermediates", "set_input_size")
"""What the page tells of a class besides its arguments, where the class defines it."""


def page() -> str:
    """The text of python.md: each public name, followed by the class of its result if that is one of ours."""
    entries: dict[str, str] = {}
    for name in dict.fromkeys((*FIRST, *t2t_vit.__all__)):
        if callable(named := getattr(t2t_vit, name)):
            entries[name] = "\n".join([f"## {name}\n", *_describe(named)])
            for result in filter(_is_record, _results(named)):
                entries.setdefault(result.__name__, "\n".join([f"### {result.__name__}\n", *_sections(result)]))
    return "\n".join([INTRODUCTION, *entries.values()])


def _describe(named: Any) -> Iterator[str]:
    yield from ("```py", _signature(named), "```\n", *_sections(named))
    for method in METHODS if inspect.isclass(named) else ():
        if method in vars(named):
            yield from _describe(vars(named)[method])


def _results(named: Any) -> tuple[Any, ...]:
    annotation = inspect.signature(named.__call__ if inspect.isclass(named) else named).return_annotation
    return (annotation, *get_args(annotation))


def _is_record(named: Any) -> bool:
    return inspect.isclass(named) and (hasattr(named, "__dataclass_fields__") or hasattr(named, "_fields"))


def _signature(named: Any) -> str:
    """The source from the name to the colon; of a class that of its `__init__`."""
    source = textwrap.dedent(inspect.getsource(named.__init__ if inspect.isclass(named) else inspect.unwrap(named)))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    head = "\n".join(source.splitlines()[definition.lineno - 1 : definition.body[0].lineno - 1])
    head = re.sub(r"self(?:, |,\s+|(?=\)))", "", head.removeprefix("def ").rstrip(":"), count=1)
    return head.replace("__init__", named.__name__).removesuffix(" -> None") if inspect.isclass(named) else head


def _sections(named: Any) -> Iterator[str]:
    """A docstring in Google style as Markdown: its text, then a list or a line for each section."""
    text, *sections = re.split(r"^(Args|Attributes|Returns|Raises):\n", inspect.getdoc(named) or "", flags=re.M)
    yield text.rstrip() + "\n"
    for title, section in zip(sections[::2], map(textwrap.dedent, sections[1::2]), strict=True):
        if title in ("Returns", "Raises"):
            yield _wrap(f"{title}: {section}") + "\n"
            continue
        if title == "Attributes":
            yield "Attributes:\n"
        for item in re.split(r"\n(?=\S)", section.strip()):
            term, _, meaning = item.partition(": ")
            yield _wrap(f"- `{term}`: {meaning}", indent="  ")
        yield ""


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(" ".join(text.split()), 120, subsequent_indent=indent, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page())
