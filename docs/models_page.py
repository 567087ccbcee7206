"""Count parameters and multiply-adds of every model, and write docs/models.md: `make evidence`."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastvit_models
import reparam

PAGE = Path(__file__).with_name("models.md")

HEAD = """\
# The models

Each is defined once, in training form; `reparam.compile` makes the other. Parameters in millions,
multiply-adds in billions, of one image of the published size, as `torch.utils.flop_counter` counts
convolutions and matrix products. `make evidence` writes this page.

| model | image | parameters: training form, compiled | multiply-adds: training form, compiled |
|---|---|---|---|
"""

TAIL = """
## The paper's ablations

A `FastViTConfig` says what FastViT is made of; `fastvit_models.fastvit.VARIANTS` has the published
ones. `dataclasses.replace(config, overparameterized=False)` has no branches beside each convolution
in training, and compiles to the same network; `token_mixer="pooling"` has averages of 3×3 pixels in
the place of RepMixer. `create_fastvit(config)` builds either.

What no network can be built of is refused with a `ModelOptionError` that names the field: by
`FastViTConfig`, `RepViTConfig`, `MobileOneConfig` and `RepVGGConfig` themselves, and widths that
RepVGG's `groups` don't divide by `create_repvgg`. Of FastViT any stage may have no blocks at all,
of RepViT the first.

## Checkpoints

`load_checkpoint` loads a file whole or raises `CheckpointError` and leaves the model as it was; of
NaN, infinity and variances below 0 it warns. A file of the training form goes into the model, one
that the originals or timm fused into what `reparam.compile` made of it. What a compiled model has
saved goes into a model that the same passes compiled: other passes may leave the same names and
shapes with weights that mean something else, and a state dict does not tell.
"""


def main() -> None:
    """Write the page."""
    lines = "".join(_line(name) for name in fastvit_models.list_models())
    PAGE.write_text(HEAD + lines + TAIL)


def _line(name: str) -> str:
    size = 256 if name.startswith("fastvit") else 224
    model = fastvit_models.create_model(name).eval()
    fused = reparam.compile(model, verify=False)
    parameters = ", ".join(f"{_parameters(each) / 1e6:.2f}" for each in (model, fused))
    products = ", ".join(f"{_multiply_adds(each, size) / 1e9:.2f}" for each in (model, fused))
    return f"| `{name}` | {size} | {parameters} | {products} |\n"


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _multiply_adds(model: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        model.to("meta")(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    main()
