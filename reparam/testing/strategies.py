"""Hypothesis strategies for whole graphs and for blocks of one motif."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

from hypothesis import strategies as st

from reparam.errors import ReparamError
from reparam.testing.arguments import checked_shapes, whole
from reparam.testing.draft import Draft, DrawFn, Drawn
from reparam.testing.graph import Graph
from reparam.testing.motifs_branches import BRANCH_MOTIFS
from reparam.testing.motifs_other import ANY_MOTIFS, FLAT_MOTIFS, IMAGE_MOTIFS
from reparam.testing.motifs_series import SERIES_MOTIFS
from reparam.testing.motifs_tokens import ATTENTION_MOTIFS, MAP_MOTIFS, TO_TOKENS, TOKEN_MOTIFS
from reparam.testing.own_blocks import BlockMotif


@runtime_checkable
class Motif(Protocol):
    """A few steps from one tensor to another."""

    @property
    def __name__(self) -> str:
        """What it is called."""
        ...

    def __call__(self, d: Draft, x: Drawn, /) -> Drawn:
        """Add the steps to a draft."""
        ...


FORMS: dict[str, tuple[Motif, ...]] = {
    "images": (*BRANCH_MOTIFS, *SERIES_MOTIFS, *IMAGE_MOTIFS, *TO_TOKENS),
    "tokens": (*TOKEN_MOTIFS, *ATTENTION_MOTIFS, *FLAT_MOTIFS),
    "features": (*TOKEN_MOTIFS, *FLAT_MOTIFS),
    "maps": (*MAP_MOTIFS, *FLAT_MOTIFS),
}
"""The motifs that take each form of a tensor."""

MOTIFS: Mapping[str, Motif] = {
    motif.__name__: motif for several in (*FORMS.values(), ANY_MOTIFS) for motif in several
}
"""All motifs by their names."""

OFTEN = (
    "up_norm",
    "joined_norm",
    "attention",
    "image_attention",
    "norm_scale",
    "two_convs",
    "conv_pad",
)
"""Those that are drawn twice as often, since just one or two passes are for what they have."""

DRAWN = (*MOTIFS.values(), *(MOTIFS[name] for name in OFTEN))

SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((2, 4, 7, 6), 2),
    ((2, 4, 6, 6), 2),
    ((2, 3, 5, 8), 2),
    ((2, 6, 8, 8), 2),
    ((2, 5, 4), 0),
    ((2, 4, 7), 1),
    ((4, 6), 0),
    ((2, 7, 6), 0),
    ((2, 6, 7, 5), 2),
    ((2, 4, 4, 5, 6), 3),
)
"""Of the inputs of a graph, and how many axes stand behind the channels."""

DTYPES = ("float64", "float64", "float32", "float64", "float32", "bfloat16")
KNOWN = (*dict.fromkeys(DTYPES), "float16")
"""What may be asked for beside, too."""

WIDEST = 24
"""Rows or columns beyond which no motif reads an image."""

LONGEST = 40
"""Steps after which no motif is added."""


def _fitting(x: Drawn, motifs: Sequence[Motif]) -> list[Motif]:
    """The motifs that take a tensor of this form."""
    takes = (*FORMS[x.form], *ANY_MOTIFS)
    return [m for m in motifs if (m.fits(x.shape) if isinstance(m, BlockMotif) else m in takes)]


def _next(d: Draft, current: Drawn, motifs: Sequence[Motif]) -> tuple[Drawn, bool]:
    """One more motif, perhaps brought together with an earlier tensor; and whether to go on."""
    more = d.integer(0, 7) > 0
    x = d.choose(*d.tensors[-4:]) if d.rarely(8) else current
    if x.form == "images" and not 1 < max(x.sizes) <= WIDEST:
        x = d.tensors[0]  # a single pixel, which some layers refuse, or too large to be quick
    fitting = _fitting(x, motifs) or _fitting(x, tuple(MOTIFS.values()))
    motif = d.choose(*fitting)
    d.motifs.append(motif.__name__)
    y = motif(d, x)
    if y.shape == x.shape and d.rarely(8):
        return d.step("{0} + {1}", x, y), more  # nested: a skip around all of it
    twins = [t for t in d.tensors if t.shape == y.shape and t.n == y.n and t not in (x, y)]
    if twins and d.rarely(12):
        return d.step(d.choose("{0} + {1}", "{0} - {1}"), y, d.choose(*twins[::-1])), more
    return y, more


def graphs(
    *,
    motifs: Sequence[Motif] | None = None,
    shapes: Sequence[tuple[tuple[int, ...], int]] = SHAPES,
    dtypes: Sequence[str] = DTYPES,
    max_motifs: int = 5,
) -> st.SearchStrategy[Graph]:
    """Whole graphs, valid by construction: structure is drawn, and one seed of all numbers.

    Args:
        motifs: what graphs are put together from; all of `MOTIFS` if None.
        shapes: of the inputs, batch first, and how many axes stand behind the channels.
        dtypes: of parameters and inputs.
        max_motifs: how many there are at most.

    Raises:
        ReparamError: if there are none of these, or one is not known.
    """
    chosen = DRAWN if motifs is None else motifs
    _require_known("motifs", chosen, [*MOTIFS.values()], "values of reparam.testing.MOTIFS")
    _require_known("dtypes", dtypes, KNOWN, ", ".join(KNOWN))
    most = whole("max_motifs", max_motifs, 1)
    return _graphs(tuple(chosen), checked_shapes(shapes), tuple(dtypes), most)


def _require_known(name: str, given: Any, known: Sequence[Any], told: str) -> None:
    """Raise ReparamError unless there is one at least, and each is known or a user's own block."""
    several = [*cast("Sequence[Any]", given)] if isinstance(given, list | tuple) else []
    if not several or not all(isinstance(each, BlockMotif) or each in known for each in several):
        raise ReparamError(f"{name} are one or more of the {told}, not {given!r}")


