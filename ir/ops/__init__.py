"""The ops, in three families: tensor, model, serving. Importing this package declares them all."""

from . import model, serving, tensor

__all__ = ["model", "serving", "tensor"]
