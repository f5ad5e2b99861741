"""`--help=TOPIC`: a part of a command's help, by the name of a group or of an option."""

from __future__ import annotations

import difflib
import pydoc
from collections.abc import Sequence

import typer
from typer.core import TyperCommand, TyperOption

GROUPS, WHOLE = "listgroup", "page"
_FLAG = "--help="
_REST = "Options"


class TopicalHelp(TyperCommand):
    """A command whose help can be asked for in parts: --help=listgroup names the groups of options,
    --help=GROUP and --help=OPTION show theirs, --help=page shows all in a pager.
    """

    # What typer calls a context has a name of its own inside typer.
    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ctx: typer.Context, args: list[str]
    ) -> list[str]:
        """Show the topic that is asked for and end; else parse as always."""
        before = args[: args.index("--")] if "--" in args else args
        topic = next((a.removeprefix(_FLAG) for a in before if a.startswith(_FLAG)), None)
        if topic is None:
            return super().parse_args(ctx, args)
        if topic == WHOLE:
            pydoc.pager(self.get_help(ctx))
        else:
            typer.echo(self._topic(ctx, topic))
        ctx.exit()

    def _topic(self, ctx: typer.Context, topic: str) -> str:
        groups = self._groups()
        if topic == GROUPS:
            return "\n".join(f"{name}: {len(found)} options" for name, found in groups.items())
        for name, found in groups.items():
            if name.lower() == topic.lower():
                return _written(ctx, name, found)
        wanted = topic.lstrip("-").lower().replace("_", "-")
        every = [o for found in groups.values() for o in found]
        named = [o for o in every if any(wanted in name for name in _names(o))]
        exact = [o for o in named if wanted in _names(o)]
        if not named:
            raise typer.BadParameter(_unknown(topic, groups, every), ctx=ctx)
        return _written(ctx, _REST, exact or named)

    def _groups(self) -> dict[str, list[TyperOption]]:
        found: dict[str, list[TyperOption]] = {}
        for option in self.params:
            if isinstance(option, TyperOption) and not option.hidden:
                found.setdefault(option.rich_help_panel or _REST, []).append(option)
        return found


def _names(option: TyperOption) -> list[str]:
    return [name.lstrip("-") for name in (*option.opts, *option.secondary_opts)]


def _written(ctx: typer.Context, title: str, options: Sequence[TyperOption]) -> str:
    formatter = ctx.make_formatter()
    records = [record for o in options if (record := o.get_help_record(ctx)) is not None]
    with formatter.section(title):
        formatter.write_dl(records)
    return formatter.getvalue().rstrip("\n")


def _unknown(
    topic: str, groups: dict[str, list[TyperOption]], options: Sequence[TyperOption]
) -> str:
    names = [*groups, *(n for o in options for n in _names(o))]
    near = difflib.get_close_matches(topic, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no group or option {topic!r}{hint} Groups: {', '.join(groups)}"
