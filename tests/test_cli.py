import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

import t2t_vit
from t2t_vit.cli import COMMANDS, Command, main
from t2t_vit.errors import UserError
from t2t_vit.flags import parse
from t2t_vit.options import Settings, option


@dataclass(frozen=True, kw_only=True)
class GreetConfig(Settings):
    """Say hello."""

    times: int = option(1, "how often")


@pytest.fixture
def greet(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[GreetConfig], Any]], None]:
    """Makes a function the command `greet`."""

    def make_command(run: Callable[[GreetConfig], Any]) -> None:
        module = ModuleType("greeting")
        module.GreetConfig, module.run = GreetConfig, run
        monkeypatch.setitem(sys.modules, "greeting", module)
        command = Command("greeting:GreetConfig", "greeting:run", "says hello", "greet --times 2")
        monkeypatch.setitem(COMMANDS, "greet", command)

    return make_command


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert any(line.split() == [name, *command.summary.split()] for line in lines)


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"t2t-vit {t2t_vit.__version__}\n"


def test_an_unknown_command_names_the_closest(capsys: pytest.CaptureFixture[str]):
    assert main(["trian", "digits"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert (
        output.err == "t2t-vit: error: Unknown command 'trian'. "
        "Did you mean train or transfer or pretrain? See t2t-vit --help.\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_ends_with_an_example_that_works(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.endswith(f"Example: t2t-vit {COMMANDS[name].example}\n")
    command, *words = COMMANDS[name].example.split()
    assert command == name
    parse(pkgutil.resolve_name(COMMANDS[name].config), words, prog=name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_function(name: str):
    assert callable(pkgutil.resolve_name(COMMANDS[name].run))


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_gets_its_config(greet: Callable[..., None], returned: int | None, code: int):
    seen = []

    def run(config: GreetConfig) -> int | None:
        seen.append(config)
        return returned

    greet(run)
    assert main(["greet", "--times", "2"]) == code
    assert seen == [GreetConfig(times=2)]


def test_a_mistake_is_told_in_one_line_without_a_traceback(
    greet: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    def run(config: GreetConfig) -> None:
        raise UserError("Nobody is there.\nInvite somebody.")

    greet(run)
    assert main(["greet"]) == 2
    assert main(["greet", "--time", "2"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "t2t-vit: error: Nobody is there. Invite somebody.\n"
        "t2t-vit: error: Unknown flag --time. Did you mean --times?\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train digits --img-size 32 32 32", "--img-size: expected 1 or 2 whole numbers or none, got 3 "),
        ("train digits --opt foo", "Unknown optimiser 'foo'. Known: adabelief, "),
        ("train digits --device gpu", "Device 'gpu' cannot be used: no such device. There are: cpu"),
        ("eval digits --checkpoint x -b 0", "--batch-size must be at least 1, got 0."),
        ("eval digits --checkpoint x --no-amp --amp-dtype float16", "--amp-dtype has no effect beside --no-amp."),
        ("predict a.png --checkpoint x --top-k 0", "--top-k must be at least 1, got 0."),
        ("compare t2t_vit_7", "DATA: there is no file or folder t2t_vit_7. Expected data to train on, as for "),
        ("compare --epochs 3", "--epochs has no effect without DATA."),
        ("benchmark --compile-mode max-autotune", "--compile-mode has no effect without --compile."),
        ("benchmark -b 8 0 --plot a.pdf", "--batch-size must be at least 1, got 8 0. --plot must be a .png or "),
        ("benchmark --compile no --compile-mode max-autotune", "--compile-mode has no effect beside --compile no."),
        ("data digits --workers 2", "--workers has no effect without --verify."),
        ("models --csv missing/a.csv", "--csv must be a file in a folder that is there, got missing/a.csv."),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_done(words: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert main(words.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"t2t-vit: error: {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train NO/SUCH/FOLDER", "DATA: there is no file or folder NO/SUCH/FOLDER. Expected a folder with train/"),
        ("train digitz --checkpoint no.pt", "DATA: there is no file or folder digitz. Did you mean digits? --check"),
        ("eval digits --checkpoint no.pt", "--checkpoint: there is no file or folder no.pt. Expected weights"),
        ("predict no.jpg no.png --checkpoint .", "IMAGE: there is no file or folder no.jpg, no.png. Expected image"),
    ],
)  # fmt: skip
def test_a_wrong_path_is_told_without_waiting_for_torch(words: str, message: str):
    program = "import sys; from t2t_vit import cli; sys.exit(cli.main(sys.argv[1:]) + 10 * ('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program, *words.split()], capture_output=True, text=True)
    assert done.stderr.startswith(f"t2t-vit: error: {message}")
    assert done.returncode == 2


def test_ctrl_c_is_quiet(greet: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    def run(config: GreetConfig) -> None:
        raise KeyboardInterrupt

    greet(run)
    assert main(["greet"]) == 130
    assert capsys.readouterr() == ("", "")


def test_an_error_of_ours_keeps_its_traceback(greet: Callable[..., None]):
    def run(config: GreetConfig) -> None:
        raise ValueError("ours")

    greet(run)
    with pytest.raises(ValueError, match="ours"):
        main(["greet"])


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_reader_that_leaves_is_no_error(words: list[str]):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        done = subprocess.run([sys.executable, "-m", "t2t_vit", *words], stdout=output, stderr=subprocess.PIPE)
    assert done.stderr == b""
    assert done.returncode == 141


def test_help_imports_nothing_large():
    program = (
        "import pkgutil, sys; from t2t_vit import cli; import t2t_vit.options\n"
        "cli.main([])\n"
        "for command in cli.COMMANDS.values(): pkgutil.resolve_name(command.config)\n"
        "try: cli.main(['transfer', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({'torch', 'timm', 'numpy', 'PIL', 'rich', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_python_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "t2t_vit", "models", "--frobnicate"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "t2t-vit: error: Unknown flag --frobnicate. See t2t-vit models --help.\n"
