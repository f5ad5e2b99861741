"""Responses that are kept, so that clients may continue, read, cancel and delete them."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import ApiError
from .items import Item

MOST_BYTES = 64 << 20


@dataclass(eq=False)
class Kept:
    """A response: what it answered, and its body as far as it has come.

    `items` are the whole conversation before its output, `given` those of its own request. `owner`
    is the number of the API key that made it; `close` ends its work, where it runs in the
    background as `task`.
    """

    id: str
    owner: int | None
    items: tuple[Item, ...]
    given: tuple[dict[str, Any], ...]
    body: dict[str, Any]
    size: int = 0
    task: asyncio.Task[None] | None = None
    close: Callable[[], None] = field(default=lambda: None)

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self.body["status"] not in ("queued", "in_progress")

    def conversation(self) -> tuple[Item, ...]:
        """All items, the output's last."""
        output = [Item.model_validate(each) for each in self.body["output"]]
        return (*self.items, *output)


class KeptResponses:
    """At most `limit` responses and `most` bytes of them; the ones not read for longest go first.

    What a key made is there for that key alone.
    """

    def __init__(self, limit: int, most: int = MOST_BYTES) -> None:
        self.limit, self.most, self.bytes = limit, most, 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, kept: Kept) -> None:
        """Keep a response, or what it is by now."""
        self._forget(kept.id)
        kept.size = len(json.dumps((kept.body, kept.given), ensure_ascii=False))
        kept.size += sum(len(item.model_dump_json()) for item in kept.items)
        self._kept[kept.id] = kept
        self.bytes += kept.size
        idle = [k for k in self._kept.values() if k.is_over and k is not kept]
        for old in idle:
            if len(self._kept) <= self.limit and self.bytes <= self.most:
                break
            self._forget(old.id)

    def find(self, name: str, owner: int | None, param: str | None = None) -> Kept:
        """A response by its id; an error where it is not here, or another key's."""
        kept = self._kept.get(name)
        if kept is None or kept.owner != owner:
            status = 404 if param is None else 400
            code = "response_not_found" if param is None else "previous_response_not_found"
            raise ApiError(status, f"no response {name!r} is kept here", param=param, code=code)
        self._kept.move_to_end(name)
        return kept

    def remove(self, name: str, owner: int | None) -> None:
        """Delete a response, and end its work."""
        kept = self.find(name, owner)
        kept.close()
        self._forget(name)

    def item(self, name: str, owner: int | None) -> Item | None:
        """An item of a kept response, of its input or of its output."""
        for kept in reversed(self._kept.values()):
            if kept.owner == owner:
                for each in (*kept.given, *kept.body["output"]):
                    if each.get("id") == name:
                        return Item.model_validate(each)
        return None

    def resolved(self, items: Sequence[Item], owner: int | None) -> list[Item]:
        """The items, with those that are kept in the place of references."""
        return [
            (self.item(i.id or "", owner) or i) if i.type == "item_reference" else i for i in items
        ]

    def _forget(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            self.bytes -= kept.size
