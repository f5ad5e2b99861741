"""What goes wrong when kernels are generated."""


class CodegenError(Exception):
    """A kernel body that cannot be compiled, with the op and the reason."""


class NotRowwise(Exception):
    """A value was wanted from another row than the one at hand; the caller splits the work
    otherwise.
    """
