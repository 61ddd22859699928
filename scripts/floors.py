"""Test the package with the lowest versions that pyproject.toml allows of what it uses.

    python scripts/floors.py [pytest's arguments]

Makes an environment in build/floors: each requirement of the package and of its extras for use at the version after `>=`,
the tools of the tests as they are. Then it runs the tests there. Needs the packages `pip` and `venv`, and a package index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "floors"
FOR_DEVELOPERS = ("bench", "examples", "test")
#: They need a real Dynamo, or look at the source tree rather than at what it uses.
LEFT_OUT = ("tests/interop", "tests/compat", "tests/mutants", "tests/test_benchmarks.py", "tests/test_cost.py")


def floors() -> list[str]:
    """The requirements of the package and of its extras for use, each at its lowest version; markers stay."""
    _, _, text = (ROOT / "pyproject.toml").read_text("utf-8").partition("\ndependencies = [")
    required, _, rest = text.partition("\n]")
    extras = re.findall(r"^(\w+) = \[(.*)\]", rest.partition("\n[tool.")[0], re.MULTILINE)
    lines = [required, *(listed for name, listed in extras if name not in FOR_DEVELOPERS)]
    found = {each for line in lines for each in re.findall(r'"([^"]+)"', line) if not each.startswith("dynamo-fast[")}
    return sorted(re.sub(r"(\[\w+\])?>=", "==", each, count=1) for each in found)


def main() -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER, with_pip=True)
    python = str(FOLDER / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    lowest = FOLDER / "floors.txt"
    lowest.write_text("\n".join([*floors(), ""]), encoding="utf-8")
    print(lowest.read_text("utf-8"), flush=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(lowest)]
    # The tests run in this source tree, with the extensions that are built in it; here the requirements are what counts.
    subprocess.run([*install, f"{ROOT}[test]"], env={**os.environ, "DYNAMO_FAST_BUILD": "python"}, check=True)
    ignored = [f"--ignore={each}" for each in LEFT_OUT]
    command = [python, "-m", "pytest", "-q", *ignored, *sys.argv[1:]]
    # Programs that the tests start elsewhere run this tree, too.
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
