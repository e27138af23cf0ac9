"""Compile ext/*.pyx into qkdhw/_core/ and ext/optics/*.pyx into emulators/_optics/; the rest is in pyproject.toml.

Environment:
    QKDHW_CYTHON_DEBUG=1   bounds and initialisation checks on (the kernel tests run on both builds)
    QKDHW_KERNELS=a,b      build only these kernels, such as ptu or optics/light
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("QKDHW_CYTHON_DEBUG") == "1"
only = set(filter(None, os.environ.get("QKDHW_KERNELS", "").split(",")))
stems = sorted(str(path.relative_to("ext").with_suffix("")) for path in Path("ext").rglob("*.pyx"))
# The emulated optics draw with NumPy's own C distributions, which come as a static library.
random_library = {"library_dirs": [str(Path(numpy.random.__file__).parent / "lib")], "libraries": ["npyrandom", "m"]}


def kernel(stem: str) -> Extension:
    """Describe one kernel."""
    name = stem.replace("optics/", "qkdhw_emulators._optics.") if "/" in stem else f"qkdhw._core.{stem}"
    return Extension(
        name,
        [f"ext/{stem}.pyx"],
        include_dirs=["ext", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=["-O1", "-g"] if debug else ["-O3"],
        **(random_library if "/" in stem else {}),
    )


extensions = [kernel(stem) for stem in stems if not only or stem in only]

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
        include_path=["ext", "ext/optics"],
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
