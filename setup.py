"""Compile ext/*.pyx into qkdhw/_core/ and ext/optics/*.pyx into emulators/_optics/; the rest is in pyproject.toml.

Environment:
    QKDHW_CYTHON_DEBUG=1   bounds and initialisation checks on, and coverage for the fuzz targets
    QKDHW_SANITIZE=1       with gcc's sanitizers of addresses and of undefined behaviour
    QKDHW_KERNELS=a,b      build only these kernels, such as ptu or optics/light
    QKDHW_OPTIMIZE=0       compile in a fraction of the time, to kernels that are slow: 0 to 3, which is what is shipped
    QKDHW_TRANSLATED=DIR   where what Cython has translated before is found again
The first two make judges (`make bounds`, `make sanitize`): they belong in a folder of their own, beside the canary.
"""

import multiprocessing
import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("QKDHW_CYTHON_DEBUG") == "1"
mode = "bounds" if debug else "sanitize" if os.environ.get("QKDHW_SANITIZE") == "1" else "release"
only = set(filter(None, os.environ.get("QKDHW_KERNELS", "").split(",")))
stems = sorted(str(path.relative_to("ext").with_suffix("")) for path in Path("ext").rglob("*.pyx"))
SANITIZERS = "-fsanitize=address,undefined"
JUDGE = ["-g1", "-w"]
compile_args = {
    "release": [f"-O{os.environ.get('QKDHW_OPTIMIZE', '3')}"],
    "bounds": [*JUDGE, "-O1", "-include", "tests/fuzz/coverage.h", "-fsanitize-coverage=trace-pc,trace-cmp"],
    "sanitize": [*JUDGE, "-Og", SANITIZERS, "-fno-sanitize-recover=undefined", "-fno-wrapv", "-fno-omit-frame-pointer"],
}


def kernel(stem: str) -> Extension:
    """Describe one kernel of ext/."""
    name = stem.replace("optics/", "qkdhw_emulators._optics.") if "/" in stem else f"qkdhw._core.{stem}"
    return extension(name, f"ext/{stem}.pyx")


def extension(name: str, source: str) -> Extension:
    """Describe a compiled module."""
    return Extension(
        name,
        [source],
        include_dirs=["ext", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=compile_args[mode],
        extra_link_args=[SANITIZERS] if mode == "sanitize" else [],
        libraries=["m"],
    )


def translated(package: str, kernels: list[Extension]) -> list[Extension]:
    """Translate kernels to C; what they all need of memory views is compiled once, as a module of its own."""
    if not kernels:
        return []
    shared = f"{package}._views"
    return cythonize(
        [*kernels, extension(shared, f"{package.replace('.', '/')}/_views.c")],
        include_path=["ext", "ext/optics"],
        build_dir="build/judge/bounds/cython" if debug else "build/cython",
        cache=os.environ.get("QKDHW_TRANSLATED", "build/cython/translated"),
        nthreads=(os.cpu_count() or 1) if multiprocessing.get_start_method() == "fork" else 0,
        shared_utility_qualified_name=shared,
        compiler_directives={
            "language_level": 3,
            "boundscheck": debug,
            "wraparound": False,
            "initializedcheck": debug,
            "cdivision": True,
            "embedsignature": True,
            "binding": True,
            "autotestdict": False,
            "show_performance_hints": not debug,
        },
    )


core = [kernel(stem) for stem in stems if "/" not in stem and (not only or stem in only)]
optics = [kernel(stem) for stem in stems if "/" in stem and (not only or stem in only)]
if mode != "release":
    core.append(extension("canary", "tests/judges/canary.pyx"))

setup(
    packages=[
        *(str(p.parent).replace("/", ".") for p in sorted(Path("qkdhw").rglob("__init__.py"))),
        *(
            str(p.parent).replace("/", ".").replace("emulators", "qkdhw_emulators", 1)
            for p in sorted(Path("emulators").rglob("__init__.py"))
        ),
    ],
    package_dir={"qkdhw_emulators": "emulators"},
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    ext_modules=[*translated("qkdhw._core", core), *translated("qkdhw_emulators._optics", optics)],
)
