"""Compile a generated graph, and hold the result against the model."""

from collections.abc import Sequence

from torch import nn

from reparam.compiler import compile as compile_model
from reparam.errors import VerificationError, first_line
from reparam.pipelines import Pass
from reparam.report import Report, report
from reparam.testing.equivalence import difference
from reparam.testing.failures import CheckFailed, went_wrong
from reparam.testing.graph import Graph
from reparam.testing.programs import compile_program
from reparam.testing.sameness import State, shared_memory


def check_graph(graph: Graph, passes: Sequence[Pass] | None = None) -> Report:
    """Compile a graph, and assert that the result is the same function at all its sizes.

    For tests of one's own that draw graphs: of a pipeline, or with another fuzzer.

    Args:
        graph: one that `graphs` drew.
        passes: as for `reparam.compile`.

    Returns:
        The report of the compile.

    Raises:
        CheckFailed: if the compile fails, the result differs, a pass fails or a check refused what
            it returned, or the model is not as it was; with a program that shows it.
    """
    model = graph.build()
    state = State(model)
    try:
        fused, _ = compiled(graph, model, passes)
        for inputs in graph.examples():
            if (found := difference(model, fused, inputs)) is not None:
                raise CheckFailed(f"the compiled model, {found}")
        if (changed := state.changed(model)) is not None:
            raise CheckFailed(f"the compile changes the model that it is given: {changed}")
        if (taken := shared_memory(model, fused, graph.example())) is not None:
            raise CheckFailed(taken)
        account = report(fused)
        if wrong := list(filter(went_wrong, account.missed)):
            raise CheckFailed(str(wrong[0]))
    except CheckFailed as found:
        raise CheckFailed(found.finding, compile_program(graph), graph.nodes) from found
    except Exception as error:
        finding = f"the compile fails with {type(error).__name__}: {first_line(error)}"
        raise CheckFailed(finding, compile_program(graph), graph.nodes) from error
    return account


def compiled(
    graph: Graph, model: nn.Module, passes: Sequence[Pass] | None, verify: bool = True
) -> tuple[nn.Module, bool]:
    """The compiled model, and whether the comparison of the whole refused it for its roundings.

    A small model may have bad luck with these; `difference` tells that from a fault. In float64
    there is no luck.

    Raises:
        VerificationError: if it is refused in float64.
    """
    example = graph.example() if graph.given else None
    try:
        return compile_model(model, example, passes=passes, verify=verify), False
    except VerificationError:
        if graph.dtype == "float64":
            raise
        return compile_model(model, example, passes=passes, verify=False), True
