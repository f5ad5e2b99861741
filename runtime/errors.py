"""The errors that running an artifact can raise."""


class ArtifactError(Exception):
    """An artifact that cannot be opened, trusted or saved; the message says why and where."""


class RequestError(ValueError):
    """A request that cannot be served as it was given."""


class LogitsError(RequestError):
    """Logits that are no numbers: no token can be chosen from them."""


class QueueFullError(RequestError):
    """A request that came while too many others wait; it may be sent again later."""


class StepError(RuntimeError):
    """A kernel that raised while a step ran; the message names the kernel and its origin."""
