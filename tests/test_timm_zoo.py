"""timm's models, untouched: what compiling leaves of each, and that it says why.

Each model is compiled once, by the one test that asks all of it: the failures of a model come
together, and no model outlives its test.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import passes
import reparam
from tests.randomised import randomised

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("without_annotation_checks")

WITHOUT_BATCH_NORMS = (
    "repvgg_a0", "repvgg_b1g4", "repvgg_d2se", "mobileone_s0", "mobileone_s4", "repvit_m0_9",
    "repghostnet_050", "nextvit_small", "levit_128s", "levit_conv_128s", "hgnetv2_b0",
    "regnety_002", "mobilenetv3_large_100", "efficientnet_b0", "resnet50",
)  # fmt: skip
"""All of their batch norms fold."""

NAMES = (
    *WITHOUT_BATCH_NORMS, "efficientformerv2_s0", "nf_resnet50", "convnext_tiny", "caformer_s18",
    "poolformer_s12", "convmixer_768_32", "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224",
    "pvt_v2_b0", "twins_pcpvt_small", "coat_tiny",
)  # fmt: skip

FIXED_SIZE = (
    "levit_128s", "levit_conv_128s", "efficientformerv2_s0", "swin_tiny_patch4_window7_224",
    "deit_tiny_patch16_224", "coat_tiny",
)  # fmt: skip
"""They refuse images that are not 224 by 224."""

MORE_IMAGES = ("levit_128s", "levit_conv_128s", "repvit_m0_9", "repvgg_d2se")
"""Two images are too few to calibrate these on. The first three have heads with a batch norm of one
vector per image: where two agree by chance, it raises a channel a thousandfold. In the last one, 41
blocks in a row each raise a little what is not like the two images; its outputs become noise."""

MOST_CALLS = {
    "repvgg_a0": 47,
    "mobileone_s0": 89,
    "repvit_m0_9": 198,
    "repghostnet_050": 177,
    "nextvit_small": 301,
    "levit_128s": 287,
    "hgnetv2_b0": 130,
}

SMALL = (
    "repvgg_a0", "mobileone_s0", "repghostnet_050", "repvit_m0_9", "mobilenetv3_large_100",
)  # fmt: skip
"""Also checked in half precision, where a CPU is slow."""

LARGEST_ERROR = {"float32": 1e-2, "float16": 1.0, "bfloat16": 1.0}
"""Of the model in training form, relative to its outputs: beyond it, any other would do as well."""

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORM_FUNCTIONS = ("layer_norm", "group_norm", "rms_norm")
PRODUCTS = ("mul", "mul_", "imul", "multiply")


@pytest.mark.parametrize("name", NAMES)
def test_compiles(name: str) -> None:
    found = problems(name)
    assert not found, f"{name}:\n" + "\n".join(found)


def problems(name: str) -> list[str]:
    """What is wrong with a compiled model.

    Only words are returned: what a failed test holds on to stays in memory until the run ends.
    """
    size = 224 if name in FIXED_SIZE else 128
    model = trained(name, size, images=16 if name in MORE_IMAGES else 2)
    fused = reparam.compile(model, passes=passes.DEFAULT)
    left = list(survivors(fused))
    calls = count_calls(fused)
    found = [*different(model, fused, torch.randn(1, 3, size, size)), *unexplained(fused, left)]
    norms = [survivor.path for survivor in left if survivor.kind == "batch norm"]
    if name in WITHOUT_BATCH_NORMS and norms:
        found.append(f"{len(norms)} batch norms are left: {some(norms)}")
    if calls > MOST_CALLS.get(name, calls):
        found.append(f"{calls} calls, not at most {MOST_CALLS[name]}")
    # Plain torch.fx traces each of these models: there is none for which this can't be compared.
    by_hand = count_calls(fx.symbolic_trace(timm.utils.model.reparameterize_model(model)))
    if calls > by_hand:
        found.append(f"{calls} calls, but {by_hand} by hand")
    return found


def count_calls(traced: fx.GraphModule) -> int:
    """How many of torch's modules and functions a graph calls.

    A module of timm's that stays whole counts as all that it calls: it saves nothing.
    """
    total = 0
    for node in traced.graph.nodes:
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is None or from_torch(module):
            total += node.op.startswith("call")
        else:  # on a copy: a trace may leave something behind in what it traces
            total += count_calls(fx.symbolic_trace(copy.deepcopy(module)))
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", SMALL)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model = trained(name, 64, images=16).to(dtype)
    fused = reparam.compile(model, passes=passes.DEFAULT)
    # Of one image, the error is a draw: that of equal models differs by factors of 0.5 to 1.8.
    found = list(different(model, fused, torch.randn(4, 3, 64, 64, dtype=dtype)))
    assert not found


def trained(name: str, size: int, images: int) -> nn.Module:
    """timm's model in training form, as if it had been trained."""
    return randomised(timm.create_model(name), torch.randn(images, 3, size, size))


