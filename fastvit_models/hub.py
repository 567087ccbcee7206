"""Published weights, from the Hugging Face Hub: those that timm keeps there, in training form."""

from pathlib import Path
from typing import Any, cast

from fastvit_models.errors import CheckpointError, ModelOptionError

TAGS = {
    "fastvit": "apple_in1k",
    "repvit": "dist_300e_in1k",
    "mobileone": "apple_in1k",
    "repvgg": "rvgg_in1k",
}
"""The weights of each family, of those that there are: trained on ImageNet-1k, 1000 classes."""

UNPUBLISHED = {"repvit_m0_6", "repvgg_b1g2", "repvgg_b2g2", "repvgg_b3g2"}

FILE = "model.safetensors"


def repository(name: str) -> str:
    """Where the weights of a model are.

    Raises `ModelOptionError` if there are none.
    """
    if name in UNPUBLISHED:
        raise ModelOptionError(f"no weights of {name} are published on the Hugging Face Hub")
    return f"timm/{name}.{TAGS[name.partition('_')[0]]}"


def fetch(name: str) -> Path:
    """The file with a model's weights, from the Hub, or from its cache on this machine.

    Raises `ModelOptionError` if there is none, `CheckpointError` if it can't be fetched.
    """
    place = repository(name)
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            "pretrained weights need huggingface-hub (extra `hub`): pip install it"
        ) from error
    try:
        return Path(cast("Any", huggingface_hub).hf_hub_download(place, FILE))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{FILE} of {place} can't be fetched ({type(error).__name__}): check the network, or "
            "load a file with load_checkpoint"
        ) from error
