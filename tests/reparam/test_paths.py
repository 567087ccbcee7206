"""Paths of a result: each name is free, and one that fx and Python allow."""

import keyword

import pytest
from torch import fx, nn

from reparam.paths import RESERVED, Paths, allowed


def test_a_free_name_is_kept() -> None:
    assert Paths(()).fresh("block.conv") == "block.conv"
    assert Paths(("block.norm", "conv")).fresh("block.conv") == "block.conv"


def test_a_folder_of_others_gets_a_name_inside() -> None:
    assert Paths(("block.conv",)).fresh("block") == "block.fused"


def test_inside_a_module_that_is_kept_nothing_is_added() -> None:
    assert Paths(("block",)).fresh("block.conv") == "block_conv"
    assert Paths(("block", "block_conv")).fresh("block.conv") == "block_conv_fused"


def test_taken_names_are_numbered() -> None:
    paths = Paths(("conv",))
    found: list[str] = []
    for _ in range(4):
        found.append(paths.fresh("conv"))
        paths.occupy(found[-1])
    assert found == ["conv_fused", "conv_fused2", "conv_fused3", "conv_fused4"]


def test_a_fresh_name_is_not_taken_until_it_is_occupied() -> None:
    paths = Paths(())
    assert paths.fresh("conv") == paths.fresh("conv") == "conv"


def test_no_path_is_in_the_way_of_another() -> None:
    """Whatever was taken, all can be set on one module."""
    paths, root = Paths(("a.b", "c")), nn.Module()
    occupied = ["a.b", "c"]
    for name in ("a", "a.b", "a.b.c", "c", "c.d", "a", "a.fused", "a.fused.fused", "c_d", "c"):
        occupied.append(paths.fresh(name))
        paths.occupy(occupied[-1])
    for path in occupied:
        owner = root
        *folders, last = path.split(".")
        for folder in folders:
            if not hasattr(owner, folder):
                owner.add_module(folder, nn.Module())
            owner = owner.get_submodule(folder)
        owner.add_module(last, nn.Identity())
    found = [name for name, module in root.named_modules() if isinstance(module, nn.Identity)]
    assert sorted(found) == sorted(occupied)


@pytest.mark.parametrize("name", [*RESERVED, "forward", "training", "code", "to", "recompile"])
def test_names_of_graph_modules(name: str) -> None:
    assert allowed(name) == f"{name}_" or not hasattr(fx.GraphModule, name)
    own = name if not hasattr(nn.Module, name) else f"{name}_"
    assert allowed(f"block.{name}") == f"block.{own}", "only the root is a graph module"


def test_keywords() -> None:
    assert allowed("block.lambda.if") == "block.lambda_.if_"
    assert not any(map(keyword.iskeyword, allowed("if.class").split(".")))


def test_paths_that_are_taken_are_allowed_ones() -> None:
    assert Paths(("code",)).fresh("code") == "code__fused"
