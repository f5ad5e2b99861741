"""The ops in families: tensor, model, recurrent, loops, selection, serving, quantized. Importing
this package declares all.
"""

from . import loops, model, quantized, recurrent, selection, serving, tensor

__all__ = ["loops", "model", "quantized", "recurrent", "selection", "serving", "tensor"]
