"""Every default pass is proven, and the table of it is the one in the docs."""

import passes
from docs import proofs_page
from reparam.prove import CHANCE
from tests.proofs import proofs


def test_every_default_pass_is_proven() -> None:
    found = proofs(each=4)
    assert found.keys() == {rule.name for rule in passes.DEFAULT}
    for name, one in found.items():
        assert not one.refuted, name
        assert one.proven, name
        assert one.probability <= CHANCE, name


def test_the_page_has_a_line_for_each_pass() -> None:
    lines = proofs_page.PAGE.read_text().splitlines()
    told = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert told == [rule.name for rule in passes.DEFAULT]
