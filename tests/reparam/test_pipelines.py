"""The default pipeline: found by its entry point, loaded from its distribution's own files."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

import passes
from reparam.errors import PassError, SourceError
from reparam.pipelines import GROUP, default_passes, load

FOREIGN = "raise AssertionError('a foreign package was imported')\n"


class Site:
    """A folder on sys.path that distributions are installed into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: str, text: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def install(
        self,
        name: str,
        value: str,
        *,
        files: dict[str, str] | None = None,
        record: list[str] | None = None,
        entry: str = "default",
    ) -> None:
        """Fake what pip does; without `record` the distribution keeps no list of its files."""
        info = f"{name}-1.0.dist-info"
        self.write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        self.write(f"{info}/entry_points.txt", f"[{GROUP}]\n{entry} = {value}\n")
        for path, text in (files or {}).items():
            self.write(path, text)
        if record is not None:
            self.write(f"{info}/RECORD", "".join(f"{path},,\n" for path in record))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No distribution is installed."""
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()


@pytest.fixture
def site(
    bare: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Site]]:
    """Make folders, each put on sys.path behind those made before."""
    before = set(sys.modules)

    def make(name: str) -> Site:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
        return Site(folder)

    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.usefixtures("bare")
def test_no_pipeline_is_an_error_that_says_to_install() -> None:
    with pytest.raises(PassError, match=r"no pipeline named 'default' .* pip install -e \."):
        default_passes()


def test_two_default_pipelines_are_an_error_that_names_both(site: Callable[[str], Site]) -> None:
    where = site("site")
    where.install("ours", "acme_ours:PASSES")
    where.install("theirs", "acme_theirs.fast:PASSES")
    with pytest.raises(PassError) as caught:
        default_passes()
    assert "acme_ours:PASSES of the distribution ours" in str(caught.value)
    assert "acme_theirs.fast:PASSES of the distribution theirs" in str(caught.value)


def test_pipelines_of_other_names_are_no_default(site: Callable[[str], Site]) -> None:
    where = site("site")
    where.install("ours", "acme_ours:PASSES", files={"acme_ours.py": "PASSES = (len,)\n"})
    where.install("theirs", "acme_theirs:PASSES", entry="fast")
    assert default_passes() == (len,)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("acme_broken:PASSES", "cannot be loaded: ZeroDivisionError: division by zero"),
        ("acme_absent:PASSES", "cannot be loaded: ModuleNotFoundError: .*acme_absent"),
        ("acme_good:PASES", "cannot be loaded: .*PASES"),
        ("acme_good:LIST", "is no tuple of passes"),
        ("acme_good:NUMBERS", "is no tuple of passes"),
    ],
)
def test_a_pipeline_that_is_none_is_an_error(
    value: str, says: str, site: Callable[[str], Site]
) -> None:
    files = {
        "acme_broken.py": "1 / 0\n",
        "acme_good.py": "PASSES = (len,)\nLIST = [len]\nNUMBERS = (1, 2)\n",
    }
    site("site").install("acme", value, files=files)
    with pytest.raises(PassError, match=f"{value} of the distribution acme {says}"):
        default_passes()


def test_the_built_in_one_shares_its_identities() -> None:
    assert default_passes() is passes.DEFAULT


PACKAGE = {
    "acme/__init__.py": "from .inner.one import one\nPASSES = (one,)\n",
    "acme/inner/__init__.py": "",
    "acme/inner/one.py": "def one(graph): return graph\n",
}


@pytest.mark.parametrize("record", [None, list(PACKAGE)], ids=["no record", "record"])
@pytest.mark.parametrize("imported", [False, True], ids=["not imported", "imported"])
def test_a_foreign_package_of_that_name_is_left_alone(
    record: list[str] | None, imported: bool, site: Callable[[str], Site]
) -> None:
    theirs = site("theirs")
    theirs.write("acme/__init__.py", "PASSES = 'theirs'" if imported else FOREIGN)
    ours = site("ours")
    ours.install("acme-dist", "acme:PASSES", files=PACKAGE, record=record)
    foreign = importlib.import_module("acme") if imported else None
    (one,) = default_passes()
    assert one.__module__.endswith("_acme_dist_acme.inner.one")
    assert sys.modules.get("acme") is foreign
    assert default_passes() == (one,)  # loaded once


def test_a_module_below_the_top_is_found_in_its_own_package(site: Callable[[str], Site]) -> None:
    site("theirs").write("acme.py", FOREIGN)
    site("ours").install("acme-dist", "acme.inner.one:one", files=PACKAGE)
    (entry_point,) = entry_points(group=GROUP)
    one = load(entry_point)
    assert callable(one)
    assert one.__name__ == "one"


def test_a_single_file_is_found_as_a_package_is(site: Callable[[str], Site]) -> None:
    site("theirs").write("acme/__init__.py", FOREIGN)
    files = {"acme.py": "PASSES = (len,)\n"}
    site("ours").install("acme-dist", "acme:PASSES", files=files, record=["acme.py"])
    assert default_passes() == (len,)


@pytest.mark.parametrize("shadowed", [False, True])
def test_an_editable_install_is_found_by_its_path_file(
    shadowed: bool, tmp_path: Path, site: Callable[[str], Site]
) -> None:
    if shadowed:
        site("theirs").write("acme/__init__.py", FOREIGN)
    checkout = site("checkout")  # what the path file does to sys.path when Python starts
    for path, text in PACKAGE.items():
        checkout.write(path, text)
    installed = site("site")
    pth = {"_acme.pth": f"import sys\n{checkout.folder}\n"}
    installed.install("acme-dist", "acme:PASSES", files=pth, record=["_acme.pth"])
    installed.write("acme/__init__.py", FOREIGN)  # another distribution's: it is not in the record
    (one,) = default_passes()
    assert (one.__module__ == "acme.inner.one") is not shadowed


def test_files_that_only_the_import_system_finds_are_imported_by_name(
    site: Callable[[str], Site],
) -> None:
    where = site("site")
    hook = {"_hook.pth": "import a_finder_that_maps_names_to_files\n"}
    where.install("acme-dist", "acme:PASSES", files=hook, record=["_hook.pth"])
    where.write("acme.py", "PASSES = (len,)\n")
    assert default_passes() == (len,)


def test_a_package_that_fails_to_load_is_not_kept(site: Callable[[str], Site]) -> None:
    site("theirs").write("acme.py", FOREIGN)
    ours = site("ours")
    ours.install("acme-dist", "acme:PASSES", files={"acme.py": "import absent_acme\n"})
    for _ in range(2):
        with pytest.raises(PassError, match="absent_acme"):
            default_passes()


def test_the_caller_chooses_the_error() -> None:
    with pytest.raises(SourceError, match="no_such_module:X of the distribution unknown"):
        load(EntryPoint("x", "no_such_module:X", "group"), SourceError)


USES_BOTH = """
import sys
{first}
import reparam
chosen = reparam.default_passes()
assert len(chosen) > 5, chosen
assert ("passes" in sys.modules) is {imported}
import passes
assert passes.MINE == 1, passes
assert reparam.default_passes() is chosen
"""


@pytest.mark.parametrize("imported", [False, True], ids=["ours first", "theirs first"])
def test_a_folder_of_passes_of_the_users_own_breaks_nothing(imported: bool, tmp_path: Path) -> None:
    (tmp_path / "passes").mkdir()
    (tmp_path / "passes" / "__init__.py").write_text("MINE = 1\n")
    script = USES_BOTH.format(first="import passes" if imported else "", imported=imported)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
