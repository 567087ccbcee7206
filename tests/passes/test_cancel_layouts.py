import torch
from torch import Tensor, nn

from passes import cancel_layouts
from tests.fused import operators
from tests.passes.alone import Net, fires

IMAGES = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))


def between(*layouts: str) -> Net:
    """Rearrangements between two layers that tell the shape."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.norm(x)
        z = y
        for layout in layouts:
            z = eval(layout, {"y": y, "z": z})
        return m.act(z)

    return Net(forward, norm=nn.BatchNorm2d(4), act=nn.ReLU())


def test_reshape_back() -> None:
    fused = fires(cancel_layouts, between("z.flatten(2)", "z.reshape_as(y)"), IMAGES)
    assert operators(fused) == {"BatchNorm2d": 1, "ReLU": 1}
    fires(cancel_layouts, between("z.flatten(1, 2)", "z.view(y.shape)"), IMAGES)


def test_permute_back() -> None:
    model = between("z.permute(0, 2, 3, 1)", "z.permute(0, 3, 1, 2)")
    assert operators(fires(cancel_layouts, model, IMAGES)) == {"BatchNorm2d": 1, "ReLU": 1}
    fires(cancel_layouts, between("z.transpose(1, 2)", "z.transpose(-2, -3)"), IMAGES)


def test_another_shape() -> None:
    fires(cancel_layouts, between("z.flatten(2)", "z.flatten(1)"), IMAGES, times=0)


def test_another_order() -> None:
    square = torch.randn(2, 4, 5, 5)
    for order in ("z.permute(0, 2, 3, 1)", "z.transpose(1, 3)"):
        model = between("z.permute(0, 2, 3, 1)", order)
        fires(cancel_layouts, model, square, times=0)


def test_reshape_of_a_permutation() -> None:
    """It has the old shape, but the elements are elsewhere."""
    model = between("z.transpose(2, 3)", "z.reshape(y.shape)")
    fires(cancel_layouts, model, IMAGES, times=0)


def test_reshapes_in_a_row() -> None:
    fused = fires(cancel_layouts, between("z.flatten(1)", "z.reshape(-1)"), IMAGES)
    assert operators(fused) == {"BatchNorm2d": 1, "reshape": 1, "ReLU": 1}
    fires(cancel_layouts, between("z.flatten(2)", "z.reshape((-1, 4, 1))"), IMAGES)
    pooled = "z.mean((2, 3), keepdim=True)"
    fires(cancel_layouts, between(pooled, "z.flatten(1)", "z.reshape((-1, 2, 1, 2))"), IMAGES)


def test_permutation_of_single_axes() -> None:
    pooled = ("z.mean((2, 3), keepdim=True)", "z.permute(0, 2, 3, 1)", "z.reshape(-1, 4)")
    fires(cancel_layouts, between(*pooled), IMAGES)
    fires(cancel_layouts, between(pooled[0], "z.transpose(1, 2)", pooled[2]), IMAGES)


def test_permutation_of_others() -> None:
    mixed = ("z.mean(2, keepdim=True)", "z.permute(0, 2, 3, 1)", "z.reshape(-1, 4)")
    fires(cancel_layouts, between(*mixed), IMAGES, times=0)


def test_sizes_that_need_not_fit() -> None:
    """Whether they are as many elements, only the model knows."""
    model = between("z.flatten(2)", "z.reshape(2, 3, 20)")
    fires(cancel_layouts, model, IMAGES, times=0)


def test_sizes_that_a_tensor_tells() -> None:
    """They may be those of what would be passed by."""
    model = between("z.flatten(1)", "z.reshape(z.size(1), -1)")
    fires(cancel_layouts, model, IMAGES, times=0)


def test_another_reader_of_what_is_passed_by() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.norm(x).flatten(1)
        return m.act(y).sum() + m.act(y.reshape(-1)).mean()

    model = Net(forward, norm=nn.BatchNorm2d(4), act=nn.ReLU())
    fires(cancel_layouts, model, IMAGES, times=0)
