"""The documentation is true: commands are understood, Python runs, what is shown is printed, links lead somewhere.

In README.md and docs/*.md, ```console blocks show what a command prints, ```text blocks what the Python before prints.
"""

import contextlib
import io
import pkgutil
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import t2t_vit
from t2t_vit.cli import COMMANDS, main
from t2t_vit.flags import parse

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^|\s)(?:t2t-vit|-m t2t_vit) (.+)")
RELEASED = {"81.5_T2T_ViT_14.pth.tar": {}, "83.3_T2T_ViT_14.pth.tar": {"img_size": 384}}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def blocks(document: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", document.read_text(), re.M | re.S)


def commands(document: Path) -> Iterator[tuple[list[str], str | None]]:
    """The words after `t2t-vit` of each command that is no `console`'s, and the file that its output goes to."""
    fenced = "".join(blocks(document, "sh", "bash")).replace("\\\n", " ")
    prose = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S).replace("\\\n", " ")
    # In the table of flags a command stands for one of its flags, and is not whole.
    spans = re.findall(r"`(t2t-vit [^`\n]+)`", re.sub(r"^\| `-.*$", "", prose, flags=re.M))
    for line in [*fenced.splitlines(), *re.findall(r"^    .+$", prose, re.M), *spans]:
        found = COMMAND.search(line)
        words = shlex.split(found[1], comments=True) if found else []
        if words and words[0] != "COMMAND":
            end = words.index(">") if ">" in words else len(words)
            yield words[:end], (words[end + 1] if ">" in words else None)


def run(words: list[str]) -> str:
    """What a command prints, its errors too."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
        main(words)
    return printed.getvalue()


@each_document
def test_commands_are_understood_and_those_that_need_nothing_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, file in commands(document):
        name, *flags = words
        if {"--show", "--help"} & set(words):
            printed = run(words)
            assert "t2t-vit: error:" not in printed
            if file is not None:
                Path(file).write_text(printed)
        elif flags:
            parse(pkgutil.resolve_name(COMMANDS[name].config), flags, prog=f"t2t-vit {name}")
        else:
            assert name in COMMANDS


def shown_runs() -> list[tuple[str, str]]:
    """The commands whose output is shown, each with it."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document, "console"):
            found += re.findall(r"^\$ t2t-vit (.+)\n((?:[^$].*\n)*)", block, re.M)
    return found


@pytest.mark.parametrize(("command", "output"), shown_runs())
def test_commands_print_what_is_shown(command, output):
    assert run(command.split()) == output


@pytest.fixture(scope="module")
def released_files(tmp_path_factory):
    """A folder with files of the released ones' names and format, with weights of no worth; and an image."""
    folder = tmp_path_factory.mktemp("released")
    for name, size in RELEASED.items():
        state = t2t_vit.create_model("t2t_vit_14", **size).state_dict()
        torch.save({"epoch": 309, "arch": "t2t_vit_14", "state_dict": state, "state_dict_ema": state}, folder / name)
    Image.new("RGB", (40, 30)).save(folder / "cat.jpg")
    return folder


@each_document
def test_python_runs_and_prints_what_is_shown(document, released_files, monkeypatch):
    monkeypatch.chdir(released_files)
    for block in blocks(document, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, document.name, "exec"), {})
        shown = blocks(document, "text")
        assert not shown or not printed.getvalue() or printed.getvalue() in shown


@each_document
def test_scripts_are_bash(document):
    for script in blocks(document, "bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@each_document
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            file = document.parent / path if path else document
            assert file.exists(), target
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M) if anchor else []
            slugs = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not anchor or anchor in slugs, target
