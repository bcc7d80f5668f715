"""python -m passthru"""

from .cli import script

script()
