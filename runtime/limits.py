"""Limits below those that an artifact was built for."""


def check_budget(tokens: int | None, max_batch: int) -> None:
    """Raise ValueError where a step has no room for a token of each sequence of a full batch."""
    if tokens is not None and tokens < max_batch:
        raise ValueError(
            f"token_budget={tokens}: wanted {max_batch} or more, one token for each sequence of a"
            " full batch"
        )


def at_most(name: str, given: int | None, limit: int) -> int:
    """A limit that was given, or the artifact's own; ValueError where it is above that."""
    if given is not None and not 1 <= given <= limit:
        raise ValueError(f"{name}={given}: wanted 1 to {limit}, which the artifact was built for")
    return limit if given is None else given


def ended_by(reason: str, limit: int, most: int) -> str:
    """What in a model bounds its context, as the end of a sentence; nothing where there is no such
    thing, or where a lower limit was asked for.
    """
    return f": in the model, {reason}" if reason and limit == most else ""
