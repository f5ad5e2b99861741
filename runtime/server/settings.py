"""What an operator chooses about a server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits and keys. Without keys the API is open. Pages of `origins` may use it from a browser;
    "*" is every page.

    `max_waiting` sequences may wait beside those that one step can run. `drain_seconds` is what
    requests have to end once the server is asked to. `thoughts` are told from answers, tool `calls`
    are read. With `own_templates` requests may bring chat templates of their own. `kept_responses`
    are there to be continued by their ids.
    """

    api_keys: tuple[str, ...] = ()
    max_waiting: int = 256
    max_body_bytes: int = 8 << 20
    request_seconds: float = 600.0
    drain_seconds: float = 30.0
    origins: tuple[str, ...] = ()
    thoughts: bool = True
    calls: bool = True
    own_templates: bool = False
    kept_responses: int = 1024
