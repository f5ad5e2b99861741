"""The ops in families: tensor, model, recurrent, loops, contexts, selection, serving, quantized.
Importing this package declares all.
"""

from . import contexts, loops, model, quantized, recurrent, selection, serving, tensor

__all__ = ["contexts", "loops", "model", "quantized", "recurrent", "selection", "serving", "tensor"]
