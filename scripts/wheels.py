"""Build the distributions into dist/, and test each wheel in an environment that knows nothing of this source tree.

    python scripts/wheels.py [3.10 3.11 3.12 3.13]

One sdist; from it, one wheel without the extension, and one with it for each Python version that is installed here. Every
wheel is looked into, and tested by the tests of the sdist on its own interpreter, the one without the extension on all of
them. A build whose compiler fails must make the wheel without the extension. Needs the packages `build` and `pip`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
#: They test the source tree, or need a real Dynamo: what the release leaves out, too.
NOT_OF_A_WHEEL = tuple(
    re.findall(
        r"--ignore=([\w/.]+)", (ROOT / "pyproject.toml").read_text("utf-8").partition("cibuildwheel.overrides")[0]
    )
)
#: What is Python, and compiled with the types beside it.
TYPED = [
    name.replace(".", "/")
    for name in re.findall(r'^    "dynamo_fast\.([\w.]+)",$', (ROOT / "setup.py").read_text("utf-8"), re.MULTILINE)
]
LARGEST = 4_000_000
"""Bytes of a wheel: 0.5 MB are Python and recorded frames, and each of some thirty extensions is 70 kB, compressed. To
strip their symbols would save a tenth, and take the names of functions from profilers."""
LIMIT = 3600
"""Seconds for one command, on a busy machine: one compiles forty extensions, and one runs all tests."""
SHOW = "import dynamo_fast; from dynamo_fast import codec; print(codec.BACKEND, dynamo_fast.__file__)"


def run(*command: str | Path, folder: Path = ROOT, **environment: str) -> str:
    """The output of a command; its failure ends everything, with all that it said."""
    if sys.stderr.isatty():  # these take minutes
        print("...", *(Path(each).name for each in command[:6]), file=sys.stderr)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DYNAMO_FAST_BACKEND")}
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd=folder,
            env=kept | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        sys.exit(f"{' '.join(map(str, command))}: not done after {LIMIT} s")
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))}: exit status {done.returncode}")
    return done.stdout


def interpreter(version: str) -> str | None:
    """A Python of that version: on the path, or one of pyenv's."""
    candidates: list[str | Path | None] = [
        shutil.which(f"python{version}"),
        *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")),
    ]
    for candidate in filter(None, candidates):
        done = subprocess.run([str(candidate), "-c", ""], capture_output=True, timeout=30, check=False)
        if not done.returncode:
            return str(candidate)
    return None


def unpacked(archive: Path, folder: Path) -> Path:
    """The source tree that an sdist holds: what a person has who tests it."""
    with tarfile.open(archive) as files:
        files.extractall(folder)
    (tree,) = folder.iterdir()
    return tree


def sdist() -> Path:
    """The source distribution, made sure to hold what the extension is compiled from."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", DIST)
    (archive,) = DIST.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    types = [str(each.relative_to(ROOT)) for each in (ROOT / "dynamo_fast").rglob("*.pxd")]
    needed = {"setup.py", "dynamo_fast/_codec.pyx", *types}
    missing = {*needed, "dynamo_fast/conformance/vectors/index.json"} - names
    if missing:
        sys.exit(f"{archive.name} lacks {', '.join(sorted(missing))}")
    built = (name for name in names if name.endswith((".so", ".pyc")) or re.match(r"dynamo_fast/.*\.c$|build/", name))
    if stray := list(built):
        sys.exit(f"{archive.name} holds what was built: {', '.join(sorted(stray))}")
    return archive


def without_a_compiler(source: Path, python: str) -> None:
    """A build that finds no compiler makes a wheel that pip takes for what it is."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-cache-dir")
        run(python, "-m", "pip", "wheel", *quiet, "--wheel-dir", folder, source, DYNAMO_FAST_BUILD="auto", CC="false")
        (built,) = Path(folder).glob("*.whl")
        if not built.name.endswith("-py3-none-any.whl"):
            sys.exit(f"{built.name} was built without a compiler: it should be a wheel for any platform")
        look_into(built, "python")


