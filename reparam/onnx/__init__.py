"""Models that exist only as ONNX files: the same passes over them, checked in ONNX Runtime."""
