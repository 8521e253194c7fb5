"""TXM simulator with exact truth: beams, samples, scans, worlds and training draws."""

from txmcorrect.simulate.scans import SimulatedScan, simulate_scan, stream
from txmcorrect.simulate.worlds import draw_world

__all__ = ["SimulatedScan", "draw_world", "simulate_scan", "stream"]
