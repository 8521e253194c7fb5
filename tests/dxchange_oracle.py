"""The real dxchange, as Debian packages it, asked in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# A folder with the package unpacked (dpkg -x) serves as well.
DEBIAN = Path(os.environ.get("TXMCORRECT_DXCHANGE", "/usr/lib/python3/dist-packages"))


def find_dxchange(folder: Path) -> Path:
    """Make a folder from which Debian's dxchange alone can be imported, or skip the test.

    dxchange imports pandas for one beamline's log files only; an empty module stands in for it.
    """
    if not (DEBIAN / "dxchange").is_dir():
        pytest.skip("Debian's python3-dxchange is not installed")
    path = folder / "dxchange_only"
    path.mkdir()
    (path / "dxchange").symlink_to(DEBIAN / "dxchange")
    if (DEBIAN / "six.py").exists():
        (path / "six.py").symlink_to(DEBIAN / "six.py")
    (path / "pandas.py").touch()
    return path


def run_python(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """Run code with some folders first on the path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=env,
    )


def ask_dxchange(folder: Path, code: str) -> str:
    """Run code after `import dxchange, json, numpy`; returns its last line of output."""
    code = "import dxchange, json, numpy\n" + textwrap.dedent(code)
    done = run_python(code, find_dxchange(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
