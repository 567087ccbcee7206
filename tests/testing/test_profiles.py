"""Which graphs are drawn, how many, and what is kept of those that fail."""

from pathlib import Path

import pytest

from reparam.testing import MOTIFS, CheckFailed, blocks, check_pass
from reparam.testing.profiles import DATABASE, NIGHTLY, PR, PROFILES, Profile, sample
from tests.testing import wrong_passes as wrong

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

NORMS = blocks(MOTIFS["conv_norm"])
NIGHT = {"graphs": NORMS, "min_fired": 0, "profile_name": NIGHTLY}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_failure_is_kept_over_a_run_of_another_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE, str(tmp_path))
    assert check_pass(wrong.forget_groups, max_examples=1, **NIGHT).graphs == 1, "it is not shown"
    with pytest.raises(CheckFailed):
        check_pass(wrong.forget_groups, max_examples=200, seed=1, **NIGHT)
    kept = files(tmp_path)
    check_pass(wrong.fold_norm, max_examples=20, seed=1, **NIGHT)
    assert set(kept) <= set(files(tmp_path))
    with pytest.raises(CheckFailed, match="its replacement differs by"):
        check_pass(wrong.forget_groups, max_examples=1, **NIGHT)
    check_pass(wrong.forget_groups, max_examples=1, **{**NIGHT, "profile_name": PR})


def test_nothing_is_kept_for_pull_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE, str(tmp_path))
    for seed in (None, 1):
        with pytest.raises(CheckFailed):
            check_pass(wrong.drop_epsilon, graphs=NORMS, seed=seed, profile_name=PR)
    assert not files(tmp_path)


def test_the_motifs_are_the_same_at_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE, str(tmp_path))
    first, second = (
        check_pass(wrong.fold_norm, max_examples=1, seed=seed, profile_name=NIGHTLY)
        for seed in (1, 2)
    )
    assert first.motifs == second.motifs != ()


def test_a_graph_is_not_made_smaller_where_that_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PROFILES, "find only", Profile(60, shrink=False))
    found: list[int] = []
    for name in ("find only", PR):
        with pytest.raises(CheckFailed, match="its replacement differs by") as caught:
            check_pass(wrong.forget_groups, profile_name=name)
        found.append(caught.value.nodes)
    assert found[0] > found[1]


def test_a_sample() -> None:
    assert sample(NORMS, 8) == sample(NORMS, 8) != sample(NORMS, 8, seed=1)
    assert sample(NORMS, 8, seed=1) == sample(NORMS, 8, seed=1) != sample(NORMS, 8, seed=2)
    assert len(sample(NORMS, 8)) == 8
