"""What holds for the package as a whole: its floors, its public names, and how it meets timm."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import t2t_vit

SOURCE = Path(t2t_vit.__file__).parent

# The rooms from the ground up, each with the rooms that its modules may import besides their own.
GROUND = ("errors", "options")
FLOORS = {
    "runtime": (),
    "models": (),
    "data": (),
    "inference": ("models", "data"),
    "insight": ("models", "data", "inference"),
    "pictures": ("models", "data", "inference", "insight"),
    "speed": ("models", "data", "inference", "insight", "pictures"),
    "training": ("models", "data", "inference", "pictures"),
    "experiments": ("models", "data", "inference", "insight", "pictures", "speed", "training"),
    "deploy": ("models", "data", "inference", "insight"),
}


def _imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, without the package's name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("t2t_vit.") for name in names if name.startswith("t2t_vit.")}


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_modules_keep_to_their_floor(path: Path):
    floor = path.parent.name
    allowed = (*GROUND, "__version__", "runtime", floor, *FLOORS[floor])
    strangers = {name for name in _imports_of(path) if not f"{name}.".startswith(tuple(f"{part}." for part in allowed))}
    assert not strangers, f"{floor} may not import {strangers}"


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_floor_imports_nobody(name: str):
    assert _imports_of(SOURCE / f"{name}.py") <= {"errors.UserError", "errors.abbreviate", "errors.closest"}


def test_public_names_are_there():
    for name in t2t_vit.__all__:
        assert getattr(t2t_vit, name) is not None
        assert name in dir(t2t_vit)


def test_every_model_is_a_function_of_the_package():
    for name in t2t_vit.list_models():
        assert getattr(t2t_vit, name).__name__ == name
        assert name in dir(t2t_vit)


def test_an_unknown_model_names_the_closest():
    with pytest.raises(AttributeError, match=r"^Unknown model 't2t_vit_15'\. Did you mean t2t_vit_1"):
        _ = t2t_vit.t2t_vit_15
    with pytest.raises(AttributeError, match=r"^module 't2t_vit' has no attribute 'resnet'$"):
        _ = t2t_vit.resnet


def _python(program: str, *options: str, folder: Path = SOURCE.parent) -> str:
    """What a program prints in a fresh interpreter that finds packages in the folder."""
    done = subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_the_package_alone_needs_no_third_party():
    # -S: there are no site-packages.
    assert _python("import t2t_vit; print(hasattr(t2t_vit, 'nothing'), dir(t2t_vit) != [])", "-S") == "False True"


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["import t2t_vit", "from t2t_vit import TokensToToken", "import t2t_vit.models.blocks"]
)
def test_importing_both_registers_the_models(first: str):
    program = f"{first}; import timm; print(type(timm.create_model('t2t_vit_7', num_classes=2)).__name__)"
    assert _python(program) == "T2TViT"


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """A folder with the package as far as it meets timm, and small stand-ins for its models and for timm."""
    models = tmp_path / "t2t_vit" / "models"
    models.mkdir(parents=True)
    for name in ("__init__.py", "registration.py", "errors.py", "models/__init__.py", "models/names.py"):
        shutil.copy(SOURCE / name, tmp_path / "t2t_vit" / name)
    slow = "import sys, time\ntime.sleep(getattr(sys, 'delay', 0))\n"
    (models / "variants.py").write_text(slow + "import timm.registry\ntimm.registry.names += ['ours']")
    (tmp_path / "timm").mkdir()
    broken = "import sys\nassert not hasattr(sys, 'breaks'), 'broken'\n"
    (tmp_path / "timm" / "__init__.py").write_text(broken + slow + slow + "import timm.registry")
    (tmp_path / "timm" / "registry.py").write_text("names = []")
    return tmp_path


@pytest.mark.parametrize(
    "program",
    [
        "import t2t_vit, timm",
        "import timm, t2t_vit",
        "import t2t_vit, timm.registry",
        "import t2t_vit.models.variants, timm",
        "import importlib, t2t_vit; importlib.reload(t2t_vit); import timm; importlib.reload(timm)",
        "import importlib, timm, t2t_vit; importlib.reload(t2t_vit)",
        "import importlib.util, t2t_vit; importlib.util.find_spec('timm'); import timm",
    ],
)
def test_models_are_registered_once_in_any_order_of_imports(toys: Path, program: str):
    program += "; import sys; print(timm.registry.names, [finder for finder in sys.meta_path if 't2t' in repr(finder)])"
    assert _python(program, "-S", folder=toys) == "['ours'] []"


def test_a_timm_that_fails_is_reported_as_ever_and_the_next_import_registers(toys: Path):
    program = (
        "import sys, t2t_vit\n"
        "sys.breaks = True\n"
        "try: import timm\n"
        "except AssertionError as error: print(error)\n"
        "del sys.breaks\n"
        "import timm; print(timm.registry.names)"
    )
    assert _python(program, "-S", folder=toys) == "broken\n['ours']"


def test_two_threads_may_import_the_models_and_timm_at_once(toys: Path):
    program = (
        "import sys, threading, t2t_vit\n"
        "sys.delay = 0.1\n"
        "from importlib import import_module\n"
        "names = ['t2t_vit.models.variants', 'timm']\n"
        "threads = [threading.Thread(target=import_module, args=(name,)) for name in names]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "import timm; print(timm.registry.names)"
    )
    assert _python(program, "-S", folder=toys) == "['ours']"


@pytest.mark.parametrize("prepare", ["pass", "import sys; sys.modules['timm'] = None"])
def test_a_missing_timm_is_reported_as_ever(toys: Path, prepare: str):
    shutil.rmtree(toys / "timm")
    program = f"{prepare}; import t2t_vit\ntry: import timm\nexcept ModuleNotFoundError as error: print(error.name)"
    assert _python(program, "-S", folder=toys) == "timm"
