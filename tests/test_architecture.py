"""Who may import whom, how long a file may be, and what it may be called."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("reparam", "passes", "fastvit_models")
PASS_FILES = sorted(
    path for path in (ROOT / "passes").glob("*.py") if not path.name.startswith("_")
)
OPTIONAL = {
    "huggingface_hub",
    "hypothesis",
    "onnx",
    "onnx_graphsurgeon",
    "onnxruntime",
    "onnxscript",
    "safetensors",
    "timm",
    "torchvision",
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_packages(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("reparam", {"passes", "fastvit_models"} | OPTIONAL),
        ("passes", {"fastvit_models"} | OPTIONAL),
        ("fastvit_models", {"passes", "reparam"} | OPTIONAL),
    ],
)
def test_import_loads_no_more_than_it_may(package: str, absent: set[str]) -> None:
    show_loaded = f"import {package}, sys; print(*(name for name in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", show_loaded], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert package in loaded
    assert absent.isdisjoint(loaded), sorted(absent.intersection(loaded))


@pytest.mark.parametrize("path", sources("fastvit_models"), ids=name_of)
def test_models_import_torch_alone(path: Path) -> None:
    allowed = {"torch", "fastvit_models", *sys.stdlib_module_names}
    tree = ast.parse(path.read_text())
    # Their loading functions, and nothing at the top of a module, may go further.
    inner = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for name in imported_packages(node)
    }
    assert inner <= allowed | {"safetensors", "huggingface_hub"}
    assert set(imported_packages(tree)) <= allowed | inner


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=name_of)
def test_file_is_short_enough_to_be_one_thing(path: Path) -> None:
    limit = 150 if path in PASS_FILES else 300
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", sources(*PACKAGES, "tests", "examples"), ids=name_of)
def test_file_is_named_after_what_is_in_it(path: Path) -> None:
    words = {
        word for part in path.relative_to(ROOT).with_suffix("").parts for word in part.split("_")
    }
    assert words.isdisjoint({"util", "utils", "helper", "helpers", "manager", "managers"})


@pytest.mark.parametrize("path", PASS_FILES, ids=name_of)
def test_pass_file_documents_one_pass_of_its_name(path: Path) -> None:
    tree = ast.parse(path.read_text())
    docstring = ast.get_docstring(tree) or ""
    headings = ("Before:", "After:", "Algebra:", "Legal when:", "Profitable when:")
    assert [heading for heading in headings if heading not in docstring] == []
    assert path.stem in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_folder_of_tests_is_a_package() -> None:
    # Else two test files of one name clash, and a folder `tests/passes` could be taken for ours.
    folders = {path.parent for path in sources("tests")}
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("package", ["reparam", "passes"])
def test_annotations_are_checked_while_testing(package: str) -> None:
    spec = importlib.import_module(package).__spec__
    assert spec is not None
    assert type(spec.loader).__module__ == "jaxtyping._import_hook"


FACTORIES = {
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "zeros",
}  # fmt: skip
"""Functions that make a tensor on the user's default device, unless they are told another one."""


@pytest.mark.parametrize("path", sources("reparam", "passes"), ids=name_of)
def test_new_tensors_are_told_their_device(path: Path) -> None:
    if path.parent.name == "testing" and path.stem in ("draft", "layers"):
        return  # models, of whoever draws them
    factories = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr) in {("torch", name) for name in FACTORIES}
    ]
    told = [node for node in factories if any(each.arg == "device" for each in node.keywords)]
    assert [node.lineno for node in factories if node not in told] == []
