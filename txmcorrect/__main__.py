"""Entry point of `txmcorrect`, `python -m txmcorrect` and `accelerate launch txmcorrect ...`."""

import os
import sys
from pathlib import Path

# Work is shared out by frame, slab and worker; linear algebra that takes all cores for itself gets in
# its way (seven times slower on two busy cores), and its sums would depend on their number.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# `accelerate launch txmcorrect train` runs this folder as a script and puts it first on sys.path,
# where our modules would shadow others (and be importable twice). The package itself is installed.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)

from txmcorrect.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
