"""A compiler for structural re-parameterization: `fused = reparam.compile(model)`."""

from reparam.compiler import compile, prove  # noqa: A004 - the name that users look for
from reparam.errors import (
    CaptureError,
    Declined,
    ExportError,
    MissingExtraError,
    OnnxError,
    PassError,
    ReparamError,
    SourceError,
    TrainingModeError,
    VerificationError,
)
from reparam.export import OnnxExport, export_onnx
from reparam.graph import Apply, Call
from reparam.meaning import lift
from reparam.onnx.compiling import OnnxCompilation, compile_onnx
from reparam.pipelines import default_passes
from reparam.report import Remark, Report, report
from reparam.rewrite import Replace, require, rewrite
from reparam.verify import Equivalence, verify

__all__ = [
    "Apply",
    "Call",
    "CaptureError",
    "Declined",
    "Equivalence",
    "ExportError",
    "MissingExtraError",
    "OnnxCompilation",
    "OnnxError",
    "OnnxExport",
    "PassError",
    "Remark",
    "ReparamError",
    "Replace",
    "Report",
    "SourceError",
    "TrainingModeError",
    "VerificationError",
    "compile",
    "compile_onnx",
    "default_passes",
    "export_onnx",
    "lift",
    "prove",
    "report",
    "require",
    "rewrite",
    "verify",
]
