"""Damaged ONNX files: what a fuzz compiles, each in a process of its own."""

import os
import random
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import passes
from reparam import ReparamError, compile_onnx
from tests.onnx.files import IMAGE, Array, batch_norm, draw, model, node, session, statistics, value

LIMIT = 60
"""Seconds that one file may take."""

SECRET = "../secret"
"""A file outside of the folder: whoever opens it waits for ever."""

NUMBERS = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 16, 255, 2**31 - 1, 2**40, 2**63 - 1)
WORDS = ("", "x", "y", "w", SECRET, "/etc/passwd", "..", "\0", "constant", "SAME_UPPER", "é" * 300)
WEIGHTS = {"w": draw(4, 4, 3, 3), "v": draw(4, 4, 1, 1), **statistics(4)}


def originals() -> Iterator[onnx.ModelProto]:
    """Small files that have in them what files have."""
    conv = node("Conv", "x w", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    norm, relu = batch_norm("a", "b"), node("Relu", "c", "y")
    yield model([conv, norm, node("Conv", "x v", "d"), node("Add", "b d", "c"), relu], WEIGHTS)
    then = helper.make_graph([node("Mul", "b g", "t")], "then", [], [value("t", IMAGE)])
    other = helper.make_graph([node("Neg", "b", "e")], "else", [], [value("e", IMAGE)])
    branch = helper.make_node("If", ["p"], ["y"], "if", then_branch=then, else_branch=other)
    chosen = [node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s z", "p"), branch]
    extra = {"z": np.array(0, np.float32), "g": draw(4, 1, 1)}
    yield model([conv, norm, *chosen], WEIGHTS | extra)
    tokens = {"k": draw(4, 6), "u": draw(4), "o": draw(6), "shape": np.array([0, 2, 3])}
    linear = [
        node("LayerNormalization", "x u u", "a", axis=-1), node("Gemm", "a k o", "b", beta=0.5),
        node("Reshape", "b shape", "c"), node("Transpose", "c", "d", perm=[0, 2, 1]),
        node("Softmax", "d", "y"),
    ]  # fmt: skip
    yield model(linear, tokens, {"x": ("n", 4)})
    layers = [
        node("ConvTranspose", "x w", "a", strides=[2, 2], output_padding=[1, 1]),
        batch_norm("a", "b"),
        node("AveragePool", "b", "c", kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", "c x", "d", axis=1), node("Split", "d", "e y", axis=1),
    ]  # fmt: skip
    yield model(layers, WEIGHTS, {"x": (1, 4, 6, 6)}, opset=11)
    function = helper.make_function(
        "acme", "Twice", ["u"], ["v"], [node("Add", "u u", "v")], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("Twice", ["b"], ["y"], "call", domain="acme")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    yield model([conv, norm, call], WEIGHTS, functions=[function], opset_imports=opsets)


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every field that is set, of a message and of those in it."""
    for field, content in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for inner in content if field.is_repeated else [content]:
                yield from _fields(inner)


def _other(content: Any, draws: random.Random) -> Any:
    """Something else of the same type."""
    match content:
        case bool():
            return not content
        case int():
            return draws.choice((*NUMBERS, content + 1, content - 1))
        case float():
            return draws.choice((0.0, -1.0, float("nan"), float("inf"), 1e30, content * 2))
        case bytes():
            cut = draws.randrange(len(content) + 1)
            return draws.choice(
                (content[:cut], content + b"\0", draws.randbytes(len(content)), b"")
            )
        case _:
            return draws.choice(WORDS)


def mutate(proto: onnx.ModelProto, draws: random.Random) -> None:
    """Change one thing in a file, somewhere."""
    message, field = draws.choice(list(_fields(proto)))
    content = getattr(message, field.name)
    if not field.is_repeated:
        if field.message_type is not None or draws.random() < 0.2:
            message.ClearField(field.name)
            return
        with suppress(ValueError):  # it does not fit into this field
            setattr(message, field.name, _other(content, draws))
        return
    place = draws.randrange(len(content))
    match draws.randrange(4):
        case 0:
            del content[place]
        case 1 if field.message_type is not None:
            content.add().CopyFrom(content[place])
        case 2 if field.message_type is None:
            with suppress(ValueError):
                content[place] = _other(content[place], draws)
        case _:
            others = list(content)
            draws.shuffle(others)
            del content[:]
            content.extend(others)


def damaged(seed: int, path: Path) -> None:
    """Write a damaged file, and its weights beside it if they lie there."""
    draws = random.Random(seed)
    made = list(originals())
    proto = made[seed % len(made)]
    if draws.random() < 0.3:
        onnx.save(proto, path, save_as_external_data=True, location="weights", size_threshold=0)
        proto = onnx.load(path, load_external_data=False)
    if draws.random() < 0.7:
        for _ in range(draws.choice((1, 1, 1, 2, 4))):
            mutate(proto, draws)
    content = bytearray(proto.SerializeToString())
    if draws.random() < 0.4:
        for _ in range(draws.choice((1, 2, 8))):
            place = draws.randrange(len(content) + 1)
            match draws.randrange(3):
                case 0:
                    del content[place:]
                case 1:
                    content[place:place] = draws.randbytes(draws.randrange(1, 9))
                case _:
                    content[place : place + 1] = draws.randbytes(1)
            content = content or bytearray(b"\0")
    path.write_bytes(content)


def _compile(folder: Path) -> str:
    """What becomes of a damaged file: `refused`, `right`, or what is wrong."""
    source, target = folder / "in" / "source.onnx", folder / "in" / "fused.onnx"
    try:
        made = compile_onnx(source, target, passes=passes.DEFAULT)
    except ReparamError as error:
        left = sorted(path.name for path in (folder / "in").iterdir())
        if set(left) - {"source.onnx", "weights"}:
            return f"left behind: {left}"
        return "refused" if "\n" not in str(error) else f"of several lines: {error}"
    if made.equivalence is None:
        return "not run"
    old, new = session(source), session(target)
    feed = {
        each.name: draw(*(size.dim_value or 3 for size in each.type.tensor_type.shape.dim))
        for each in onnx.load(source, load_external_data=False).graph.input
        if each.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    try:
        expected = old.run(None, feed)
    except Exception:
        return "right"
    for y, z in zip(expected, new.run(None, feed), strict=True):
        if y.shape != z.shape or not _alike(y.astype(np.float64), z.astype(np.float64)):
            return f"wrong: {y} and {z}"
    return "right"


def _alike(y: Array, z: Array) -> bool:
    """Whether two results are the same but for roundings of their largest numbers."""
    largest = float(np.abs(y[np.isfinite(y)]).max(initial=1))
    return np.allclose(y, z, 1e-3, 1e-3 * largest, equal_nan=True)


def outcome(seed: int) -> str:
    """What becomes of one damaged file, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        os.mkfifo(folder / "secret")
        damaged(seed, folder / "in" / "source.onnx")
        told = folder / "told"
        child = os.fork()
        if child == 0:
            _child(folder, told)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return f"killed by signal {os.WTERMSIG(status)}"
        return told.read_text() if told.exists() else f"exit {status}"


def _child(folder: Path, told: Path) -> None:
    """The rest of a forked process."""
    import signal

    signal.alarm(LIMIT)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    try:
        text = _compile(folder)
    except BaseException:
        text = "raised " + traceback.format_exc()
    told.write_text(text)
    os._exit(0)


def main() -> None:
    """Try the seeds from one number up to another, and print what is not as it may be."""
    import torch

    torch.set_num_threads(1)
    first, last = map(int, sys.argv[1:3])
    count = dict.fromkeys(("refused", "right", "not run"), 0)
    for seed in range(first, last):
        told = outcome(seed)
        if told in count:
            count[told] += 1
        else:
            print(seed, told, flush=True)
    print(count)


if __name__ == "__main__":
    main()
