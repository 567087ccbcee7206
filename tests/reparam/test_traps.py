"""Models that once compiled to something else, or not at all: each computes the same."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import passes
import reparam
from reparam.errors import CaptureError, VerificationError
from reparam.known import TORCH
from reparam.verify import EXACT, relative_difference
from tests.passes.alone import Net
from tests.randomised import randomised
from tests.strategies import drawn

pytestmark = pytest.mark.usefixtures("without_annotation_checks")

IMAGE = drawn(0, 2, 4, 6, 7)


def same(model: nn.Module, fused: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected, found = model(*inputs), fused(*inputs)
    assert expected.shape == found.shape
    assert relative_difference(expected, found) <= EXACT


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("size", [(9, 5), (5, 9)])
def test_the_smaller_of_two_sizes(given: bool, size: tuple[int, int]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)[:, :, :, : x.shape[2]]
        return y.flatten(2).reshape(y.shape[0], 4, y.shape[3], y.shape[2])

    model = randomised(Net(forward, norm=nn.BatchNorm2d(4)), IMAGE.float()).double()
    fused = reparam.compile(model, IMAGE if given else None)
    same(model, fused, drawn(1, 1, 4, *size))


@pytest.mark.parametrize("tokens", [5, 600])
def test_as_many_tokens_as_a_table_has(tokens: int) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x[:, :512])
        return m.linear(y).sum(1) / y.size(1)

    model = Net(forward, norm=nn.LayerNorm(8), linear=nn.Linear(8, 8)).double().eval()
    fused = reparam.compile(model, drawn(0, 2, 5, 8))
    same(model, fused, drawn(1, 1, tokens, 8))


@pytest.mark.parametrize("part", [(slice(None, 2),), (slice(None), slice(None, 3))])
def test_a_border_of_some_images_or_channels(part: tuple[slice, ...]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.pad(m.conv(x), (1, 1, 1, 1))
        border = m.border.view(1, -1, 1, 1)
        whole = (*part, *(slice(None),) * (2 - len(part)))
        y[(*whole, slice(None, 1))] = border
        y[(*whole, slice(-1, None))] = border
        y[(*whole, slice(None), slice(None, 1))] = border
        y[(*whole, slice(None), slice(-1, None))] = border
        return m.after(y)

    border = torch.ones(8 if len(part) == 1 else 1)
    model = Net(forward, conv=nn.Conv2d(4, 8, 1), after=nn.Conv2d(8, 4, 3), border=border)
    model = randomised(model, IMAGE.float()).double()
    same(model, reparam.compile(model), drawn(1, 3, 4, 6, 6))


def test_a_border_that_is_written_to_once_more() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.pad(m.conv(x), (1, 1, 1, 1))
        border = m.border.view(1, -1, 1, 1)
        y[:, :, :1] = border
        y[:, :, -1:] = border
        y[..., :1] = border
        y[..., -1:] = border
        y.mul_(2)
        return m.after(y)

    model = Net(forward, conv=nn.Conv2d(4, 8, 1), after=nn.Conv2d(8, 4, 3), border=torch.ones(8))
    model = randomised(model, IMAGE.float()).double()
    same(model, reparam.compile(model), drawn(1, 3, 4, 6, 6))


@pytest.mark.parametrize(
    "weight",
    [
        lambda m: torch.round(m.weight / 0.1) * 0.1,
        lambda m: m.weight[(m.index * 10).long()],
        lambda m: m.weight * (m.index == 0.1).view(-1, 1, 1, 1),
    ],
    ids=["rounded", "indexed", "compared"],
)
def test_weights_that_jump(weight: Callable[[Any], Tensor]) -> None:
    """0.1 is another number in float64, and 0.7 * 10 is less than 7 there."""
    steps = torch.arange(-8, 8).repeat(9)[:144].reshape(6, 4, 6, 1)[:, :, :1] * 0.1 + 0.05
    index = torch.tensor([0.29, 0.3, 0.57, 0.1, 0.1, 0.2])
    model = Net(lambda m, x: F.conv2d(x, weight(m)), weight=steps, index=index).eval()
    x = IMAGE.float()
    fused = reparam.compile(model)
    with torch.no_grad():
        assert torch.equal(model(x), fused(x))


def test_resizing_over_channels_is_no_average_of_each() -> None:
    model = Net(
        lambda m, x: m.linear(F.interpolate(m.norm(x), scale_factor=1.2)),
        norm=nn.LayerNorm(4),
        linear=nn.Linear(4, 5),
    )
    x = drawn(0, 2, 7, 4)
    model = randomised(model, x.float()).double()
    same(model, reparam.compile(model, x, verify=False), x)


class Casting(nn.Module):
    """Casts to a dtype that it names, which a copy in float64 must not heed."""

    def __init__(self, cast: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.cast, self.conv, self.norm = cast, nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.cast(x))).relu()


@pytest.mark.parametrize(
    ("cast", "x"),
    [
        (lambda x: x.float(), IMAGE.float()),
        (lambda x: x.to(torch.float32), IMAGE.float()),
        (lambda x: x.softmax(1, dtype=torch.float32), IMAGE.float()),
        (lambda x: x / 255, torch.randint(0, 255, (2, 4, 6, 7), dtype=torch.uint8)),
    ],
    ids=["float", "to", "softmax", "integers"],
)
def test_a_model_that_names_a_dtype_is_verified(cast: Any, x: Tensor) -> None:
    fused = reparam.compile(Casting(cast).eval(), x)
    assert "equivalent" in str(reparam.report(fused).verification.whole_model)


def test_hooks_that_take_keywords() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).double().eval()
    model.register_forward_hook(lambda m, args, kwargs, y: y + 1, with_kwargs=True)
    same(model, reparam.compile(model, IMAGE), IMAGE)


def test_a_tensor_as_default() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 3, 1).double()

        def forward(self, x: Tensor, mask: Tensor = torch.full((3, 1, 1), 2.0)) -> Tensor:  # noqa: B008
            return self.conv(x) * mask

    model = Masked().eval()
    same(model, reparam.compile(model, IMAGE), IMAGE)
    mask = drawn(1, 3, 1, 1)
    same(model, reparam.compile(model, (IMAGE, mask)), IMAGE, mask)


def test_verification_leaves_the_model_alone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("calls").add_(1)
            return x

    model = nn.Sequential(nn.Conv2d(4, 4, 1), Counting()).eval()
    reparam.compile(model, IMAGE.float())
    assert model[1].get_buffer("calls") == 0


@pytest.mark.parametrize("scale", [1e-2, 1e-6])
def test_a_folded_weight_that_float16_has_no_digits_for(scale: float) -> None:
    model = Net(
        lambda m, x: m.linear(x) * m.scale,
        linear=nn.Linear(64, 64, bias=False),
        scale=torch.full((64,), scale),
    )
    report = reparam.report(reparam.compile(model.half().eval()))
    reasons = {remark.message for remark in report.missed}
    assert (report.applied == ()) == (scale < 1e-4)
    assert ("a folded weight underflows float16" in reasons) == (scale < 1e-4)


def test_a_parameter_whose_name_ends_like_that_of_a_write() -> None:
    model = Net(lambda m, x: x * m.scale_ + m.scale, scale_=torch.ones(7), scale=torch.zeros(7))
    model = model.double().eval()
    same(model, reparam.compile(model), IMAGE)


def test_an_argument_that_is_none_and_added() -> None:
    """The model fails, and so does the result; compiling it does not."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 3, 1).double()

        def forward(self, x: Tensor, shift: Any = None) -> Tensor:
            return self.conv(x) + shift

    fused = reparam.compile(Shifted().eval())
    with pytest.raises(TypeError):
        fused(IMAGE)


