"""Tests find the package in the checkout if it is not installed."""
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("passthru") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
