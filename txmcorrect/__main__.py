"""Entry point of `txmcorrect`, `python -m txmcorrect` and `accelerate launch txmcorrect ...`."""

import sys
from pathlib import Path

# `accelerate launch txmcorrect train` runs this folder as a script and puts it first on sys.path,
# where our modules would shadow others (and be importable twice). The package itself is installed.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from txmcorrect.cli import main

if __name__ == "__main__":
    main()
