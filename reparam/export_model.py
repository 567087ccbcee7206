"""A model as a function of tensors alone, which is what an ONNX file can be."""

import copy
import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.errors import ExportError
from reparam.runs import split_inputs


class FlatModel(nn.Module):
    """A copy of a model as a function of tensors to a tuple of tensors.

    What else the model takes is fixed to the example's, what else it returns is left out.

    Attributes:
        title: the model's class.
        example: the tensors among the example inputs.
        input_names, output_names: after the parameters of `forward` and the keys of its output.
        random: whether the same inputs give other outputs the next time.
    """

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        super().__init__()
        # Not by eval(), which goes on to the model: a single module in training mode stays there.
        self.training = False
        self.model = copy.deepcopy(model)
        self.title = type(model).__name__
        args, kwargs = split_inputs(example_inputs)
        self._signature = inspect.signature(self.model.forward)
        try:
            arguments = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ExportError(f"{self.title} can't be called like this: {error}") from error
        leaves, self._spec = pytree.tree_flatten_with_path(dict(arguments))
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for _, leaf in leaves]
        tensors = [(path, leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]
        self._places = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.example = [leaf.detach().clone() for _, leaf in tensors]
        self.input_names = distinct([_name(path) for path, _ in tensors], ())
        self._check()
        output = self._run_example()
        again = self._run_example()
        self.random = not all(map(torch.equal, _tensors(output), _tensors(again)))
        self.output_names = self._name_outputs(output)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the output, in the order of `output_names`."""
        return tuple(_tensors(self._call(tensors)))

    def _call(self, tensors: Sequence[Tensor]) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        arguments = pytree.tree_unflatten(leaves, self._spec)
        bound = inspect.BoundArguments(self._signature, arguments)
        return self.model(*bound.args, **bound.kwargs)

    def _check(self) -> None:
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if tensor.is_meta:
                raise ExportError(f"{name} is on the meta device: it has no values to export")
        for name, tensor in zip(self.input_names, self.example, strict=True):
            if tensor.numel() == 0:
                raise ExportError(f"the example input {name!r} is empty: {tuple(tensor.shape)}")
        if not self.example:
            raise ExportError("there is no tensor among the example inputs")

    def _run_example(self) -> Any:
        try:
            with torch.no_grad():
                return self._call([t.clone() for t in self.example])
        except Exception as error:
            raise ExportError(
                f"{self.title} does not run on the example inputs: {first_line(error)}"
            ) from error

    def _name_outputs(self, output: Any) -> list[str]:
        leaves, _ = pytree.tree_flatten_with_path(output)
        paths = [path for path, leaf in leaves if isinstance(leaf, Tensor)]
        if not any(isinstance(leaf, Tensor) and leaf.is_floating_point() for _, leaf in leaves):
            raise ExportError(f"{self.title} returns no floating-point tensor to compare")
        names = [_name(path) for path in paths]
        named = [n if n and not n[0].isdigit() else f"output_{n}".rstrip("_") for n in names]
        return distinct(named, self.input_names)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def distinct(names: Sequence[str], taken: Collection[str]) -> list[str]:
    """The names, with a number behind those that are taken or were there before."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name}_{i}" for i in range(1, len(names) + len(taken) + 2))
        candidates = (name, *numbered)
        found.append(next(n for n in candidates if n not in taken and n not in found))
    return found


def first_line(error: BaseException) -> str:
    """What an exception says, short enough for one sentence."""
    lines = (line.strip() for line in str(error).splitlines())
    line = next((line for line in lines if line), "")
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return text if len(text) <= 240 else f"{text[:239]}…"


def _name(path: Sequence[Any]) -> str:
    """A tensor's name from its place in nested arguments or results; empty at the top."""
    keys = (getattr(k, "key", getattr(k, "idx", getattr(k, "name", k))) for k in path)
    return "_".join(map(str, keys))
