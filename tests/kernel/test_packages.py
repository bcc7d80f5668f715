"""sdist and wheel: what is in them, and that what is installed from them runs and goes without a trace."""
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
from _daemon import ROOT, mounted

import passthru

BUILT = re.compile(r"\.(c|so|html)$|(^|/)(__pycache__|\.\w[^/]*|build|dist|\w*\.egg-info)/")

pytestmark = [
    pytest.mark.release_only("packages have release builds"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (ROOT / "MANIFEST.in").exists(), reason="no checkout: the package under test is installed"),
    pytest.mark.skipif(
        not all(map(find_spec, ("pip", "setuptools", "Cython"))), reason="pip, setuptools and Cython build packages"),
]


def run(*command: str | Path, cwd: Path = Path("/"), **environment: str) -> str:
    env = {**os.environ, **environment}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        if name not in environment:
            env.pop(name, None)
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def sources() -> set[str]:
    """The checkout's files, as far as they belong to what is distributed."""
    if (ROOT / ".git").exists():
        git = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard"]
        names = [n for n in run(*git, cwd=ROOT).split("\n") if n and (ROOT / n).exists()]
    else:
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file()]
    return {n for n in names if not BUILT.search(n) and n not in (".gitignore", "PKG-INFO", "setup.cfg")} | {".ci/run"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """(sdist, wheel): the wheel is built from the sdist, which therefore has all that is needed."""
    where = tmp_path_factory.mktemp("packages")
    copy = where / "copy"
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
        (copy / name).chmod((ROOT / name).stat().st_mode)
    build = "from setuptools import build_meta; import sys; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, where, cwd=copy)
    [sdist] = where.glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", where, sdist)
    [wheel] = where.glob("*.whl")
    return sdist, wheel


def test_sdist(packages):
    """All of the checkout is in it, so that the tests run from it too, and nothing that was built."""
    with tarfile.open(packages[0]) as tar:
        files = {m.name.partition("/")[2]: m for m in tar.getmembers() if m.isfile()}
    made = {n for n in files if n.startswith("passthru.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert set(files) - made == sources()
    for name in ("start", ".ci/run"):
        assert files[name].mode & 0o100, f"{name} cannot be executed"


def test_wheel(packages):
    """What runs and what type checkers read, and no sources."""
    names = set(zipfile.ZipFile(packages[1]).namelist())
    version = passthru.__version__
    assert packages[1].name.startswith(f"passthru-{version}-cp3")
    suffix = ".cpython-"
    modules = {n.partition(suffix)[0] for n in names if n.endswith(".so")}
    ours = sources()
    assert modules == {n[:-4] for n in ours if n.endswith(".pyx")}
    plain = {n for n in names if n.startswith("passthru/") and not n.endswith(".so")}
    assert plain == {n for n in ours if n.startswith("passthru/") and not n.endswith((".pyx", ".pxd", ".h"))}
    data = f"passthru-{version}.data/data/share/"
    pages = {n.rpartition("/")[2] for n in names if n.startswith(f"{data}man/")}
    assert pages == {n.rpartition("/")[2] for n in ours if re.fullmatch(r"man/.*\.\d", n)}
    completions = {n.removeprefix(data) for n in names if n.startswith(data) and not n.startswith(f"{data}man/")}
    assert completions == {"bash-completion/completions/passthru.bash", "zsh/site-functions/_passthru",
                           "fish/vendor_completions.d/passthru.fish"}
    rest = {n for n in names if not n.startswith(("passthru/", data))}
    assert {n.split("/")[0] for n in rest} == {f"passthru-{version}.dist-info"}


def test_installed(packages, place):
    """In a new environment: the version, a mount by command and by API, and nothing left when it is uninstalled."""
    venv = place / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # numpy and psutil are those of the tests' environment, behind its own.
    (site / "others.pth").write_text(f"{Path(numpy.__file__).parent.parent}\n")

    def files() -> set[str]:
        return {str(p.relative_to(venv)) for p in venv.rglob("*") if "__pycache__" not in p.parts}

    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", python]
    before = files()
    run(*pip, "install", "--no-deps", "--ignore-installed", packages[1])
    command = venv / "bin" / "passthru"
    assert run(command, "--version") == f"passthru {passthru.__version__}\n"
    where = run(python, "-P", "-c", "import passthru; print(passthru.__file__)").strip()
    assert where == str(site / "passthru" / "__init__.py")
    assert (venv / "share" / "man" / "man8" / "passthru.8").exists()

    src, mnt = place / "src", place / "mnt"
    src.mkdir()
    mnt.mkdir()
    (src / "f").write_text("here")
    try:
        run(command, src, mnt)
        assert mounted(mnt) and (mnt / "f").read_text() == "here"
        run("umount", mnt)
        code = "import passthru, sys\nwith passthru.mount(*sys.argv[1:]) as m: print(open(sys.argv[2] + '/f').read())"
        assert run(python, "-P", "-c", code, src, mnt) == "here\n"
    finally:
        if mounted(mnt):
            run("umount", "-l", mnt)

    run(*pip, "uninstall", "-y", "passthru")
    left = {n for n in files() - before if not (venv / n).is_dir()}
    assert not left and not list(site.glob("passthru*"))


DEBIAN = Path("/usr/bin/python3")


def debian_lacks() -> str:
    """Why tools/deb cannot be run here, or ''."""
    for program in ("dpkg-deb", "strip", "cc"):
        if not shutil.which(program):
            return f"no {program}"
    code = ("import ensurepip, os, sys, sysconfig, venv; assert sys.version_info >= (3, 11); "
            "assert os.path.exists(sysconfig.get_path('include') + '/Python.h')")
    if not DEBIAN.exists() or subprocess.run([DEBIAN, "-c", code], capture_output=True, check=False).returncode:
        return "no python3 of the system's own, 3.11 or newer, with venv and header files"
    return ""


@pytest.mark.skipif(bool(debian_lacks()), reason=debian_lacks())
def test_debian_package(tmp_path):
    deb = Path(run(ROOT / "tools" / "deb", tmp_path).strip())
    field = {name: run("dpkg-deb", "-f", deb, name).strip() for name in ("Package", "Version", "Depends")}
    assert (field["Package"], field["Version"]) == ("passthru", passthru.__version__)
    assert {"python3-numpy", "python3-psutil"} <= set(field["Depends"].split(", "))
    run("dpkg-deb", "-R", deb, tmp_path / "tree")
    tree = tmp_path / "tree"
    files = {str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_file()}
    site = "usr/lib/python3/dist-packages/passthru/"
    assert {n.partition(".")[0] for n in files if n.endswith(".so")} == {
        site.removesuffix("passthru/") + n[:-4] for n in sources() if n.endswith(".pyx")}
    assert {n for n in sources() if re.fullmatch(r"passthru/.*\.(py|pyi|typed)", n)} == {
        n.removeprefix(site.removesuffix("passthru/")) for n in files if n.startswith(site) and not n.endswith(".so")}
    assert {"DEBIAN/postinst", "DEBIAN/prerm", "usr/bin/passthru", "usr/sbin/mount.passthru",
            "usr/lib/systemd/system/passthru@.service", "usr/share/man/man8/passthru.8.gz",
            "usr/share/bash-completion/completions/passthru.bash", "usr/share/zsh/vendor-completions/_passthru",
            "usr/share/fish/vendor_completions.d/passthru.fish"} <= files
    for name in ("usr/bin/passthru", "usr/sbin/mount.passthru"):
        assert (tree / name).stat().st_mode & 0o777 == 0o755
    said = run(DEBIAN, "-B", "-c", "import passthru; print(passthru.__version__)", PYTHONPATH=str((tree / site).parent))
    assert said.strip() == passthru.__version__
