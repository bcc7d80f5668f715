"""fio writes patterns in many ways and verifies what it reads."""
import os
import shutil
import subprocess

import pytest
from _daemon import user_mode_linux
from _modes import DATA_TOO

pytestmark = [DATA_TOO, pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")]

JOBS = {
    "buffered": ["--ioengine=psync", "--bsrange=512-128k", "--bs_unaligned=1"],
    "direct": ["--ioengine=psync", "--direct=1", "--bs=4k"],
    "direct-large": ["--ioengine=libaio", "--direct=1", "--bs=1m", "--iodepth=4"],
    "mmap": ["--ioengine=mmap", "--bs=4k"],
    "libaio": ["--ioengine=libaio", "--direct=1", "--bsrange=4k-64k", "--iodepth=16"],
    "io_uring": ["--ioengine=io_uring", "--bsrange=4k-64k", "--iodepth=16"],
    "io_uring-direct": ["--ioengine=io_uring", "--direct=1", "--bs=4k", "--iodepth=16", "--fixedbufs"],
    "fsync": ["--ioengine=psync", "--bs=16k", "--fsync=8", "--fdatasync=5"],
}


@pytest.mark.parametrize("job", JOBS)
def test_verify(fs, place, job):
    if job == "mmap" and user_mode_linux() and os.cpu_count() != 1:
        pytest.skip("with several CPUs this kernel loses stores to mapped pages, see tests/mapped-stores")
    done = subprocess.run(
        ["fio", f"--name={job}", f"--directory={fs.mnt}", "--size=12m", "--numjobs=2", "--rw=randwrite",
         "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=7", "--group_reporting",
         f"--aux-path={place}", *JOBS[job]],
        capture_output=True, text=True, check=False)
    if "not loadable" in done.stderr:
        pytest.skip(f"this fio lacks the engine: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
