"""Exports of whole models in training form, by both of torch's exporters.

What is left of each is what the module path leaves of the module, and computes the same.
"""

import contextlib
import io
import warnings
from collections import Counter
from pathlib import Path

import onnx
import pytest
import timm
import torch
from torch import Tensor, nn

import fastvit_models
import passes
import reparam
from benchmarks.onnx_files import export
from tests.onnx.files import session
from tests.randomised import randomised

EXPORTERS = ("torchscript", "dynamo")

OURS = tuple(fastvit_models.list_models("fastvit_*"))
THEIRS = (
    "repvgg_a0", "mobileone_s0", "repvit_m0_9", "resnet18", "mobilenetv3_small_050",
    "efficientnet_b0", "repghostnet_050", "convnext_atto", "regnety_002", "levit_128s",
)  # fmt: skip

LAYERS = (
    "Conv", "BatchNormalization", "Gemm", "MatMul", "LayerNormalization", "ConvTranspose",
    "AveragePool", "MaxPool", "Softmax",
)  # fmt: skip
ARITHMETIC = ("Add", "Sub", "Mul", "Div")


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    size = 224 if name == "levit_128s" else 64  # which takes no other
    image = torch.randn(2, 3, size, size)
    make = fastvit_models.create_model if name in OURS else timm.create_model
    return randomised(make(name).eval(), image), image


def counts(path: Path) -> Counter[str]:
    graph = onnx.load(path, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def compiled_alike(name: str, exporter: str, folder: Path) -> None:
    """Compile the exported module, and export the compiled one: the same is left."""
    model, image = build(name)
    raw, fused, module = (folder / f"{kind}.onnx" for kind in ("raw", "fused", "module"))
    export(model, image, raw, exporter)
    made = reparam.compile_onnx(raw, fused, passes=passes.DEFAULT)
    assert made.equivalence is not None
    assert made.equivalence.equivalent
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        export(reparam.compile(model, passes=passes.DEFAULT), image, module, exporter)
    found, wanted = counts(fused), counts(module)
    assert {op: found[op] for op in LAYERS} == {op: wanted[op] for op in LAYERS}
    assert all(found[op] <= wanted[op] for op in ARITHMETIC), (found, wanted)
    assert found.total() <= wanted.total(), (found - wanted, wanted - found)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_repvgg(exporter: str, tmp_path: Path) -> None:
    compiled_alike("repvgg_a0", exporter, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_models(name: str, exporter: str, tmp_path: Path) -> None:
    compiled_alike(name, exporter, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", THEIRS)
def test_round_trip_without_a_pass(name: str, exporter: str, tmp_path: Path) -> None:
    """Same outputs, names and metadata: what is not rewritten is not touched."""
    model, image = build(name)
    raw, same = tmp_path / "raw.onnx", tmp_path / "same.onnx"
    export(model, image, raw, exporter)
    reparam.compile_onnx(raw, same, passes=())
    before, after = onnx.load(raw), onnx.load(same)
    kept = {node.name for node in after.graph.node}
    assert [node for node in before.graph.node if node.name in kept] == list(after.graph.node)
    for field in ("input", "output"):
        assert getattr(before.graph, field) == getattr(after.graph, field)
    for field in ("opset_import", "metadata_props", "producer_name", "ir_version", "functions"):
        assert getattr(before, field) == getattr(after, field)
    feed = {"x": image.numpy()}
    old, new = (torch.as_tensor(session(path).run(None, feed)[0]) for path in (raw, same))
    assert torch.equal(old, new)
