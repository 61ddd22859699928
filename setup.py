"""Builds the extensions where that is possible; everything else is in pyproject.toml.

`DYNAMO_FAST_BUILD=cython` makes a failure to compile an error, `=python` leaves the extensions out, as other Pythons than
CPython do: they run the Python sources faster.
`DYNAMO_FAST_DEBUG=1` compiles them with bounds checks and assertions.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# All but the codec are Python that Cython translates, with types in the .pxd beside it: without a compiler, the same files
# run.
TRANSLATED = [
    "dynamo_fast._native",
    "dynamo_fast.context",
    "dynamo_fast.deadlines",
    "dynamo_fast.egress._frames",
    "dynamo_fast.egress._items",
    "dynamo_fast.egress.call",
    "dynamo_fast.egress.instance_table",
    "dynamo_fast.egress.mux_session",
    "dynamo_fast.egress.pool",
    "dynamo_fast.egress.response_connection",
    "dynamo_fast.egress.response_receiver",
    "dynamo_fast.egress.response_stream",
    "dynamo_fast.egress.router",
    "dynamo_fast.egress.selection",
    "dynamo_fast.egress.stream_registry",
    "dynamo_fast.egress.tcp_client",
    "dynamo_fast.ingress._cork",
    "dynamo_fast.ingress.admission",
    "dynamo_fast.ingress.answer",
    "dynamo_fast.ingress.cancellation",
    "dynamo_fast.ingress.dialler",
    "dynamo_fast.ingress.mux_sender",
    "dynamo_fast.ingress.mux_session",
    "dynamo_fast.ingress.push_handler",
    "dynamo_fast.ingress.request",
    "dynamo_fast.ingress.response_connection",
    "dynamo_fast.ingress.tcp_server",
    "dynamo_fast.net._direct",
    "dynamo_fast.net.descriptors",
    "dynamo_fast.net.frame_protocol",
    "dynamo_fast.observability.histogram",
    "dynamo_fast.observability.metrics",
    "dynamo_fast.observability.worker_metrics",
    "dynamo_fast.runtime._arrived",
    "dynamo_fast.runtime._stream",
    "dynamo_fast.wire._plain",
    "dynamo_fast.wire._raw",
    "dynamo_fast.wire.annotated",
    "dynamo_fast.wire.control",
    "dynamo_fast.wire.headers",
    "dynamo_fast.wire.ids",
    "dynamo_fast.wire.stream",
]
SOURCES = {
    "dynamo_fast._codec": "dynamo_fast/_codec.pyx",
    **{module: f"{module.replace('.', '/')}.py" for module in TRANSLATED},
}
MODE = os.environ.get("DYNAMO_FAST_BUILD", "auto")
DEBUG = os.environ.get("DYNAMO_FAST_DEBUG", "") == "1"

if MODE not in ("auto", "cython", "python"):
    sys.exit(f"DYNAMO_FAST_BUILD={MODE!r} is not valid: expected 'auto' (or unset), 'cython' or 'python'")


def without_the_extension(reason: object) -> None:
    """Go on in pure Python, unless that was ruled out."""
    if MODE == "cython":
        sys.exit(f"DYNAMO_FAST_BUILD=cython, but the extensions cannot be compiled: {reason}")
    line = "*" * 78
    print(
        f"{line}\ndynamo_fast: the extensions were not compiled ({reason}).\nTheir Python sources run instead: the same "
        f"behaviour, and several times slower per frame.\nInstall a C compiler and build again to change that.\n{line}",
        file=sys.stderr,
    )


def extensions():
    """The extensions, translated to C; none if that cannot be done or is not wanted."""
    if MODE == "python" or (MODE == "auto" and sys.implementation.name != "cpython"):
        return []
    try:
        from Cython.Build import cythonize
        from Cython.Compiler import Options
    except ImportError as error:
        without_the_extension(error)
        return []
    Options.warning_errors = True
    flags = [] if sys.platform == "win32" else ["-O1", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g0"]
    directives = {
        "boundscheck": DEBUG,
        "wraparound": False,
        "initializedcheck": DEBUG,
        "overflowcheck": DEBUG,
        "language_level": 3,
    }
    macros = [] if DEBUG else [("CYTHON_WITHOUT_ASSERTIONS", "1")]
    extensions = [
        Extension(name, [source], extra_compile_args=flags, define_macros=macros) for name, source in SOURCES.items()
    ]
    return cythonize(extensions, compiler_directives=directives, build_dir="build")


class OptionalBuild(build_ext):
    """Compiles, on all cores where a compiler is a process of its own, or says why not and goes on."""

    def initialize_options(self):
        super().initialize_options()
        if sys.platform != "win32":
            self.parallel = os.cpu_count()

    def run(self):
        try:
            super().run()
        except Exception as error:  # each compiler has exceptions of its own
            without_the_extension(error)
            for built in self.get_outputs():  # some extensions fit only each other: all, or none
                Path(built).unlink(missing_ok=True)
            self.extensions = self.distribution.ext_modules = []

    def build_extension(self, extension):
        super().build_extension(extension)
        built = Path(self.get_ext_fullpath(extension.name))
        if not built.exists():
            raise RuntimeError(f"the compiler left no {built}")

    def copy_extensions_to_source(self):
        if self.extensions:
            super().copy_extensions_to_source()


class Wheel(bdist_wheel):
    """A wheel for any platform if the extensions were not compiled: pip must not take it for the compiled one later."""

    def run(self):
        self.run_command("build_ext")  # which may find that there is no compiler
        if not self.distribution.ext_modules:
            self.root_is_pure = True
        super().run()


setup(ext_modules=extensions(), cmdclass={"bdist_wheel": Wheel, "build_ext": OptionalBuild})