def test_pieces_of_all_pixels() -> None:
    """Sizes that are tried out must not make millions of pieces."""
    model = Net(lambda m, x: m.linear(x.flatten(0, 1).split(2)[0]).relu(), linear=nn.Linear(8, 8))
    model, x = model.double().eval(), drawn(0, 2, 5, 8)
    same(model, reparam.compile(model, x), x)


def test_weights_keep_their_dtype_where_the_shape_of_their_input_is_not_known() -> None:
    """Two folds, one after the other: the layer in between has no facts but its dtype."""
    layers = {"norm": nn.GroupNorm(2, 8), "conv": nn.Conv1d(8, 8, 1, groups=8)}
    model = Net(lambda net, x: (net.conv(net.norm(x)).permute(0, 1, 2) * 2).relu(), **layers)
    fused = reparam.compile(model.eval(), passes=passes.DEFAULT)
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.float32}
    x = drawn(0, 2, 8, 5).float()
    torch.testing.assert_close(fused(x), model(x))


@pytest.mark.parametrize("size", [None, 1, 6])
def test_a_bound_that_is_an_image(size: int | None) -> None:
    """A clamp broadcasts with its bounds."""

    def forward(m: Any, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)
        clamped = torch.clamp(pooled, min=x)
        return m.wide(clamped + pooled) + m.other(clamped)

    model = Net(
        forward, wide=nn.Conv2d(4, 4, 3, padding=1), other=nn.Conv2d(4, 4, 3, padding=1)
    ).double()
    fused = reparam.compile(model.eval(), None if size is None else drawn(0, 2, 4, size, size))
    same(model, fused, drawn(1, 2, 4, 5, 5))


