"""Errors of the IR layer."""


class IRError(Exception):
    """A program that is not well formed: says what was given, what was wanted, and where."""
