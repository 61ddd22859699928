"""Finds etcd for the tests, or brings it: `python scripts/etcd.py` prints where it is.

An etcd on the PATH is taken as it is. Else Debian's package is unpacked into .peers/etcd; nothing is installed, no
rights are needed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / ".peers" / "etcd"


def find() -> Path | None:
    """The program, if there is one on this machine already."""
    on_path = shutil.which("etcd")
    ours = ROOT / "usr" / "bin" / "etcd"
    return Path(on_path) if on_path else ours if ours.exists() else None


def bring() -> Path:
    """Download and unpack the package. Raises CalledProcessError, FileNotFoundError (no Debian)."""
    ROOT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "--quiet=2", "etcd-server"], cwd=folder, check=True)
        (package,) = Path(folder).glob("etcd-server_*.deb")
        subprocess.run(["dpkg-deb", "--extract", str(package), str(ROOT)], check=True)
    return ROOT / "usr" / "bin" / "etcd"


def main() -> int:
    try:
        print(find() or bring())
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        print(f"no etcd: install Debian's etcd-server, or put etcd on the PATH ({error})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
