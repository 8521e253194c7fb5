"""TXM simulator with exact truth: beams, samples, scans and training draws."""

from txmcorrect.simulate.scans import SimulatedScan, simulate_scan, stream

__all__ = ["SimulatedScan", "simulate_scan", "stream"]
