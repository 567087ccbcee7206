"""The table of planted bugs stays honest: each can still be planted, and a few really are."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import reparam
from benchmarks.planted.bugs import Bug, load
from benchmarks.planted.corpus import CORPUS
from benchmarks.planted.examples import Example
from benchmarks.record import ROOT
from passes import DEFAULT
from reparam.rewrite import Rewrite
from reparam.testing import randomised

SAMPLE = ("eps-dropped", "select-bias", "statistics-in-place")
"""One bug of a law, one that takes a rearrangement to show, and one that no proof sees."""


@pytest.mark.parametrize("bug", load(), ids=lambda bug: bug.id)
def test_bug_can_be_planted(bug: Bug) -> None:
    """Its text stands once in its file, and what it becomes is another program."""
    source = (ROOT / bug.file).read_text()
    planted = bug.planted(source)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(source))
    assert set(bug.passes) <= {rule.name for rule in DEFAULT}
    assert bug.what
    assert bug.kind in ("functional", "other")


def test_bugs_are_many_and_everywhere() -> None:
    """At least 200, some through every default pass."""
    assert len(load()) >= 200
    assert {name for bug in load() for name in bug.passes} == {rule.name for rule in DEFAULT}
    assert {Path(bug.file).stem for bug in load()} >= {rule.name for rule in DEFAULT}


@pytest.mark.parametrize("rule", DEFAULT, ids=lambda rule: rule.name)
def test_blocks_for_a_pass_are_rewritten_by_it(rule: Rewrite) -> None:
    """Else no bug in it would show."""

    def fires(example: Example) -> bool:
        model, given = example.build()
        fused = reparam.compile(randomised(model, given), given, passes=(rule,), verify=False)
        return bool(reparam.report(fused).applied)

    assert any(map(fires, CORPUS[rule.name]))


@pytest.mark.long
def test_sample_is_killed(tmp_path: Path) -> None:
    """A few of them are planted, and found by whatever has to find them."""
    only = [text for name in SAMPLE for text in ("--only", name)]
    command = [sys.executable, "-m", "benchmarks.mutations", *only, "--file", str(tmp_path / "r")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True
    )
    for bug in (bug for bug in load() if bug.id in SAMPLE):
        by = re.findall(rf"^{bug.id} \(\w+\), (\w+): (.*), [\d.]+ s$", done.stdout, re.MULTILINE)
        found = dict(by)
        assert "check_pass" in found["check"], done.stdout
        assert bug.kind == "other" or "proof" in found["proof"], done.stdout
