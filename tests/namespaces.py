"""Machines with networks of their own: network namespaces, made with `unshare` and `ip` (Linux, root)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 60
"""Seconds after which a command in a namespace counts as hung."""


class Machine:
    """A network namespace. It has `lo`, and what commands add to it; it ends when `close` ends the process in it."""

    def __init__(self) -> None:
        script = "ip link set lo up && echo ready && exec cat"
        pipe = subprocess.PIPE
        self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdin=pipe, stdout=pipe, stderr=pipe)
        assert self._holder.stdout is not None
        self.made = self._holder.stdout.readline() == b"ready\n"

    @property
    def pid(self) -> int:
        return self._holder.pid

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs `arguments` on this machine."""
        return ["nsenter", "--net", "--target", str(self.pid), "--", *arguments]

    def set_up(self, commands: str) -> None:
        """Run shell commands on this machine; the first that fails raises CalledProcessError."""
        subprocess.run(self.command("sh", "-ec", commands), check=True, timeout=LIMIT)

    def add_interface(self, name: str, *addresses: str) -> None:
        """An interface that is up, with these addresses (`10.9.0.1/24`), and no default route."""
        self.set_up(f"ip link add {name} type veth peer name peer-{name} && ip link set peer-{name} up")
        self._raise_interface(name, addresses)

    def link(self, other: Machine, here: str, there: str) -> None:
        """A wire between two machines: `net0` on both, with one address each."""
        self.set_up(f"ip link add net0 type veth peer name net0 netns {other.pid}")
        self._raise_interface("net0", [here])
        other._raise_interface("net0", [there])

    def run(self, script: str, settings: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """A Python program that has run on this machine, and succeeded."""
        done = subprocess.run(
            self.command(sys.executable, "-c", script),
            env=environment(settings),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    def close(self) -> None:
        self._holder.communicate(timeout=LIMIT)

    def _raise_interface(self, name: str, addresses: list[str] | tuple[str, ...]) -> None:
        adding = [f"ip addr add {each} dev {name}{' nodad' if ':' in each else ''}" for each in addresses]
        self.set_up("; ".join([f"ip link set {name} up", *adding]))


def environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the tests without Dynamo's own variables, and with `settings`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "DYNAMO_FAST_"))}
    return {**kept, **(settings or {})}


@contextmanager
def machines(count: int = 1) -> Iterator[list[Machine]]:
    """New machines; skips the test, saying why, where none can be made."""
    missing = _missing()
    if missing:
        pytest.skip(f"no network namespaces here: {missing}")
    made: list[Machine] = []
    try:
        for _ in range(count):
            made.append(Machine())
            if not made[-1].made:
                pytest.skip("no network namespaces here: `unshare --net` is refused (it needs CAP_SYS_ADMIN)")
        yield made
    finally:
        for machine in made:
            machine.close()


def _missing() -> str:
    if sys.platform != "linux":
        return "they need Linux"
    if os.geteuid() != 0:
        return "they need root"
    absent = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (iproute2, util-linux)" if absent else ""
