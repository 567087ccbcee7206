"""A model that exists only as a file, exported as it was trained: write the file that computes it.

    python examples/onnx_file.py

The file is made here, as somebody else might have made it; it could as well be any other one.
"""

import tempfile
import warnings
from pathlib import Path

import torch

import fastvit_models
import reparam


def export(path: Path) -> None:
    """Write a FastViT in training form, nothing folded."""
    model = fastvit_models.create_model("fastvit_t8").eval()
    with warnings.catch_warnings(action="ignore"):  # torch's, of its older exporter
        torch.onnx.export(
            model,
            (torch.randn(1, 3, 256, 256),),
            path,
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )


def main() -> None:
    """Compile a file, and show what became of it."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "fused.onnx"
        export(source)
        made = reparam.compile_onnx(source, target)
        print(made.report)  # nodes are called by their names in the file
        print(made.equivalence, made.checked)


if __name__ == "__main__":
    main()
