"""``penstock.export``, also to be imported by that name: what writes a PyTorch model as ONNX. It brings torch."""

from penstock.worker.export import ExportFailed, Parity, to_onnx

__all__ = ["ExportFailed", "Parity", "to_onnx"]
