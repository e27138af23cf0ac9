"""Compile ext/*.pyx into qkdhw/_core/; everything else about the package is in pyproject.toml.

Environment:
    QKDHW_CYTHON_DEBUG=1   bounds and initialisation checks on (the kernel tests run on both builds)
    QKDHW_KERNELS=a,b      build only these kernels
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("QKDHW_CYTHON_DEBUG") == "1"
only = set(filter(None, os.environ.get("QKDHW_KERNELS", "").split(",")))
stems = sorted(path.stem for path in Path("ext").glob("*.pyx"))

extensions = [
    Extension(
        f"qkdhw._core.{stem}",
        [f"ext/{stem}.pyx"],
        include_dirs=["ext", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=["-O1", "-g"] if debug else ["-O3"],
    )
    for stem in stems
    if not only or stem in only
]

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
    ext_modules=cythonize(
        extensions,
        include_path=["ext"],
        build_dir="build/cython-debug" if debug else "build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": debug,
            "wraparound": False,
            "initializedcheck": debug,
            "cdivision": True,
            "embedsignature": True,
            "binding": True,
            "autotestdict": False,
        },
    ),
)
