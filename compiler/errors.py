"""Errors of the compiler layer."""


class CompileError(Exception):
    """A model, checkpoint or option that cannot be compiled: says what was given, what was wanted,
    and where.
    """