def test_a_bound_that_has_a_batch() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.a, self.b, self.conv = (nn.Conv2d(4, 4, 1) for _ in range(4))
            self.norm = nn.BatchNorm2d(4)

        def forward(self, mask: Tensor, x: Tensor) -> Any:
            y = self.before(mask)
            joined = torch.cat([self.a(y), self.b(y)], 1)
            return joined + self.norm(y.clamp(min=self.conv(x))).sum()

    model = Masked().double().eval()
    same(model, reparam.compile(model), drawn(0, 4, 6, 6), drawn(1, 2, 4, 6, 6))


def test_integers_that_become_floating_point_on_the_way() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return m.a(torch.sqrt(flat)) + m.b(flat / 255)

    model = Net(forward, a=nn.Linear(6, 4), b=nn.Linear(6, 4)).eval()
    x = torch.arange(12, dtype=torch.uint8).reshape(2, 3, 2)
    for example in (None, x):
        torch.testing.assert_close(reparam.compile(model, example)(x), model(x))


class Read(nn.Module):
    """Holds a buffer that somebody may write to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


class Counting(Read):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > -1e9:
            self.count.mul_(2.0)
        return x


def _counts(module: Any, inputs: Any, output: Tensor) -> None:
    module.count.add_(1.0)


def hooked() -> nn.Module:
    module = Read()
    module.register_forward_hook(_counts)
    return module


@pytest.mark.parametrize("part", [Counting, hooked])
def test_a_buffer_that_a_module_writes_to_by_itself(part: Callable[[], nn.Module]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.linear(m.part(x)) * m.part.count

    model = Net(forward, part=part(), linear=nn.Linear(4, 4)).double().eval()
    fused = reparam.compile(model)
    for _ in range(3):
        same(model, fused, drawn(0, 2, 4))


def test_a_buffer_that_is_a_view_of_one_that_is_written_to() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("flat", torch.ones(8, dtype=torch.float64))
            self.register_buffer("part", self.flat[:4])

        def forward(self, x: Tensor) -> Tensor:
            self.flat.add_(1)
            return self.linear(x) * self.part

    model = Shared().double().eval()
    fused = reparam.compile(model)
    for _ in range(3):
        same(model, fused, drawn(0, 2, 4))


def test_sizes_that_are_changed_in_place() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        y.transpose_(1, 2)
        return y.relu()[:, :-1]

    layers = {"conv": nn.Conv2d(4, 6, 1), "norm": nn.BatchNorm2d(6)}
    model = randomised(Net(forward, **layers), IMAGE.float()).double()
    fused = reparam.compile(model)
    same(model, fused, drawn(1, 2, 4, 8, 5))
    assert any("sizes of a tensor in place" in r.message for r in reparam.report(fused).missed)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.linear(m.linear(x).greater_(0.0)),
        lambda m, x: m.linear(m.linear(x).less_equal_(0.0)),
        lambda m, x: m.linear(x).int().add_(x.long()),
        lambda m, x: m.linear(x).resize_(2, 3),
        lambda m, x: nn.init.constant_(m.linear(x), 2.0) + x,
        lambda m, x: torch.relu_(input=m.linear(x)),
        lambda m, x: F.linear(x, m.linear.bias),
        lambda m, x: x.flatten(1).unflatten(1, x.shape[1:]),
    ],
)
def test_calls_in_unusual_forms(forward: Callable[[Any, Tensor], Tensor]) -> None:
    model = Net(forward, linear=nn.Linear(4, 4)).double().eval()
    x = drawn(0, 2, 4)
    with torch.no_grad():
        expected, found = model(x.clone()), reparam.compile(model)(x.clone())
    assert expected.dtype == found.dtype
    torch.testing.assert_close(found, expected)


def test_what_is_written_to_keeps_its_dtype() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, wider: Tensor) -> Tensor:
            y = self.linear(x)
            y += wider
            return y

    model, inputs = Added().eval(), (drawn(0, 2, 4).float(), drawn(1, 2, 4))
    torch.testing.assert_close(reparam.compile(model)(*inputs), model(*inputs), rtol=0, atol=1e-6)


def test_a_border_in_another_dtype() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y, border = F.pad(x, (1, 1, 1, 1)), m.border.view(1, -1, 1, 1)
        y[:, :, :1] = border
        y[:, :, -1:] = border
        y[..., :1] = border
        y[..., -1:] = border
        return y

    model = Net(forward, border=nn.Parameter(drawn(1, 4))).eval()
    fused = reparam.compile(model)
    for x in (IMAGE.float(), (8 * IMAGE).long()):
        torch.testing.assert_close(fused(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "weight",
    [
        lambda w: torch.fake_quantize_per_tensor_affine(w, 0.1, 0, -128, 127),
        lambda w: torch.div(w, 0.1, rounding_mode="floor") * 0.1,
        lambda w: torch.nextafter(w, w + 1) - w,
    ],
)
def test_weights_on_the_edge_of_a_jump(weight: Callable[[Tensor], Tensor]) -> None:
    edges = (torch.arange(16.0) - 8).reshape(4, 4) * 0.05
    model = Net(lambda m, x: F.linear(x, weight(m.weight)), weight=nn.Parameter(edges)).eval()
    x = drawn(0, 3, 4).float()
    torch.testing.assert_close(reparam.compile(model)(x), model(x))


def test_one_tensor_given_twice() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z = self.first(y)
            x.mul_(2.0)
            return self.second(z)

    model = Two().double().eval()
    fused = reparam.compile(model)
    x, again = drawn(0, 2, 4), drawn(0, 2, 4)
    torch.testing.assert_close(fused(again, again), model(x, x))


def test_a_call_of_the_models_own() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x)

        def __call__(self, x: Tensor) -> Tensor:
            return 2 * super().__call__(x)

    model = Doubled().double().eval()
    fused = reparam.compile(model)
    same(model, fused, drawn(0, 2, 4))
    assert len(reparam.report(fused).applied) == 1


def test_the_other_batch_norm_of_torchs() -> None:
    """Its arguments come in another order than those of the one in torch.nn.functional."""

    def forward(m: Any, x: Tensor) -> Tensor:
        n = m.norm
        given = (n.weight, n.bias, n.running_mean, n.running_var)
        return torch.batch_norm(m.conv(m.first(x)), *given, False, 0.1, n.eps, False)

    layers = {"first": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    model = randomised(Net(forward, **layers), IMAGE.float()).double()
    fused = reparam.compile(model)
    assert reparam.report(fused).after.total == 1
    same(model, fused, IMAGE)


def test_example_inputs_that_a_forward_writes_to() -> None:
    model = Net(lambda m, x: m.conv(x.mul_(2)), conv=nn.Conv2d(4, 4, 1)).double().eval()
    x = IMAGE.clone()
    reparam.compile(model, x)
    assert torch.equal(x, IMAGE)


class Given(nn.Module):
    """A model of two inputs, the second of which may have any name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)