@st.composite
def _graphs(
    draw: DrawFn,
    chosen: tuple[Motif, ...],
    shapes: tuple[tuple[tuple[int, ...], int], ...],
    dtypes: tuple[str, ...],
    max_motifs: int,
) -> Graph:
    d = Draft(draw)
    able = [s for s in shapes if _fitting(Drawn(0, *s), chosen)] or list(shapes)
    dtype = d.choose(*dtypes)
    shape, n = d.choose(*able)
    if dtype != "float64":  # more numbers, so that roundings even out
        shape = (8, *shape[1:])
    dtype = "float32" if dtype == "bfloat16" and n == 3 else dtype  # torch lacks some of it
    current = d.add_input(shape, n)
    more = True
    while more and len(d.motifs) < max_motifs and len(d.steps) < LONGEST:
        current, more = d.together(partial(_next, d, current, chosen))
    outputs = [current]
    while d.rarely(5):
        outputs.append(d.choose(d.tensors[-1], *d.tensors[1:]))
    if d.rarely(4):  # a result that is a tensor of its own, and has to stay one
        outputs.append(d.step(d.choose("{0} * 1", "{0} + 0"), d.choose(*d.tensors)))
    special = dtype == "float64" and d.rarely(4)  # a variance of 0 makes roundings large
    graph = d.graph(tuple(outputs), dtype=dtype, seed=d.integer(0, 2**16), special=special)
    return replace(_hooked(d, graph), given=not d.rarely(3))


def _hooked(d: Draft, graph: Graph) -> Graph:
    """The same; rarely with a hook on one of its layers."""
    hookable = [i for i, layer in enumerate(graph.layers) if layer.kind not in ("w", "block")]
    if not hookable or not d.rarely(12):
        return graph
    which, hook = d.choose(*hookable), d.choose("forward", "pre")
    layers = list(graph.layers)
    layers[which] = replace(layers[which], hook=hook)
    return replace(graph, layers=tuple(layers))


def blocks(motif: Motif, *, dtypes: Sequence[str] = DTYPES) -> st.SearchStrategy[Graph]:
    """Graphs of just one motif, given by its function; see `MOTIFS`."""
    return graphs(motifs=(motif,), dtypes=dtypes, max_motifs=1)
