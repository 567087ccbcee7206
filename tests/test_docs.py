"""What the pages under docs/ promise: their code is the examples', their figures are right."""

import inspect
import re
import runpy
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fastvit_models
import reparam
from reparam import values

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def name_of(path: Path) -> str:
    return path.name


def code(page: str) -> Iterator[tuple[str, str]]:
    """Each Python block of a page, with the comment before it that says where it is from."""
    text = (ROOT / "docs" / page).read_text()
    marked = re.findall(r"^<!-- (\S+) -->\n```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(marked) == text.count("```python\n"), "each block says where it is from"
    yield from marked


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_is_that_of_the_examples(page: Path) -> None:
    for origin, block in code(page.name):
        if origin == "runs":
            continue
        lines = [line.strip() for line in (ROOT / origin).read_text().splitlines()]
        wanted = [line.strip() for line in block.splitlines()]
        starts = range(len(lines) - len(wanted) + 1)
        assert any(lines[start : start + len(wanted)] == wanted for start in starts), block


def test_a_registered_pipeline_is_loaded_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    page = (ROOT / "docs/custom_passes.md").read_text()
    found = re.findall(r'^\[project.entry-points."(.+)"\]\n(\w+) = "(.+)"$', page, re.MULTILINE)
    ((group, name, value),) = found
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    (tmp_path / "acme_passes.py").write_text(
        textwrap.dedent("""\
            def leave(graph_module):
                return graph_module

            from reparam import default_passes

            PIPELINE = (*default_passes(), leave)
            """)
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    namespace: dict[str, Any] = {
        "reparam": reparam,
        "model": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(),
    }
    (block,) = (text for origin, text in code("custom_passes.md") if origin == "runs")
    exec(compile(block, "custom_passes.md", "exec"), namespace)
    applied = {remark.rule for remark in reparam.report(namespace["fused"]).applied}
    assert applied == {"fold_batchnorm", "leave"}


def test_the_table_of_values_is_complete() -> None:
    page = (ROOT / "docs/custom_passes.md").read_text()
    section = page.partition("## The values")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    kinds = [
        name
        for name, kind in inspect.getmembers(values, inspect.isclass)
        if issubclass(kind, values.Value) and kind is not values.Value
    ]
    assert sorted(named) == sorted(kinds)


def test_the_catalogue_of_passes_is_the_generated_one() -> None:
    generator = runpy.run_path(str(ROOT / "docs/passes_page.py"))
    page = (ROOT / "docs/passes.md").read_text()
    assert page == generator["page"](), "run: python docs/passes_page.py"


def test_the_cost_of_patch_embed_is_what_the_compiler_says() -> None:
    model = fastvit_models.create_model("fastvit_t8").eval()
    messages = [remark.message for remark in reparam.report(reparam.compile(model)).missed]
    page = (ROOT / "docs/how_it_works.md").read_text()
    for text in (page, *(message for message in messages if "225,792" in message)):
        assert "225,792" in text
        assert "13,920" in text
    assert any("225,792" in message for message in messages)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_pages(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_is_in_the_navigation(page: Path) -> None:
    assert f"- {page.name}\n" in (ROOT / "mkdocs.yml").read_text()