class NamedMean(Given):
    def forward(self, x: Tensor, mean: Tensor) -> Any:
        return self.linear(x), mean


class NamedChunk(Given):
    def forward(self, x: Tensor, chunk: Any) -> Any:
        if isinstance(chunk, tuple | list):
            chunk = chunk[0]
        return self.linear(x), chunk * 2


@pytest.mark.parametrize("kind", [NamedMean, NamedChunk])
@pytest.mark.parametrize("given", [False, True])
def test_inputs_that_are_called_as_functions_of_torchs_are(kind: type[Given], given: bool) -> None:
    model, inputs = kind().double().eval(), (drawn(0, 2, 6), drawn(1, 3, 4).T)
    fused = reparam.compile(model, inputs if given else None)
    for expected, found in zip(model(*inputs), fused(*inputs), strict=True):
        torch.testing.assert_close(found, expected, check_stride=True)


def toggled(m: Any, x: Tensor) -> Tensor:
    m.conv.dilation = (2, 2)
    y = m.conv(x)
    m.conv.dilation = (1, 1)
    return y


def circular() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
    layer.padding = (2, 2)
    return layer


def with_forward(layer: Any, forward: Callable[..., Any], name: str = "forward") -> nn.Module:
    setattr(layer, name, forward)
    return layer


