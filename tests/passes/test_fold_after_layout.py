import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from fastvit_models.fastvit_blocks import Attention
from passes import fold_after_layout
from tests.fused import operators
from tests.passes.alone import Net, alone, fires, reasons
from tests.randomised import randomised

TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(0))


def given_axes(model: nn.Module, times: int = 1) -> dict[str, int]:
    """What is left of a model of tokens, whose number of axes has to be given."""
    return operators(fires(fold_after_layout, model, TOKENS, times, given=True))


def heads(y: Tensor) -> Tensor:
    """(N, L, 8) → (N, 2, L, 4)."""
    return y.unflatten(-1, (2, 4)).transpose(1, 2)


@settings(max_examples=15)
@given(st.booleans(), st.sampled_from([0.5, -2.0]), st.integers(0, 2))
def test_scaled_piece(bias: bool, factor: float, which: int) -> None:
    """One of q, k and v."""

    def forward(m: Net, x: Tensor) -> Tensor:
        q, k, v = m.linear(x).chunk(3, dim=-1)
        pieces = [heads(q), heads(k), heads(v)]
        pieces[which] = pieces[which] * factor
        return torch.stack(pieces)

    model = Net(forward, linear=nn.Linear(8, 24, bias=bias))
    assert "mul" not in given_axes(model)


def test_attention_of_fastvit() -> None:
    """q's scale; asked without example inputs."""
    model = nn.Sequential(nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32), Attention(32, 0.0))
    fused, report = alone(fold_after_layout, model, IMAGES)
    assert len(report.applied) == 1
    assert not operators(fused)["mul"]


def test_layer_scale_behind_a_transposition() -> None:
    model = Net(
        lambda m, x: m.scale * m.linear(x).transpose(1, 2),
        linear=nn.Linear(8, 6),
        scale=torch.ones(6, 1),
    )
    assert given_axes(model) == {"Linear": 1, "transpose": 1}


def test_batch_norm_behind_a_transposition() -> None:
    model = Net(
        lambda m, x: m.norm(m.linear(x).transpose(1, 2)),
        linear=nn.Linear(8, 6),
        norm=nn.BatchNorm1d(6),
    )
    assert given_axes(model) == {"Linear": 1, "transpose": 1, "contiguous": 1}


def test_convolution() -> None:
    """Not only linear layers."""
    model = Net(
        lambda m, x: m.scale * m.conv(x).permute(0, 2, 3, 1),
        conv=nn.Conv2d(8, 6, 3, padding=1),
        norm=nn.BatchNorm2d(6),
        scale=torch.ones(6),
    )
    assert operators(fires(fold_after_layout, model, IMAGES, given=True)) == {
        "Conv2d": 1,
        "permute": 1,
    }


def test_other_rows_may_be_read() -> None:
    def forward(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k = m.linear(x).chunk(2, dim=-1)
        return torch.matmul(q * 0.5, k.transpose(1, 2))

    assert "mul" not in given_axes(Net(forward, linear=nn.Linear(8, 12)))


def test_layer_that_something_else_reads() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.linear(x)
        return torch.matmul(y.relu(), y.transpose(1, 2) * 0.5)

    model = Net(forward, linear=nn.Linear(8, 6))
    _, report = alone(fold_after_layout, model, TOKENS, given=True)
    assert [r.message for r in report.missed] == ["something else reads the layer"]


def test_rows_that_are_read_unscaled_as_well() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        q, _ = m.linear(x).chunk(2, dim=-1)
        return torch.matmul(q * 0.5, q.transpose(1, 2))

    model = Net(forward, linear=nn.Linear(8, 12))
    _, report = alone(fold_after_layout, model, TOKENS, given=True)
    assert report.applied == ()
    assert len(report.missed) == 1


def test_same_rows_through_another_piece() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.linear(x)
        return torch.matmul(y.chunk(2, dim=-1)[0] * 0.5, y.transpose(1, 2)[:, :6].relu())

    def twice(m: Net, x: Tensor) -> Tensor:
        y = m.linear(x)
        return torch.matmul(y.chunk(2, dim=-1)[0] * 0.5, y.transpose(1, 2).chunk(2, dim=1)[0])

    for function in (forward, twice):
        model = Net(function, linear=nn.Linear(8, 12))
        _, report = alone(fold_after_layout, model, TOKENS, given=True)
        assert report.applied == ()
    assert [r.message for r in report.missed] == ["something else reads the same rows"]


def test_scale_along_the_tokens() -> None:
    model = Net(
        lambda m, x: (
            m.scale * m.linear(m.tokens(x.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)
        ),
        tokens=nn.Linear(5, 4),  # so that their number is known
        linear=nn.Linear(8, 6),
        scale=torch.ones(4),
    )
    _, report = alone(fold_after_layout, model, TOKENS, given=True)
    assert [r.message for r in report.missed] == ["its channels are not the rows of the layer"]


def test_layer_of_unknown_shape() -> None:
    """How many axes the tokens have is not known without example inputs."""
    model = Net(lambda m, x: m.linear(x).flatten(1) * 0.5, linear=nn.Linear(8, 6))
    assert reasons(fold_after_layout, model, TOKENS) == [
        "the number of axes of its input is not known"
    ]


def test_layer_over_a_tensor_of_too_few_known_axes() -> None:
    """The linear layer tells of the last one alone, and nothing of where the channels are."""
    model = Net(
        lambda m, x: m.conv(m.linear(x)).flatten(2) * 0.5,
        linear=nn.Linear(5, 6),
        conv=nn.Conv2d(8, 4, 3),
    )
    assert reasons(fold_after_layout, model, IMAGES) == [
        "the shape of the layer's output is not known"
    ]


def test_scale_that_widens_the_dtype() -> None:
    """The layer would give what the scale rounds to, but narrower."""
    model = Net(
        lambda m, x: m.scale * m.conv(x).flatten(2), conv=nn.Conv2d(8, 6, 1), scale=torch.ones(6, 1)
    )
    model = randomised(model, IMAGES)
    model.conv.bfloat16()
    x = IMAGES.bfloat16()
    fused = reparam.compile(model, x, passes=(fold_after_layout,))
    assert [r.message for r in reparam.report(fused).missed] == ["the dtypes differ"]
    assert torch.equal(fused(x), model(x))
    assert fused(x).dtype == torch.float32
