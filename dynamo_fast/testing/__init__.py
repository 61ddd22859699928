"""What tests of programs that use this package need: a router and a worker in one process, a network that fails, a clock.

`Plane` and `FaultProxy` need no test framework; `dynamo_fast.testing.plugin` has them as fixtures for pytest. Either is
loaded when it is first used: the clock alone needs only the standard library.
"""

from typing import TYPE_CHECKING

from dynamo_fast._lazy import lazy

if TYPE_CHECKING:
    from dynamo_fast.testing.faults import FaultProxy
    from dynamo_fast.testing.plane import Plane
else:
    __getattr__, __dir__ = lazy(
        __name__, {"dynamo_fast.testing.faults": "FaultProxy", "dynamo_fast.testing.plane": "Plane"}
    )

__all__ = ["FaultProxy", "Plane"]