def asserted(m: Any, x: Tensor) -> Tensor:
    try:
        assert x.shape[1] == 5
    except AssertionError:
        return m.linear(x) * 2
    return m.linear(x)


def unpacked(m: Any, x: Tensor) -> Tensor:
    try:
        a, b, c = x.shape
    except ValueError:
        return m.linear(x * 2)
    return m.linear(x) * (a + b + c)


UNUSUAL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "bytes of an element": lambda m, x: m.linear(x) * m.linear.weight.element_size(),
    "an index among several results": lambda m, x: (
        m.linear(x) * (m.ones + m.few).max(1)[1].sum().float()
    ),
    "alpha in the middle": lambda m, x: torch.add(m.linear(x), 0.5, m.linear(x)),
    "alpha in the middle, subtracted": lambda m, x: m.linear(x).sub(0.5, x),
    "keepdims": lambda m, x: m.linear(m.norm(x).mean(1, keepdims=True)),
    "unbind along an axis": lambda m, x: m.norm2d(x).unbind(axis=2)[0],
    "chunks along an axis": lambda m, x: m.conv(x).chunk(2, axis=1)[0],
    "other weights for a call": lambda m, x: torch.func.functional_call(
        m.linear, {"weight": m.ones, "bias": m.linear.bias}, (x,)
    ),
    "a layer that is changed for a call": toggled,
    "sizes by keyword": lambda m, x: x.reshape(shape=(2, -1)).transpose(0, 1) * 2,
    "no axes": lambda m, x: x.sum().mean(-1) + x.sum().transpose(0, -1),
    "the end by keyword": lambda m, x: m.linear(x.flatten(1, end_dim=2)),
    "a flatten of another kind": lambda m, x: m.flatten(x),
    "a convolution of another kind": lambda m, x: m.strange(x) * 2,
    "circular padding that was changed": lambda m, x: m.circular(x) * 2,
    "an empty tensor of one axis": lambda m, x: (
        torch.cat([x.new_zeros(0), m.conv(x), x], 1).flatten(1).reshape(4, 4, 8, 8)
    ),
    "an assertion that is caught": asserted,
    "an unpacking that is caught": unpacked,
    "whether gradients are wanted": lambda m, x: (
        m.linear(x * 2) if torch.is_grad_enabled() else m.linear(x)
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_torch_takes_in_other_forms(name: str) -> None:
    few = torch.zeros(8, 8)
    few[:, 2] = 1e-9
    layers = {
        "linear": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "norm2d": nn.BatchNorm2d(4),
        "conv": nn.Conv2d(4, 4, 1), "circular": circular(),
        "ones": nn.Parameter(torch.ones(8, 8)), "few": nn.Parameter(few),
        "flatten": with_forward(nn.Flatten(), lambda x: x.flatten(1) * 2),
        "strange": with_forward(nn.Conv2d(4, 4, 1), lambda x, w, b: x * 3, "_conv_forward"),
    }  # fmt: skip
    model, x = Net(UNUSUAL[name], **layers).eval(), drawn(0, 2, 4, 8, 8).float()
    for example in (None, x):
        if name == "an unpacking that is caught" and example is None:
            continue  # without an example, nothing tells how many axes there are
        fused = reparam.compile(model, example, verify=False)
        torch.testing.assert_close(fused(x), model(x))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.uint8, torch.int64)])
