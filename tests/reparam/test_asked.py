"""What only Python can tell of a tensor: answered as the model would be, or the trace gives up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.known import HELD
from tests.bad_inputs.outcomes import compiled, same
from tests.fused import operators
from tests.passes.alone import Net
from tests.strategies import drawn

X = drawn(0, 2, 3, 8, 8)

Forward = Callable[[Any, Any], Any]

pytestmark = pytest.mark.usefixtures("without_annotation_checks")


def times(factor: Callable[[Any, Tensor], float]) -> Forward:
    """A folded batch norm, times what Python makes of what it is told."""
    return lambda m, x: m.norm(m.conv(x)) * factor(m, x)


def model(forward: Forward) -> nn.Module:
    layers = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4)}
    net = Net(forward, **layers).double().eval()
    net.register_parameter("gain", nn.Parameter(torch.ones(1)))
    return net


QUESTIONS: dict[str, Callable[[Any, Any], float]] = {
    "is it a parameter": lambda m, x: 3.0 if isinstance(m.gain, nn.Parameter) else 1.0,
    "a size in a dictionary": lambda m, x: {8: 3.0}.get(x.shape[-1], 1.0),
    "a dtype in a dictionary": lambda m, x: {torch.float64: 3.0}.get(x.dtype, 1.0),
    "sizes in a set": lambda m, x: 3.0 if tuple(x.shape[2:]) in {(8, 8)} else 1.0,
    "an attribute": lambda m, x: 2.0 if hasattr(x, "tensors") else 1.0,
    "an attribute with a default": lambda m, x: 2.0 if getattr(x, "tensors", None) else 1.0,
    "a gradient": lambda m, x: 2.0 if x.grad_fn is None else 1.0,
    "another gradient": lambda m, x: 2.0 if x.grad is None else 1.0,
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("question", QUESTIONS)
def test_questions(question: str, given: bool) -> None:
    original = model(times(QUESTIONS[question]))
    same(original, compiled(original, X if given else None), X)


@pytest.mark.parametrize("given", [False, True])
def test_a_result_that_is_none(given: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y, weights = m.attention(x, x, x, need_weights=False)
        return y * 2 if weights is None else y

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    original, x = Net(forward, attention=attention).double().eval(), drawn(1, 2, 5, 8)
    same(original, compiled(original, x if given else None), x)


@pytest.mark.parametrize("given", [False, True])
def test_what_is_kept_by_the_name_of_a_device(given: bool) -> None:
    """As biases of attention are, in every call after the first."""

    def forward(m: Any, x: Tensor) -> Tensor:
        name = str(x.device)
        if name not in m.cache:
            m.cache[name] = m.gain[torch.zeros(4, dtype=torch.long)].reshape(4, 1, 1)
        return m.norm(m.conv(x)) + m.cache[name]

    original: Any = model(forward)
    original.cache = {}
    fused = compiled(original, X if given else None)
    assert "BatchNorm2d" not in operators(fused)
    same(original, fused, X)


@pytest.mark.parametrize("given", [False, True])
def test_a_message_about_sizes_is_no_obstacle(given: bool) -> None:
    """It is put together before it is known whether anybody reads it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"it has {x.ndim} axes, and the sizes {x.shape}, {x.shape[0]}")
        return m.norm(m.conv(x))

    original = model(forward)
    fused = compiled(original, X if given else None)
    assert "BatchNorm2d" not in operators(fused)
    same(original, fused, drawn(1, 5, 3, 9, 7))


def test_an_assertion_that_somebody_catches() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        try:
            assert x.shape[-1] % 4 == 0
        except AssertionError:
            x = F.pad(x, (0, 4 - x.shape[-1] % 4))
        return m.norm(m.conv(x))

    original = model(forward)
    fused = compiled(original, X[..., :7])
    same(original, fused, X[..., :7])
    with pytest.raises(AssertionError, match=HELD):
        fused(X)


def test_a_forward_of_the_models_own() -> None:
    original = model(times(lambda m, x: 1.0))
    vars(original)["forward"] = lambda x: original.norm(original.conv(x)).relu()
    same(original, compiled(original), X)


def test_a_model_that_looks_at_its_dtype() -> None:
    """In float64 it is another one, and no reference."""
    original = model(times(lambda m, x: 3.0 if x.dtype == torch.float32 else 1.0)).float()
    wrong = model(times(lambda m, x: 1.0)).float()
    wrong.load_state_dict(original.state_dict())
    with pytest.raises(reparam.VerificationError, match="may look at its dtype"):
        reparam.verify(original, wrong, X.float())
