"""Builds the Cython extensions. PASSTHRU_DEBUG=1: assertions; PASSTHRU_SANITIZE=1: ASan and UBSan."""
import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("PASSTHRU_DEBUG") == "1"
sanitize = os.environ.get("PASSTHRU_SANITIZE") == "1"

cflags = ["-std=gnu11", "-fno-strict-aliasing", "-fvisibility=hidden"]
cflags += ["-Wall", "-Wno-unused-function", "-Wno-sign-compare"]
cflags += ["-O1", "-g", "-UNDEBUG"] if debug else ["-O2", "-g1"]
macros = [("_GNU_SOURCE", None), ("_FILE_OFFSET_BITS", "64")]
lflags = []
if debug:
    macros.append(("PASSTHRU_DEBUG", "1"))
if sanitize:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    cflags += flags
    lflags += flags

setup(
    ext_modules=cythonize(
        [
            Extension(
                path[:-4].replace("/", "."),
                [path],
                include_dirs=["passthru"],
                define_macros=macros,
                extra_compile_args=cflags,
                extra_link_args=lflags,
                depends=[*glob("passthru/*.h"), *glob("passthru/*.pxd")],
            )
            for path in sorted(glob("passthru/*.pyx"))
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
        },
    ),
    options={"build_ext": {"parallel": os.cpu_count()}},
)
