"""Read the state dict that is in a file.

A file is untrusted input: it is read as safetensors or as a pickle of tensors alone
(`torch.load(weights_only=True)`), and never by a reader that could run code.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from fastvit_models.errors import CheckpointError

NESTED_UNDER = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where training scripts keep the weights; averaged ones first: published figures are theirs."""

ZIP_MAGIC = b"PK\3\4"
"""What `torch.load` tells its zip files by; all else it takes for a bare pickle."""


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """The state dict in the file, under the file's names.

    Raises `CheckpointError` if the file cannot be read, is damaged, or holds more than tensors.
    """
    content = _unnest(_read(path))
    advice = f"save a state dict, at its top or under one of {', '.join(NESTED_UNDER)}"
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: {advice}")
    entries = cast(Mapping[object, object], content)
    for key, value in entries.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise CheckpointError(f"{path} holds a {kind} as {key!r}, not tensors alone: {advice}")
        if not _is_plain(value):
            raise CheckpointError(f"{path} holds no plain dense tensor as {key!r}: save such")
    return cast(Mapping[str, Tensor], entries)


def _is_plain(tensor: Tensor) -> bool:
    """Whether it has a number of its own at each place of a rectangle."""
    special = tensor.is_nested or tensor.is_quantized or tensor.is_meta
    return not special and tensor.layout is torch.strided


def _unnest(content: object) -> object:
    for _ in NESTED_UNDER:  # and no deeper: a hostile pickle may contain itself
        if isinstance(content, Mapping):
            outer = cast(Mapping[object, object], content)
            inner = (outer[key] for key in NESTED_UNDER if _is_filled(outer.get(key)))
            content = next(inner, outer)
    return content


def _is_filled(content: object) -> bool:
    """Whether it is a mapping that holds anything: some scripts save an average of nothing."""
    return isinstance(content, Mapping) and bool(cast(Mapping[object, object], content))


def _read(path: Path) -> object:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError for what no path can hold
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read ({reason}): check the path") from error
    named = path.suffix.lower() == ".safetensors"
    return (_read_safetensors if named or _begins_safetensors(data) else _read_pickle)(data, path)


def _begins_safetensors(data: bytes) -> bool:
    """Whether there is the length of a header, and the JSON object that is the header."""
    return int.from_bytes(data[:8], "little") < len(data) and data[8:9] == b"{"


def _read_safetensors(data: bytes, path: Path) -> object:
    try:
        from safetensors import SafetensorError
        from safetensors import torch as safetensors
    except ImportError as error:
        raise CheckpointError(f"{path} needs safetensors (extra `hub`): pip install it") from error
    try:
        return safetensors.load(data)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged, or no safetensors file: fetch it again"
        ) from error


def _read_pickle(data: bytes, path: Path) -> object:
    try:
        if data.startswith(ZIP_MAGIC):
            _compare_checksums(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        asks_for = f" (it asks for {culprit[1]})" if culprit else ""
        # Not chained: torch's own message goes on to recommend the reader that runs code.
        raise CheckpointError(
            f"{path} is refused, and nothing in it was run: it is no pickle of tensors alone"
            f"{asks_for}; if you trust its source, save its state dict as safetensors"
        ) from None
    except Exception as error:  # on hostile bytes the reader raises whatever it trips over
        raise CheckpointError(f"{path} is damaged, or no checkpoint: fetch it again") from error


def _compare_checksums(data: bytes) -> None:
    """Raise `BadZipFile` for a record that its checksum does not fit: `torch.load` compares none.

    A checksum of 0 is none: `torch.save` can be told to compute no others.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for record in (each for each in archive.infolist() if each.CRC):
            with archive.open(record) as stream:
                while stream.read(2**20):
                    pass