class Toy(nn.Module):
    """One of each that can survive, as a module and as a call, and what is none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.functional = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.norm, self.plain = nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False)
        self.gamma = nn.Parameter(torch.rand(4))
        self.table = nn.Parameter(torch.rand(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        own = self.functional
        x = F.batch_norm(self.bn(x), own.running_mean, own.running_var, own.weight, own.bias)
        x = F.layer_norm(self.norm(self.plain(x)), (4,), None, self.gamma) * self.table
        return 2 * x * self.gamma.reshape(1, 4)


def test_survivors_are_found_and_named() -> None:
    """The measure itself: a remark on another scale, or on the block around, explains nothing."""
    nested = nn.Sequential(nn.Sequential(Toy()))
    left = list(survivors(fx.symbolic_trace(nested.eval())))
    assert [(survivor.kind, survivor.path) for survivor in left] == [
        ("batch norm", "0.0.bn"),
        ("batch norm", "0.0.functional.running_mean"),
        ("norm", "0.0.norm"),
        ("norm", "0.0.gamma"),
        ("scale", "0.0.gamma"),
    ]
    names = {"0.0.bn", "0.0.functional.batch_norm", "0.0.norm", "0.0.layer_norm_1", "0.0.mul_2"}
    assert not list(silent(left, names))
    for name in names:
        for other in ("0", "0.0.table.mul", f"{name}.inner", "0.0.add"):
            assert len(list(silent(left, {*names, other} - {name}))) == 1


def test_distilled_models_average_two_heads() -> None:
    assert hasattr(timm.create_model("repvit_m0_9").head, "head_dist")
    assert hasattr(timm.create_model("levit_128s"), "head_dist")
    assert hasattr(timm.create_model("levit_conv_128s"), "head_dist")


def different(model: nn.Module, fused: fx.GraphModule, x: Tensor) -> Iterator[str]:
    """Whether the compiled model computes something else, or nobody could tell."""
    equivalence = reparam.verify(model, fused, x)
    try:
        equivalence.raise_if_different()
    except reparam.VerificationError as error:
        yield str(error)
    if equivalence.rmse_model > LARGEST_ERROR[equivalence.dtype] * equivalence.rms:
        yield f"the original itself is too far off to compare with; {equivalence}"


@dataclass(frozen=True)
class Survivor:
    """What the passes exist to fold, and did not.

    Attributes:
        kind: "batch norm", "norm" for another one with an affine, or "scale".
        path: of the module, or of the parameter or buffer that a call reads.
        names: what a remark about it may call it.
        pattern: the same for a call inside a module, whose number is not known here.
    """

    kind: str
    path: str
    names: frozenset[str]
    pattern: str


def unexplained(fused: fx.GraphModule, left: list[Survivor]) -> Iterator[str]:
    """Survivors that no missed remark names, by kind."""
    missed = reparam.report(fused).missed
    named = {name for remark in missed for name in (remark.call, remark.blocker) if name}
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for survivor in silent(left, named):
        paths[survivor.kind].append(survivor.path)
    for kind, group in paths.items():
        yield f"{len(group)} of kind {kind} left without a remark: {some(group)}"


def silent(left: list[Survivor], named: set[str]) -> Iterator[Survivor]:
    """Those of which no name is among the given ones.

    Several scales that one forward multiplies by can't be told apart by the names of its calls;
    there have to be as many names then.
    """
    groups: defaultdict[tuple[str, str], set[Survivor]] = defaultdict(set)
    for survivor in left:
        groups[survivor.kind, survivor.pattern].add(survivor)
    for (_, pattern), members in groups.items():
        names = frozenset[str]().union(*(member.names for member in members))
        matching = [name for name in named if name in names or re.fullmatch(pattern, name)]
        if len(matching) < len(members):
            yield from sorted(members, key=lambda member: member.path)


def survivors(fused: fx.GraphModule) -> Iterator[Survivor]:
    """The batch norms, affine norms and scales per channel that a graph still runs, by call."""
    constants = constant_nodes(fused.graph)
    for node in fused.graph.nodes:
        if node.op == "call_module":
            yield from _in_module(fused.get_submodule(str(node.target)), str(node.target))
        elif node.op in ("call_function", "call_method") and node not in constants:
            function = str(getattr(node.target, "__name__", node.target))
            kind = _kind(function)
            paths = [path for source in node.all_input_nodes for path in constants.get(source, ())]
            if kind == "scale":
                tensors = [attribute(fused, path) for path in paths]
                paths = paths if all(map(per_channel, tensors)) else []
            if kind and (paths or kind == "batch norm"):
                yield _of_call(kind, function, paths or [node.name])


def _in_module(module: nn.Module, called: str) -> Iterator[Survivor]:
    """Those of a module that is called, which may be one itself or keep them inside.

    Inside of one that stays whole, a remark on any module around it, up to the one called, says
    why it was not folded.
    """
    for inner, part in module.named_modules():
        path = f"{called}.{inner}" if inner else called
        kind = _module_kind(part)
        paths = [path] if kind in ("batch norm", "norm") else []
        if kind == "scale":
            parameters = part.named_parameters(recurse=False)
            paths = [f"{path}.{name}" for name, tensor in parameters if per_channel(tensor)]
        for own in paths:
            steps = inner.split(".") if inner else []
            around = {".".join([called, *steps[:n]]) for n in range(len(steps) + 1)}
            names = frozenset({own, *around, unnumbered(called)})
            yield Survivor(str(kind), own, names, re.escape(own))


def _module_kind(module: nn.Module) -> str | None:
    if "BatchNorm" in type(module).__name__:
        return "batch norm"
    if isinstance(module, NORMS):
        # What has no γ may still have a β, and the other way round.
        return "norm" if any(True for _ in module.parameters(recurse=False)) else None
    return None if from_torch(module) else "scale"


def from_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn")


def _kind(function: str) -> str | None:
    if function == "batch_norm":
        return "batch norm"
    if function in NORM_FUNCTIONS:
        return "norm"
    return "scale" if function in PRODUCTS else None


def _of_call(kind: str, function: str, paths: list[str]) -> Survivor:
    """One that a function computes from parameters or buffers of a module.

    The call of a function is named after the module whose forward makes it. One that a compile
    has made anew has parameters named after the call.
    """
    owners = [path.rpartition(".")[0] for path in paths]
    names = frozenset({*paths, *owners, *map(unnumbered, owners)} - {""})
    prefix = re.escape(f"{owners[0]}.") if owners[0] else ""
    stem = "(i?mul|multiply)" if kind == "scale" else re.escape(function)
    return Survivor(kind, paths[0], names, rf"{prefix}{stem}_?(_\d+)?")


def constant_nodes(graph: fx.Graph) -> dict[fx.Node, tuple[str, ...]]:
    """The nodes that follow from parameters and buffers alone, with the paths of these."""
    found: dict[fx.Node, tuple[str, ...]] = {}
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr":
            found[node] = (str(node.target),)
        elif node.op.startswith("call") and sources and all(s in found for s in sources):
            found[node] = tuple(path for source in sources for path in found[source])
    return found


def attribute(root: nn.Module, path: str) -> object:
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)


def per_channel(tensor: object) -> bool:
    """Whether it has at most one axis longer than 1; one number for all channels is no other."""
    return isinstance(tensor, Tensor) and sum(size > 1 for size in tensor.shape) <= 1


def unnumbered(path: str) -> str:
    """A path without what lowering appends to a name that is taken."""
    return re.sub(r"(\.fused|_fused\d*)$", "", path)


def some(paths: list[str]) -> str:
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return ", ".join(paths[:4]) + more
