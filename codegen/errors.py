"""What goes wrong when kernels are generated."""


class CodegenError(Exception):
    """A kernel body that cannot be compiled, with the op and the reason; `kernel` is the name of
    the kernel, where it is known.
    """

    def __init__(self, reason: str, kernel: str = "") -> None:
        super().__init__(reason)
        self.kernel = kernel


class NotRowwise(Exception):
    """A value was wanted from another row than the one at hand; the caller splits the work
    otherwise.
    """
