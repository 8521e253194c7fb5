"""What can go wrong on the user's side; each message says what was expected, what came, the way out."""


class TxmError(Exception):
    """A user's mistake or an unusable input: one line, exit 1, no traceback."""


class FormatError(TxmError):
    """A file is not what it claims to be, or lacks what is needed."""


class ReferenceMismatchError(TxmError):
    """A reference differs from the scan in energy, binning, region, optics or flip."""


class OutputError(TxmError):
    """The output exists, is locked by another run, or cannot be written."""


class ModelError(TxmError):
    """A model file is missing, of another architecture or condition, or a pickle."""


class FlatFieldError(TxmError):
    """A flat does not exceed the dark, or no usable frame is left."""


class GeometryError(TxmError):
    """Tiles, angles or shifts do not fit the scan."""
