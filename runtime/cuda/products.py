"""Products of matrices by the vendor's library, cuBLAS, which torch brings along: for linears of
many rows where measuring it said that it is faster than a kernel of our own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ..errors import ArtifactError

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
"""What is multiplied, by its name in launches, as torch names it."""


class Product(NamedTuple):
    """y[rows, columns] = x[rows, depth] w[columns, depth]^T: addresses of three contiguous
    matrices of one dtype.
    """

    dtype: str
    x: int
    w: int
    y: int
    rows: int
    columns: int
    depth: int


class Products(Protocol):
    """Makes products on a stream."""

    def ready(self, product: Product) -> Callable[[], object]:
        """What puts a product behind all that the stream was asked for. Its first run may allocate
        memory, later ones do not.
        """
        ...


class TorchProducts:
    """Products through torch, on a stream of the driver's. Sums are float32, whatever torch's
    settings were. Raises ArtifactError where torch, or a CUDA build of it, is not there.
    """

    def __init__(self, stream: int) -> None:
        wanted = "the artifact has products by cuBLAS, which go through torch"
        try:
            import torch
        except ImportError as error:
            raise ArtifactError(f"{wanted}: {error}; install torch, or compile it again") from error
        if not torch.cuda.is_available():
            raise ArtifactError(f"{wanted}: torch {torch.__version__} here sees no CUDA device")
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self._torch: Any = torch
        self._stream = torch.cuda.ExternalStream(stream)

    def ready(self, product: Product) -> Callable[[], object]:
        """What puts a product on the stream."""
        x, w, y = (
            self._matrix(product.dtype, *place)
            for place in (
                (product.x, product.rows, product.depth),
                (product.w, product.columns, product.depth),
                (product.y, product.rows, product.columns),
            )
        )
        turned, torch = w.t(), self._torch

        def run() -> None:
            with torch.cuda.stream(self._stream), torch.no_grad():
                torch.mm(x, turned, out=y)

        return run

    def _matrix(self, dtype: str, address: int, rows: int, columns: int) -> Any:
        """A tensor over memory that is there: the interface knows no bfloat16, so its bits."""
        shown = _Shown(address, rows, columns)
        tensor = self._torch.as_tensor(shown, device=self._stream.device)
        assert tensor.data_ptr() == address, "torch has made a copy"
        return tensor.view(getattr(self._torch, DTYPES[dtype]))


class _Shown:
    """A matrix of two-byte elements as the CUDA array interface shows it."""

    def __init__(self, address: int, rows: int, columns: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (rows, columns), "typestr": "<i2", "data": (address, False), "version": 3,
        }  # fmt: skip
