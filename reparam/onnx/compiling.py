"""Compile an ONNX file: the same passes, over the same values, checked in the real runtime."""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from reparam.account import Work, account
from reparam.compiler import checked_passes
from reparam.driver import Driver, Listener, Verify
from reparam.errors import OnnxError, PassError
from reparam.export import publish, target_file
from reparam.export_graph import extra, quiet
from reparam.lift import lift_graph
from reparam.onnx.reading import read
from reparam.onnx.running import compared
from reparam.onnx.saving import check_target, save
from reparam.onnx.translate import translated
from reparam.onnx.writing import transcribed, written
from reparam.pipelines import Pass
from reparam.report import Counts, Remark, Report
from reparam.rewrite import Rewrite
from reparam.verify import Equivalence


@dataclass(frozen=True)
class OnnxCompilation:
    """What became of an ONNX file.

    Attributes:
        path: of the new file. Weights that lay beside the old one are beside it, in `<name>.data`.
        opset: its version of the ONNX operators, which is the old one's.
        report: the account, as of a module: nodes are called by their names in the file.
        equivalence: how far both are from the old one in float64; None where it can't be run.
        checked: shapes of the inputs that both were run on, `2×3×64×64`.
        bytes: size on disk, weights included.
    """

    path: Path
    opset: int
    report: Report
    equivalence: Equivalence | None
    checked: tuple[str, ...]
    bytes: int


def compile_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    passes: Sequence[Pass] | None = None,
    verify: Verify = True,
    remarks: Listener | None = None,
) -> OnnxCompilation:
    """Fuse what can be fused exactly in an ONNX file, and write a new one.

    It is checked before it gets its name: by `onnx.checker`, and in ONNX Runtime against the old
    one, on random inputs of several sizes, by the measure of `reparam.verify`. If anything fails
    there is no new file, and one that was there before is as it was.

    Args:
        source: the file, of opset 11 or later. It is not changed, unless it is the target as well.
        target: the new file. Its folder has to exist; a file of that name is replaced.
        passes: rewrites; `default_passes()` if None. Passes of torch.fx can't run on a file.
        verify: whether to check each rewrite in float64 before it is made; "proof" to prove each
            over a finite field as well. The file is run in any case.
        remarks: called with each `Remark` as it is made.

    Raises:
        OnnxError: if the source can't be read, is no valid ONNX file, or the result does not run.
        VerificationError: if the result computes something else.
        PassError: if something among `passes` is no rewrite.
        ExportError: if the target can't be written.
        MissingExtraError: if `reparam[onnx]` is not installed.
    """
    for module in ("onnx", "onnx_graphsurgeon", "onnxruntime"):
        extra(module)
    begun = time.perf_counter()
    rewrites = _rewrites(passes)
    place = target_file(target)
    file = read(Path(source))
    check_target(file, place)
    program = translated(file)
    before = counts(file.proto)
    values = lift_graph(program.capture, told=program.told)
    known = transcribed(values)
    driver = Driver(values, rewrites, verify, remarks or _ignore)
    driver.run()
    # Where nothing was done, not even what was evaluated is written anew.
    changed = any(remark.kind == "applied" for remark in driver.remarks)
    proto = written(program, values, known) if changed else file.proto
    try:
        with tempfile.TemporaryDirectory(prefix=".reparam-", dir=place.parent) as folder, quiet():
            files = save(proto, file, Path(folder) / place.name)
            said = list(driver.remarks)
            equivalence, checked, why = compared(file.path, files[-1], program)
            if why is not None:
                said.append(Remark("analysis", "verify", "", f"the whole was not run: {why}"))
            size = sum(each.stat().st_size for each in files)
            publish(files, place, Path(folder))
    except OSError as error:
        raise OnnxError(f"can't write {place}: {error.strerror or error}") from error
    work = Work(said, before, counts(proto), driver.unchecked, driver.seconds_proving)
    whole = None if equivalence is None else str(equivalence)
    report = account(work, verify, whole, time.perf_counter() - begun)
    return OnnxCompilation(place, file.opset, report, equivalence, checked, size)


def _rewrites(passes: Sequence[Pass] | None) -> tuple[Rewrite, ...]:
    """The passes.

    Raises:
        PassError: if one of them is no rewrite.
    """
    chosen = checked_passes(passes)
    rewrites = tuple(one for one in chosen if isinstance(one, Rewrite))
    if len(rewrites) < len(chosen):
        raise PassError("passes of torch.fx take modules; on an ONNX file only rewrites can run")
    return rewrites


def counts(proto: Any) -> Counts:
    """The nodes of a file's graph, by their operators, and the elements of its weights."""
    total = sum(prod(tensor.dims) for tensor in proto.graph.initializer)
    return Counts(dict(Counter(node.op_type for node in proto.graph.node)), total)


def _ignore(_: Remark) -> None:
    """Nobody listens."""
