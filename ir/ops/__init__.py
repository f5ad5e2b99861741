"""The ops in families: tensor, model, serving, quantized. Importing this package declares all."""

from . import model, quantized, serving, tensor

__all__ = ["model", "quantized", "serving", "tensor"]
