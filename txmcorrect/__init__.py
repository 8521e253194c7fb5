"""Background correction of transmission X-ray microscope images with diffusion models."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("txmcorrect")
except PackageNotFoundError:  # a source tree on sys.path, not installed
    __version__ = "0+unknown"
