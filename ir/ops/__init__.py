"""The ops in families: tensor, model, recurrent, serving, quantized. Importing this package
declares all.
"""

from . import model, quantized, recurrent, serving, tensor

__all__ = ["model", "quantized", "recurrent", "serving", "tensor"]