def test_a_sum_in_place_of_two_dtypes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    class Added(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = x * 2
            x += y
            return x

    x, y = ((50 * drawn(i, 2, 4)).abs().to(dtype) for i, dtype in enumerate(dtypes))
    for example in (None, (x, y)):
        fused = reparam.compile(Added().eval(), example, verify=False)
        torch.testing.assert_close(fused(x, y), Added()(x, y))


def test_a_sum_of_integers_in_place() -> None:
    model, x = Net(lambda m, x: x.clone().cumsum_(0)).eval(), torch.arange(3, dtype=torch.int32)
    torch.testing.assert_close(reparam.compile(model)(x), model(x))


def test_complex_numbers_on_the_way() -> None:
    layers = {"norm": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 4, 1)}
    model = Net(lambda m, x: m.norm(m.conv(x.abs())), **layers).eval()
    x = torch.complex(IMAGE.float(), IMAGE.float())
    for example in (None, x):
        torch.testing.assert_close(reparam.compile(model, example)(x), model(x))
    up = nn.ConvTranspose2d(4, 4, 2, dtype=torch.complex64)
    model = Net(lambda m, x: m.up(x) * 2.0, up=up).eval()
    torch.testing.assert_close(reparam.compile(model, x)(x), model(x))


def test_bits_that_are_read_in_another_way() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.conv(x)[:, :2].view(torch.bfloat16)

    model, x = Net(forward, conv=nn.Conv2d(4, 4, 1)).half().eval(), IMAGE.half()
    fused = reparam.compile(model, x, verify=False)
    assert torch.equal(fused(x).view(torch.int16), model(x).view(torch.int16))
    with pytest.raises(VerificationError, match="the model returns other sizes"):
        reparam.compile(model, x)


def test_parameters_of_no_size() -> None:
    with pytest.raises(CaptureError, match="parameters of no size yet; run it once"):
        reparam.compile(nn.LazyLinear(3).eval())


def test_parameters_that_are_sparse() -> None:
    sparse = nn.Parameter(torch.eye(4).to_sparse())
    model = Net(lambda m, x: m.linear(m.weight @ x), linear=nn.Linear(4, 4), weight=sparse).eval()
    for example in (None, torch.ones(4, 4)):
        with pytest.raises(CaptureError, match=r"'weight' is sparse, .* hold it as a buffer"):
            reparam.compile(model, example)


@torch.library.custom_op("reparam_tests::double", mutates_args={"x"})
def double_in_place(x: Tensor) -> None:
    x.mul_(2)


def by_operator(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    z = y + 0.0
    TORCH.ops.reparam_tests.double(z)
    return z - y


def by_statistics(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    norm = m.norm
    return F.batch_norm(y, norm.running_mean, norm.running_var, training=True) + norm(y)


def by_mean(m: Any, x: Tensor) -> Tensor:
    y = m.adapting(m.conv(x))
    return y - m.adapting.running_mean.view(1, -1, 1, 1)


@pytest.mark.parametrize("forward", [by_operator, by_statistics, by_mean])
def test_writes_that_no_name_tells_of(forward: Callable[[Any, Tensor], Tensor]) -> None:
    layers = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4)}
    model: Any = Net(forward, adapting=nn.BatchNorm2d(4), **layers).double().eval()
    model.adapting.train()
    twin, fused = copy.deepcopy(model), reparam.compile(model)
    for x in (drawn(0, 2, 3, 6, 6), drawn(1, 2, 3, 6, 6)):
        assert relative_difference(twin(x), fused(x)) <= EXACT


