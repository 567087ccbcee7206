"""Five small programs that a fusing by names of modules gets wrong."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.bad_inputs.outcomes import IMAGE, conv_norm, trained
from tests.passes.alone import Net


def used_twice() -> nn.Module:
    """The convolution's other result is not normalised."""
    model = Net(
        lambda m, x: (m.norm(m.conv(x)), m.conv(x.relu())),
        conv=nn.Conv2d(4, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    return trained(model)


def called_twice() -> nn.Module:
    return trained(Net(lambda m, x: m.norm(m.conv(m.norm(m.conv(x)).relu())), **_parts()))


def weight_read() -> nn.Module:
    return trained(Net(lambda m, x: m.norm(m.conv(x)) * m.conv.weight.square().sum(), **_parts()))


def hooked() -> nn.Module:
    model = trained(Net(lambda m, x: m.norm(m.conv(x)).relu(), **_parts()))
    model.conv.register_forward_hook(doubled)
    return model


def doubled(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output * 2


def negative_variance() -> nn.Module:
    model = trained(Net(lambda m, x: m.norm(m.conv(x)), **_parts()))
    model.norm.running_var[0] = -1.0
    return model


def _parts() -> dict[str, nn.Module]:
    conv, norm = conv_norm()
    return {"conv": conv, "norm": norm}


PROGRAMS: dict[str, Callable[[], nn.Module]] = {
    "row 7": negative_variance,
    "row 12": used_twice,
    "row 13": called_twice,
    "row 15": weight_read,
    "row 16": hooked,
}
"""By the row that they are of."""


def outputs(model: Callable[[Tensor], Tensor | tuple[Tensor, ...]]) -> list[Tensor]:
    """What a program gives of `IMAGE`."""
    with torch.no_grad():
        found = model(IMAGE.clone())
    return list(found) if isinstance(found, tuple) else [found]
