import sys
from pathlib import Path

# `experiments` is no part of the installed package; its commands run from the repository's root.
sys.path.insert(0, str(Path(__file__).parents[2]))
