"""What tests of programs that use this package need: a router and a worker in one process, a network that fails, a clock.

`Plane` and `FaultProxy` need no test framework; `dynamo_fast.testing.plugin` has them as fixtures for pytest.
"""

from dynamo_fast.testing.faults import FaultProxy
from dynamo_fast.testing.plane import Plane

__all__ = ["FaultProxy", "Plane"]
