import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import Tensor, nn

import reparam
from passes import fold_after_cat
from tests.fused import operators
from tests.passes.alone import Net, fires, reasons, settled
from tests.passes.layers import BATCH_NORMS, CONVS, batch_norms
from tests.randomised import randomised
from tests.strategies import drawn

IMAGES = drawn(0, 3, 6, 5, 4).float()
TOKENS = drawn(0, 3, 5, 6).float()
SIZES = ((7, 6, 5), (4, 8, 6))


@st.composite
def joined(draw: DrawFn, n: int, channels: int = 6) -> list[nn.Module]:
    """Convolutions that leave images of one size: of kernel 1 to 5, padded in any mode."""
    stride = tuple(draw(st.integers(1, 2)) for _ in range(n))
    modes = ["zeros", "replicate", "circular", *["reflect"][: 3 - n]]
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(2, 3))):
        sides = tuple(draw(st.integers(0, 1)) for _ in range(n))
        dilation = tuple(draw(st.integers(1, 2)) for _ in range(n))
        kernel = tuple(2 * side + 1 for side in sides)
        padding = tuple(side * step for side, step in zip(sides, dilation, strict=True))
        groups = draw(st.sampled_from([1, 2, 3]))
        layers.append(
            CONVS[n](
                channels,
                groups * draw(st.integers(1, 2)),
                kernel,
                stride,
                padding,
                dilation,
                groups,
                bias=draw(st.booleans()),
                padding_mode=draw(st.sampled_from(modes)),
            )
        )
    return layers


def cat(parts: list[nn.Module], after: nn.Module | None = None, dim: int = 1) -> Net:
    """What several layers make of one input, joined, and one more layer."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = torch.cat([getattr(m, f"part{i}")(x) for i in range(len(parts))], dim)
        return y if after is None else m.after(y)

    named = {f"part{i}": part for i, part in enumerate(parts)}
    return Net(forward, **named, **({} if after is None else {"after": after}))


def width(parts: list[nn.Module]) -> int:
    return sum(part.out_channels for part in parts)


@settings(max_examples=40)
@given(st.data())
def test_batch_norm_behind_convolutions(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 3))
    parts = data.draw(joined(n))
    model = cat(parts, data.draw(batch_norms(width(parts), n)))
    x, other = (drawn(i, 3, 6, *size[:n]).float() for i, size in enumerate(SIZES))
    fused = fires(fold_after_cat, model, x, given=n == 1, others=(other,))
    assert operators(fused) == {f"Conv{n}d": len(parts), "cat": 1}


@settings(max_examples=20)
@given(st.data(), st.sampled_from([(), (3, 1, 1), (1, 3, 1, 1)]))
def test_scale(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """One number for all, or one per channel."""
    model = Net(
        lambda m, x: torch.cat([m.a(x), m.b(x)], -3) * m.scale,
        a=nn.Conv2d(6, 1, 3, padding=1, bias=data.draw(st.booleans())),
        b=nn.Conv2d(6, 2, 1, groups=2, bias=data.draw(st.booleans())),
        scale=torch.ones(shape or (1, 1, 1)),
    )
    fused = fires(fold_after_cat, model, IMAGES, given=True)
    assert operators(fused) == {"Conv2d": 2, "cat": 1}


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_on_tokens(bias: bool) -> None:
    model = Net(
        lambda m, x: torch.cat((m.a(x), m.b(x)), -1) * m.scale,
        a=nn.Linear(6, 2, bias=bias),
        b=nn.Linear(6, 5),
        scale=torch.ones(7),
    )
    assert operators(fires(fold_after_cat, model, TOKENS, given=True)) == {"Linear": 2, "cat": 1}


def test_linear_layers_and_a_batch_norm() -> None:
    parts: list[nn.Module] = [nn.Linear(6, 2), nn.Linear(6, 3, bias=False)]
    model = cat(parts, nn.BatchNorm1d(5))
    fused = fires(fold_after_cat, model, TOKENS[:, 0], given=True)
    assert operators(fused) == {"Linear": 2, "cat": 1}


def test_gamma_of_zero_or_less() -> None:
    model = cat([nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 3, padding=1)], nn.BatchNorm2d(4))
    randomised(model, IMAGES)
    model.after.weight.data.copy_(torch.tensor([0.0, -1.5, 0.0, 2.0]))
    _, report = settled(fold_after_cat, model, IMAGES)
    assert len(report.applied) == 1


def test_shared_convolution() -> None:
    """Joined twice, each time with a part of the scale of its own."""
    conv = nn.Conv2d(6, 2, 3, padding=1)
    fused = fires(fold_after_cat, cat([conv, conv], nn.BatchNorm2d(4)), IMAGES)
    assert operators(fused) == {"Conv2d": 2, "cat": 1}
    assert not torch.equal(*(p for p in fused.parameters() if p.ndim == 4))


def test_one_tensor_joined_twice() -> None:
    """It can't have the scale of both places."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.norm(torch.cat([y, y], 1))

    model = Net(forward, conv=nn.Conv2d(6, 2, 1), norm=nn.BatchNorm2d(4))
    assert reasons(fold_after_cat, model, IMAGES) == ["something else reads what is joined"]


