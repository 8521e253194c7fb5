"""What `make bench-speed` counts, which needs no clock."""

import json
import subprocess
import sys
from pathlib import Path

SPEED = Path(__file__).parent / "bench/speed.py"


def test_the_network_costs_less_than_a_gflop_a_frame(tmp_path):
    """Averaged over a tomogram of 720 frames that is as steady as can be."""
    out = tmp_path / "speed.json"
    subprocess.run([sys.executable, str(SPEED), "--parts", "counts", "--out", str(out)], check=True)
    counts = json.loads(out.read_text())["counts"]
    assert 0 < counts["gflop_per_frame"] <= 1
    assert 0 < counts["key_frames"] < 720
