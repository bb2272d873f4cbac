"""The documentation is true: commands are understood, Python runs, what is shown is printed, links lead somewhere.

In README.md and docs/*.md, ```console blocks show what a command prints, ```text blocks what the Python before prints.
The Python of docs/tutorial.md is one program; elsewhere each block runs by itself.
"""

import contextlib
import io
import itertools
import json
import pkgutil
import random
import re
import runpy
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image

import t2t_vit
from t2t_vit.cli import COMMANDS, main
from t2t_vit.errors import UserError
from t2t_vit.flags import parse
from t2t_vit.options import options_of

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/t2t_vit"
TUTORIAL, SEEING, EXPORT = (ROOT / f"docs/{name}.md" for name in ("tutorial", "seeing", "export"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OFFICIAL_FLAGS = ROOT / "docs/from-the-official-code.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"(?:^|\s)(?:t2t-vit|-m t2t_vit) (.+)")
RELEASED = {"81.5_T2T_ViT_14.pth.tar": {}, "83.3_T2T_ViT_14.pth.tar": {"img_size": 384}}
OTHER_FLAGS = {"--help", "--help-all", "--gpus-per-node", "--gpus-per-task", "--signal"}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    return [block for language, block in FENCE.findall(text) if language in languages]


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


def commands(text: str) -> Iterator[tuple[list[str], str | None]]:
    """The words after `t2t-vit` of each command that is no `console`'s, and the file that its output goes to."""
    fenced = "".join(blocks(text, "sh", "bash")).replace("\\\n", " ")
    prose = without_fences(text).replace("\\\n", " ")
    # In the table of flags a command stands for one of its flags, and is not whole. Nor is a command's bare name.
    spans = re.findall(r"`(t2t-vit [\w-]+ [^`]+)`", re.sub(r"^\| `-.*$", "", prose, flags=re.M).replace("\n", " "))
    for line in [*fenced.splitlines(), *re.findall(r"^    .+$", prose, re.M), *spans]:
        found = COMMAND.search(line)
        words = shlex.split(found[1], comments=True) if found else []
        if words and words[0] != "COMMAND":
            end = words.index(">") if ">" in words else len(words)
            yield words[:end], (words[end + 1] if ">" in words else None)


def run(words: list[str]) -> tuple[int, str]:
    """A command's exit code, and what it prints, its errors too."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code or 0
    return code, printed.getvalue()


def check_commands(text: str) -> None:
    """Runs the commands that only show something, and reads the words of the others."""
    for words, file in commands(text):
        name, *flags = words
        if {"--show", "--help"} & set(words):
            code, printed = run(words)
            assert code == 0, printed
            if file is not None:
                Path(file).write_text(printed)
        else:
            parse(pkgutil.resolve_name(COMMANDS[name].config), flags, prog=f"t2t-vit {name}")


@each_document
def test_commands_are_understood_and_those_that_need_nothing_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_commands(document.read_text())


@pytest.mark.parametrize(
    "command",
    ["train digits --epoch 3", "train digits --epochs 0", "eval digits", "train digits --model t2t_vit --show"],
)
def test_a_command_that_fails_is_noticed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, AssertionError)):
        check_commands(f"Text.\n\n    t2t-vit {command}  # a comment\n")


@each_document
def test_names_of_commands_and_flags_exist(document):
    prose = without_fences(document.read_text())
    assert {*re.findall(r"`t2t-vit ([a-z][a-z-]*)`", prose)} <= {*COMMANDS}
    if document != OFFICIAL_FLAGS:
        classes = [pkgutil.resolve_name(command.config) for command in COMMANDS.values()]
        known = {flag for cls in classes for option in options_of(cls).values() for flag in option.spellings}
        assert {*re.findall(r"`(--[a-z-]+)", prose)} <= known | OTHER_FLAGS


def test_the_container_copies_what_is_there_and_starts_the_server():
    (line,) = re.findall(r"^ENTRYPOINT (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.M)
    program, command, *words = json.loads(line)
    assert program == "t2t-vit"
    config = parse(pkgutil.resolve_name(COMMANDS[command].config), [*words[:-1], str(ROOT)], prog="t2t-vit serve")
    assert (config.host, config.port) == ("0.0.0.0", 8000)
    copied = " ".join(re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)).split()
    assert all((ROOT / name).exists() for name in copied)
    assert {f"!{name}" for name in copied} <= {*(ROOT / ".dockerignore").read_text().splitlines()}


def test_the_map_has_every_room_and_no_other():
    rooms = re.findall(r"^\| `(\w+)/`", (ROOT / "docs/design.md").read_text(), re.M)
    assert sorted(rooms) == sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


@pytest.mark.parametrize("document", ["docs/design.md", "CONTRIBUTING.md"])
def test_files_that_the_map_names_are_there(document):
    for name in re.findall(r"`([\w/.-]+\.py)\b", (ROOT / document).read_text()):
        assert (SOURCE / name).exists() or (ROOT / name).exists() or [*SOURCE.glob(f"*/{name}")], name


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_make_has_the_targets(document):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {*re.findall(r"(?:^    |`)make ([a-z-]+)", document.read_text(), re.M)} <= {*targets}


def shown_runs() -> list[tuple[str, str]]:
    """The commands whose output is shown, each with it."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document.read_text(), "console"):
            found += re.findall(r"^\$ t2t-vit (.+)\n((?:[^$].*\n)*)", block, re.M)
    return found


@pytest.mark.parametrize(("command", "output"), shown_runs())
def test_commands_print_what_is_shown(command, output):
    assert run(command.split())[1] == output


@pytest.fixture(scope="module")
def released_files(tmp_path_factory):
    """A folder with files of the released ones' names and format, with weights of no worth; and an image."""
    folder = tmp_path_factory.mktemp("released")
    for name, size in RELEASED.items():
        state = t2t_vit.create_model("t2t_vit_14", **size).state_dict()
        torch.save({"epoch": 309, "arch": "t2t_vit_14", "state_dict": state, "state_dict_ema": state}, folder / name)
    Image.new("RGB", (40, 30)).save(folder / "cat.jpg")
    return folder


def run_python(text: str, name: str, *, together: bool = False) -> dict[str, object]:
    """Runs the Python blocks, and compares what one prints with the text block that follows it. Returns its names.

    Blocks that run together are one program; the commands of `sh` blocks between them run too.
    """
    fenced = [*FENCE.findall(text), ("", "")]
    names: dict[str, object] = {}
    for (language, block), (next_language, shown) in itertools.pairwise(fenced):
        assert language == "python" or next_language != "text", f"nothing prints {shown}"
        if language == "python":
            names = names if together else {"__name__": "__main__"}
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block, name, "exec"), names)
            if next_language == "text":
                assert printed.getvalue() == shown
        if language == "sh" and together:
            for words, _ in commands(f"```sh\n{block}```\n"):
                code, told = run(words)
                assert code == 0, told
    return names


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path not in (TUTORIAL, SEEING, EXPORT)], ids=lambda path: path.name
)
def test_python_runs_and_prints_what_is_shown(document, released_files, monkeypatch):
    monkeypatch.chdir(released_files)
    run_python(document.read_text(), document.name)