def wheel(source: Path, python: str, backend: str) -> Path:
    """The wheel that `python` makes of the sdist."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        quiet = ("--quiet", "--disable-pip-version-check", "--no-deps")
        run(python, "-m", "pip", "wheel", *quiet, "--wheel-dir", made, source, DYNAMO_FAST_BUILD=backend)
        (built,) = made.glob("*.whl")
        if backend == "python" and not built.name.endswith("-py3-none-any.whl"):
            sys.exit(f"{built.name} should be a wheel for any platform")
        look_into(built, backend)
        return Path(shutil.move(built, DIST / built.name))


def look_into(built: Path, backend: str) -> None:
    """A wheel holds what is needed to run, and nothing of what it was made or tested with."""
    with zipfile.ZipFile(built) as files:
        names = files.namelist()
    if stray := [name for name in names if name.endswith((".c", ".pyx", ".pxd", ".pyc")) or name.startswith("tests/")]:
        sys.exit(f"{built.name} holds {', '.join(stray)}")
    compiled = [
        name for name in names if re.fullmatch(rf"dynamo_fast/(_codec|{'|'.join(TYPED)})\.[\w.-]+\.(so|pyd)", name)
    ]
    expected = 1 + len(TYPED) if backend == "cython" else 0
    if len(compiled) != expected:
        sys.exit(f"{built.name} should hold {expected} extensions, and holds {compiled}")
    needed = {"dynamo_fast/py.typed", "dynamo_fast/_codec.pyi", "dynamo_fast/conformance/vectors/index.json"}
    if missing := needed - set(names):
        sys.exit(f"{built.name} lacks {', '.join(sorted(missing))}")
    if built.stat().st_size > LARGEST:
        sys.exit(f"{built.name} is too large: {built.stat().st_size} bytes (limit: {LARGEST} bytes)")


def test(built: Path, tree: Path, python: str, backend: str) -> str:
    """Install the wheel into a new environment, and run the tests of a source tree there; returns their last line."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for each in ("tests", "docs", "deploy", "scripts"):
            shutil.copytree(tree / each, place / each)
        shutil.copy(tree / "pyproject.toml", place)
        run(python, "-m", "venv", place / "env")
        own = place / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        quiet = ("--quiet", "--disable-pip-version-check")
        run(own, "-m", "pip", "install", *quiet, f"{built}[test]", folder=place)
        shown = run(own, "-c", SHOW, folder=place)
        if not shown.splitlines()[-1].startswith(f"{backend} {place / 'env'}"):
            sys.exit(f"{built.name} gives another codec: {shown}")
        driver = (own, "-m", "dynamo_fast.conformance.driver")
        run(own, "-m", "dynamo_fast", "conformance", "--", *driver, folder=place, DYNAMO_FAST_BACKEND=backend)
        options = ["-q", "-p", "no:cacheprovider", *(f"--ignore={path}" for path in NOT_OF_A_WHEEL)]
        done = run(own, "-m", "pytest", *options, folder=place, DYNAMO_FAST_BACKEND=backend)
        return done.splitlines()[-1]


def main() -> None:
    asked = sys.argv[1:] or list(VERSIONS)
    if unknown := [version for version in asked if not re.fullmatch(r"3\.\d+", version)]:
        sys.exit(f"not a Python version: {', '.join(unknown)} (expected such as 3.12)")
    found = {version: interpreter(version) for version in asked}
    pythons = {version: python for version, python in found.items() if python is not None}
    for version in found.keys() - pythons.keys():
        print(f"Python {version}: left out, it is not installed here")
    if not pythons:
        sys.exit("none of these Pythons is installed")
    shutil.rmtree(DIST, ignore_errors=True)
    source = sdist()
    print(source.name, flush=True)
    first = next(iter(pythons.values()))
    pure = wheel(source, first, "python")
    if sys.platform != "win32":  # there the compiler has no variable
        without_a_compiler(source, first)
        print("without a compiler: a wheel for any platform", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tree = unpacked(source, Path(folder))
        for version, python in pythons.items():
            compiled = wheel(source, python, "cython")
            for built, backend in ((compiled, "cython"), (pure, "python")):
                print(f"{built.name}: Python {version}: {test(built, tree, python, backend)}", flush=True)


if __name__ == "__main__":
    main()