@pytest.mark.parametrize("by_module", [False, True])
def test_an_embedding_that_sees_to_its_norms(by_module: bool) -> None:
    """What it writes to, the head reads."""

    def forward(m: Any, x: Tensor) -> Tensor:
        weight = m.words.weight
        found = m.words(x) if by_module else F.embedding(x, weight, max_norm=1.0)
        return F.linear(m.norm(found), weight)

    layers = {"words": nn.Embedding(10, 8, max_norm=1.0 if by_module else None)}
    model = Net(forward, norm=nn.LayerNorm(8), **layers).double().eval()
    nn.init.uniform_(model.get_parameter("norm.weight"), 0.5, 2.0)
    twin, fused = copy.deepcopy(model), reparam.compile(model)
    x = torch.randint(0, 10, (2, 5), generator=torch.Generator().manual_seed(0))
    assert relative_difference(twin(x), fused(x)) <= EXACT


def test_a_weight_that_learns_to_be_quantized() -> None:
    """In float64 it would be rounded elsewhere."""

    def forward(m: Any, x: Tensor) -> Tensor:
        scale, zero = torch.tensor([0.1]), torch.tensor([0.0])
        quantized = TORCH._fake_quantize_learnable_per_tensor_affine(
            m.conv.weight, scale, zero, -8, 7, 1.0
        )
        return F.conv2d(x, quantized)

    model = Net(forward, conv=nn.Conv2d(3, 4, 3)).eval()
    nn.init.constant_(model.get_parameter("conv.weight"), 0.35)
    x = drawn(0, 2, 3, 6, 6).float()
    assert torch.allclose(reparam.compile(model, x)(x), model(x), rtol=1e-5)


def test_a_part_of_two_names() -> None:
    """By one of them it is called, by the other one looked into."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Stem()
            self.backbone = self.stem

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            if y.mean() > 9:
                y = y * 0
            return y + self.backbone.body[0](x)

    model, x = Two().double().eval(), drawn(0, 2, 3, 6, 6)
    assert relative_difference(model(x), reparam.compile(model)(x)) <= EXACT


def test_statistics_far_from_what_the_example_gives() -> None:
    """A folded bias is large then, and sums that start from it are rounded more."""
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)).eval()
    nn.init.normal_(model.get_buffer("1.running_mean"))
    for seed in range(3):
        reparam.compile(model, drawn(seed, 2, 64, 32, 32).float())


@pytest.mark.parametrize("change", ["hook", "forward"])
def test_a_pool_that_does_something_else(change: str) -> None:
    """No batch norm goes behind it, though one goes behind any other max pool."""
    pool: Any = nn.MaxPool2d(2)
    if change == "hook":
        pool.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    else:
        vars(pool)["forward"] = lambda x: nn.functional.max_pool2d(x * 2, 2)
    model = nn.Sequential(nn.BatchNorm2d(3), pool, nn.Conv2d(3, 2, 1))
    x = drawn(0, 2, 3, 8, 8)
    model = randomised(model.eval(), x.float()).double()
    fused = reparam.compile(model, x, passes=passes.DEFAULT)
    assert relative_difference(model(x), fused(x)) <= EXACT
    assert not [remark for remark in reparam.report(fused).missed if "differs" in remark.message]


def test_results_that_are_nothing_but_roundings() -> None:
    """A norm of one number is zero, or what is left of the roundings before it."""
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 1)
    )
    nn.init.zeros_(model.get_parameter("3.bias"))
    model = model.double().eval()
    for seed in range(4):
        reparam.compile(model, drawn(seed, 1, 4, 1, 2) * 0 + drawn(seed, 1, 4, 1, 1))


def test_a_layer_that_shows_its_weight_as_another_one() -> None:
    class Twice(nn.Conv2d):
        def __getattr__(self, name: str) -> Any:
            found = super().__getattr__(name)
            return found * 2 if name == "weight" else found

    model = nn.Sequential(Twice(4, 4, 1), nn.BatchNorm2d(4)).double().eval()
    model = randomised(model, IMAGE)
    same(model, reparam.compile(model), IMAGE)


def test_what_is_compiled_in_inference_mode_can_be_trained() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    with torch.inference_mode():
        fused = reparam.compile(model, IMAGE.float())
    fused(IMAGE.float()).sum().backward()
    assert all(p.grad is not None for p in fused.parameters())