@pytest.mark.slow
def test_the_page_on_exports_runs(tmp_path, monkeypatch, picture_folder, write_small_checkpoint):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    Path("runs/FOLDER").mkdir(parents=True)
    data_config = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    names = ["lying", "upright"]
    write_small_checkpoint(
        Path("runs/FOLDER/best.pt"), num_classes=2, class_names=names, data_config={**data_config, "crop_pct": 1.0}
    )
    Path("FOLDER").symlink_to(picture_folder)
    Image.new("RGB", (40, 30)).save("cat.jpg")
    found = run_python(EXPORT.read_text(), EXPORT.name, together=True)
    assert {answer["label"] for answer in found["answers"]} == set(names)
    assert found["model"].num_classes == 2


@pytest.mark.slow
def test_the_tutorial_runs_and_its_network_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    names = run_python(TUTORIAL.read_text(), TUTORIAL.name, together=True)
    assert names["result"].best_top1 == names["accuracy"].top1
    assert names["accuracy"].top1 > 75
    assert names["label"] == "tomato"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tutorial_of_seeing_makes_the_pictures_that_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = SEEING.read_text()
    assert "--epochs 12" in text
    # fewer, as the sizes of the pictures are the same
    names = run_python(text.replace("--epochs 12", "--epochs 1"), SEEING.name, together=True)
    assert names["maps"]["blocks.6.attn"].shape == (1, 4, 2, 1 + 64 * 64)
    shown = {
        "flower": "01-flower.png-t2t_vit_7_64px-overview.png",
        "china": "02-china.png-t2t_vit_7_64px-overview.png",
        "features": "01-flower.png-t2t_vit_7_64px-features.png",
        "tokens": "02-china.png-t2t_vit_7_64px-tokens.png",
        "relevance": "01-flower.png-t2t_vit_7_64px-relevance.png",
    }
    assert {f"seeing-{name}.png" for name in shown} == {*re.findall(r"\((seeing-\w+\.png)\)", SEEING.read_text())}
    for name, file in shown.items():
        with Image.open(ROOT / "docs" / f"seeing-{name}.png") as ours, Image.open(tmp_path / "seeing" / file) as made:
            assert ours.size == made.size, f"make docs/seeing-{name}.png again"
    assert (tmp_path / "measured" / "faithfulness.csv").exists()


def test_the_reference_is_what_the_docstrings_give():
    reference = runpy.run_path(str(ROOT / "docs/make_reference.py"))
    assert reference["page"]() == reference["PAGE"].read_text(), "run: python docs/make_reference.py"


@each_document
def test_scripts_are_bash(document):
    for script in blocks(document.read_text(), "bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def anchors(text: str) -> set[str]:
    """The names that GitHub gives the headings of a document."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", without_fences(text), re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def check_links(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]*)\)", without_fences(document.read_text())):
        url = urlsplit(target)
        if url.scheme or url.netloc:
            assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[\w./~%#?=&+-]*)?", target), target
        else:
            file = (document.parent / url.path) if url.path else document
            assert file.exists(), target
            assert not url.fragment or url.fragment in anchors(file.read_text()), target


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda path: path.name
)
def test_links_lead_somewhere(document):
    check_links(document)


@pytest.mark.parametrize(
    "target",
    ["b.md", "#a_b", "#comment", "#twice-2", "htps://example.org", "https://example", "https://example.org/a b"],
)
def test_a_dead_link_is_noticed(target, tmp_path):
    document = tmp_path / "a.md"
    text = "# A `b_c`: [d](a.md)!\n```sh\n# comment\n```\n## Twice\n## Twice\n"
    document.write_text(text + "[e](#a-b_c-d) [f](a.md#twice-1) [g](https://example.org/a#b)")
    check_links(document)
    document.write_text(f"{text}[x]({target})")
    with pytest.raises(AssertionError):
        check_links(document)
