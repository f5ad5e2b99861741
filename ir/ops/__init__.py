"""The ops in families: tensor, model, recurrent, selection, serving, quantized. Importing this
package declares all.
"""

from . import model, quantized, recurrent, selection, serving, tensor

__all__ = ["model", "quantized", "recurrent", "selection", "serving", "tensor"]
