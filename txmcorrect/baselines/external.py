"""Peers from other packages, each run by a Python of its own; arrays travel as .npy files.

`TXMCORRECT_NABU_PYTHON` and `TXMCORRECT_BASIC_PYTHON` name the interpreters (`make peers` makes
them); without them the running interpreter is tried. Where a package is missing the peer is
skipped and says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from txmcorrect.baselines.contract import (
    Estimate,
    MissingPackageError,
    NotApplicableError,
    Problem,
    brightness,
)
from txmcorrect.errors import TxmError

TIMEOUT_S = 600
# Peer -> name in the variable, module that it needs.
PACKAGES = {"nabu-pca": ("nabu", "nabu.preproc.flatfield"), "basic": ("basic", "basicpy")}

# Jailin et al. 2017 as nabu implements it: weights by least squares on strips at both sides.
NABU = """
import sys, numpy as np
from nabu.preproc.flatfield import PCAFlatsDecomposer, PCAFlatsNormalizer
data = np.load(sys.argv[1])
none = np.zeros(data["flats"].shape[1:], np.float32)
pca = PCAFlatsDecomposer(data["flats"].copy(), none, nsigma=3)
fit = PCAFlatsNormalizer(np.array(pca.components), none, pca.mean)
out = []
for frame in data["frames"]:
    weights = fit.correctproj(frame)[1]
    out.append(fit.mean - np.tensordot(weights, fit.components, 1))
np.save(sys.argv[2], np.array(out, np.float32))
"""

# Peng et al. 2017 as basicpy 2 implements it; its own search for the smoothness takes minutes a
# stack and chose about what its default gives, so the default stays.
BASIC = """
import sys, numpy as np
from basicpy import BaSiC
frames = np.load(sys.argv[1])["frames"]
basic = BaSiC(get_darkfield=False)
basic.fit(frames)
np.save(sys.argv[2], np.log(np.maximum(basic.flatfield, 1e-3)).astype(np.float32))
"""


def nabu_pca(problem: Problem) -> Estimate:
    """Nabu's PCAFlatsDecomposer and PCAFlatsNormalizer on the bank of references."""
    if problem.bank is None or len(problem.bank.counts) < 3:
        raise NotApplicableError("expected a bank of at least 3 references, got fewer")
    python = _python(*PACKAGES["nabu-pca"])
    flats = np.maximum(problem.bank.counts - problem.dark, 0.5).astype(np.float32)
    frames = np.maximum(problem.frames - problem.dark, 0.5).astype(np.float32)
    return Estimate(_run(python, NABU, frames=frames, flats=flats))


def basic(problem: Problem) -> Estimate:
    """BaSiC's smooth flat-field of the stack, times each frame's brightness."""
    python = _python(*PACKAGES["basic"])
    gain = brightness(problem).astype(np.float32)[:, None, None]
    light = np.maximum(problem.frames - problem.dark, 0.5)
    level = np.exp(gain - gain.mean())
    flat = _run(python, BASIC, frames=(light / level).astype(np.float32))
    return Estimate(
        (flat + np.log(light[:, problem.lit].mean()) + gain - gain.mean()).astype(np.float32)
    )


def is_available(peer: str) -> bool:
    """Whether a peer of another package can run here."""
    try:
        return bool(_python(*PACKAGES[peer]))
    except MissingPackageError:
        return False


@cache
def _python(name: str, module: str) -> str:
    """The interpreter that has `module`, or the reason why there is none."""
    variable = f"TXMCORRECT_{name.upper()}_PYTHON"
    python = os.environ.get(variable, sys.executable)
    probe = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    if probe.returncode:
        raise MissingPackageError(
            f"expected {module} to be importable by {Path(python).name}, it is not: set {variable}"
        )
    return python


def _run(python: str, script: str, **arrays: np.ndarray) -> np.ndarray:
    """Run a script that reads arrays from its first argument and saves one to its second."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "in.npz", Path(folder) / "out.npy"
        np.savez(given, **arrays)  # type: ignore[arg-type]
        done = subprocess.run(
            [python, "-c", script, str(given), str(made)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise TxmError(f"the peer's program failed with exit {done.returncode}: {last}")
        return np.load(made)
