"""The slips that tests have to notice (tests/mutants.toml) can still be made: their texts and their tests are there."""
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "mutants"


@pytest.mark.skipif(not TOOL.exists(), reason="no tools here: a copy with a slip in it")
def test_list():
    listed = subprocess.run([sys.executable, TOOL, "--list"], capture_output=True, text=True)
    lines = listed.stdout.splitlines()
    wrong = [f"{slip} {said}" for slip, said in itertools.pairwise(lines) if "ERROR" in said]
    assert listed.returncode == 0, "\n".join(wrong) or listed.stderr
