"""Errors of the compiler layer."""


class CompileError(Exception):
    """A model that cannot be compiled, or a build that does not hold: says what was given, what
    was wanted, and where.
    """