def test_part_that_something_else_reads() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.b(x)
        return m.norm(torch.cat([m.a(x), y], 1)).mean(1, keepdim=True) + y.relu()

    model = Net(forward, a=nn.Conv2d(6, 2, 1), b=nn.Conv2d(6, 2, 1), norm=nn.BatchNorm2d(4))
    assert reasons(fold_after_cat, model, IMAGES) == ["something else reads what is joined"]


def test_concatenation_that_something_else_reads() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = torch.cat([m.a(x), m.b(x)], 1)
        return m.norm(y) + y.relu()

    model = Net(forward, a=nn.Conv2d(6, 2, 1), b=nn.Conv2d(6, 2, 1), norm=nn.BatchNorm2d(4))
    assert reasons(fold_after_cat, model, IMAGES) == ["something else reads the concatenation"]


@pytest.mark.parametrize("dim", [0, 2, 3, -1, -2, -4])
def test_joined_along_another_axis(dim: int) -> None:
    model = cat([nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)], nn.BatchNorm2d(4), dim)
    assert reasons(fold_after_cat, model, IMAGES) == ["it is joined along another axis"]


def test_tokens_joined_one_after_the_other() -> None:
    """As many as there are channels."""
    model = Net(
        lambda m, x: torch.cat((m.a(x), m.b(x)), 1) * m.scale,
        a=nn.Linear(6, 10),
        b=nn.Linear(6, 10),
        scale=torch.ones(10),
    )
    assert reasons(fold_after_cat, model, TOKENS, given=True) == ["it is joined along another axis"]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)), "batchnorm"),
        (nn.ConvTranspose2d(6, 2, 1), "convtranspose"),
        (nn.Identity(), "input"),
        (nn.Linear(4, 4), "conv"),  # over the columns
    ],
)
def test_part_that_takes_in_no_scale(part: nn.Module, name: str) -> None:
    channels = part(IMAGES).shape[1]
    model = cat([nn.Conv2d(6, 2, 1), part], nn.BatchNorm2d(2 + channels))
    found = reasons(fold_after_cat, model, IMAGES)
    # The first of a batch norm and an identity may be left to others, which is no concern here.
    expected = "sum" if isinstance(part, nn.Identity) else name
    assert found == [f"{expected} is joined, which takes in no scale"]


def test_batch_norm_over_unknown_axes() -> None:
    model = cat([nn.Conv1d(6, 2, 1), nn.Conv1d(6, 2, 1)], nn.BatchNorm1d(4), -2)
    assert reasons(fold_after_cat, model, IMAGES[..., 0]) == [
        "whether its input has spatial axes is not known; pass example_inputs"
    ]


def test_scale_that_widens_the_dtype() -> None:
    model = Net(
        lambda m, x: m.scale * torch.cat([m.a(x), m.b(x)], 1),
        a=nn.Conv2d(6, 2, 1),
        b=nn.Conv2d(6, 2, 1),
        scale=torch.ones(4, 1, 1),
    )
    model = randomised(model, IMAGES)
    model.a.bfloat16()
    model.b.bfloat16()
    x = IMAGES.bfloat16()
    fused = reparam.compile(model, x, passes=(fold_after_cat,))
    assert [r.message for r in reparam.report(fused).missed] == ["the dtypes differ"]
    assert torch.equal(fused(x), model(x))


def test_concatenation_of_another_number_of_axes() -> None:
    """Of one spatial axis, before a batch norm over two."""
    model = Net(
        lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 1)[..., None]),
        a=nn.Conv1d(6, 2, 1),
        b=nn.Conv1d(6, 2, 1),
        norm=BATCH_NORMS[2](4),
    )
    assert reasons(fold_after_cat, model, IMAGES[..., 0], given=True) == []
