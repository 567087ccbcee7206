from pathlib import Path

from passes import DEFAULT


def test_every_pass_has_a_test_of_its_own() -> None:
    tests = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    assert {f"test_{rule.name}" for rule in DEFAULT} <= tests
