"""Binds the calls of a plan to launches: dims, addresses, grids, once for each set of dims."""

from collections.abc import Callable, Mapping

from ...ir.launches import Function, Launch, LaunchTable
from ...ir.plan import Argument, Call, Plan, PlanError, evaluate_dim, evaluate_shape
from .driver import Given, Prepared

MOST_ACROSS, MOST_DOWN = 1 << 31, 1 << 16
"""What the axes of a grid have fewer programs than (CUDA C++ Programming Guide, compute
capabilities)."""
Address = Callable[[Argument], int]


class Binding:
    """The calls of a plan as launches. `address` says where an argument lies, `scratch` where the
    scratch of a call begins, which all calls share.
    """

    def __init__(self, plan: Plan, table: LaunchTable, address: Address, scratch: int) -> None:
        self.plan, self.table = plan, table
        self._address, self._scratch = address, scratch
        missing = [n for n in plan.kernels() if n not in table.functions]
        if missing:
            raise PlanError(f"no launches for {', '.join(missing)}, which the plan calls")

    def bind(self, entry: str, dims: Mapping[str, int]) -> list[Prepared]:
        """The launches of an entry for these dims, in order."""
        return [p for launches in self.by_call(entry, dims) for p in launches]

    def by_call(self, entry: str, dims: Mapping[str, int]) -> list[list[Prepared]]:
        """The launches of each call of an entry for these dims."""
        if entry not in self.plan.entries:
            raise PlanError(f"no entry {entry!r}; the plan has {', '.join(self.plan.entries)}")
        return [self.of_call(call, dims) for call in self.plan.entries[entry].calls]

    def of_call(self, call: Call, dims: Mapping[str, int]) -> list[Prepared]:
        """The launches of one call."""
        function = self.table.functions[call.kernel]
        shapes = [evaluate_shape(a.shape, dims) for a in call.arguments]
        own = function.solve(shapes)
        offsets, end = function.scratch_offsets(own)
        if end > self.table.scratch_bytes:
            raise PlanError(
                f"{call.kernel}: {end} bytes of scratch for {own}; {self.table.scratch_bytes} are "
                "there"
            )
        scratch = [self._scratch + o for o in offsets]
        made = (
            self._prepared(function, each, call, own, scratch)
            for each in function.form(own).launches
            if each.unless is None
            or evaluate_dim(each.unless[0], own) != evaluate_dim(each.unless[1], own)
        )
        return [p for p in made if min(p.grid) > 0]

    def _prepared(
        self,
        function: Function,
        launch: Launch,
        call: Call,
        dims: Mapping[str, int],
        scratch: list[int],
    ) -> Prepared:
        given: list[Given] = []
        for kind, number, dtype in ((p.kind, p.number, p.dtype) for p in launch.pointers):
            own = kind == "scratch"
            value = scratch[number] if own else self._address(call.arguments[number])
            given.append(Given(value, dtype))
        given += [Given(dims[name], "") for name in launch.dims]
        sizes = [evaluate_dim(e, dims) for e in launch.grid]
        x, y, z = (*sizes, *(1,) * (3 - len(sizes)))
        if x >= MOST_ACROSS or max(y, z) >= MOST_DOWN:
            raise PlanError(
                f"{call.kernel}: {launch.entry} would take {x} x {y} x {z} programs for {dims}; "
                f"a GPU has fewer than {MOST_ACROSS} x {MOST_DOWN} x {MOST_DOWN}"
            )
        workspace = scratch[launch.workspace.number] if launch.workspace else 0
        product = launch.product and (evaluate_dim(launch.product[0], dims), *launch.product[1:])
        return Prepared(function.source, launch, (x, y, z), tuple(given), workspace, product)
