"""Which references may be used with a scan, and by what factor their counts compare with its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from txmcorrect.errors import ReferenceMismatchError
from txmcorrect.scan import FloatArray, Optics, References, Scan

log = logging.getLogger(__name__)

# Relative differences that still count as the same setting.
TOLERANCE = {"energy": 1e-3, "pixel size": 1e-2, "magnification": 1e-2}
# Exposures and currents further apart than this are taken for different quantities.
PLAUSIBLE_RATIO = 50.0
STALE_SECONDS = 3600.0


@dataclass(frozen=True)
class MatchedReferences:
    """References that fit a scan.

    Attributes
    ----------
    scale : `(m,)` factors: a flat's dark-corrected counts times its factor are what it would have
        recorded at the scan's median exposure and current. 1 where the files do not say.
    frame_scale : `(n,)` exposure and current of each projection over their median; the flat
        expected for frame i is `flat * scale * frame_scale[i]`.
    absolute : exposure and current of both sides are recorded, so the scale is absolute.
    current_scale, frame_current : the part of `scale` and of `frame_scale` that recorded currents make; 1
    where they
        do not say. `exposed`: exposures of both sides are recorded.
    age_s : `(m,)` seconds between each flat and the projection nearest in time; None if unknown.
    warnings : what could not be checked, was forced, or is doubtful.
    """

    references: References
    scale: FloatArray
    frame_scale: FloatArray
    absolute: bool
    age_s: FloatArray | None
    warnings: tuple[str, ...] = ()
    current_scale: FloatArray | None = None
    frame_current: FloatArray | None = None
    exposed: bool = False

    def without_current(self, reason: str) -> MatchedReferences:
        """The same without what currents say."""
        if self.current_scale is None or self.frame_current is None:
            return self
        return replace(
            self,
            scale=self.scale / self.current_scale,
            frame_scale=self.frame_scale / self.frame_current,
            warnings=(*self.warnings, reason),
            current_scale=None,
            frame_current=None,
        )


def match_references(
    scan: Scan, references: References | Sequence[References], force: bool = False
) -> tuple[MatchedReferences, ...]:
    """Keep the groups of references that fit the scan, with factors, ages and warnings.

    Parameters
    ----------
    scan : raw scan.
    references : one group or several, as `open_references` or `scan.flats` give them.
    force : use references whose optics differ, and correct data that are already corrected.

    Raises
    ------
    ReferenceMismatchError : the scan is already corrected, or no group fits it.
    """
    check_raw(scan, force)
    groups = [references] if isinstance(references, References) else list(references)
    matched, refused = [], []
    for group in groups:
        reasons = _mismatches(scan, group)
        different_size = group.frames.shape[1:] != scan.shape[1:]
        if different_size or (reasons and not force):
            refused.append(f"{group.origin}: {'; '.join(reasons)}")
        else:
            matched.append(_matched(scan, group, tuple(f"forced: {reason}" for reason in reasons)))
    if refused and not matched:
        hint = "" if force else "; take matching references, or insist with --force"
        raise ReferenceMismatchError(
            f"{scan.path.name}: references do not match ({refused[0]}){hint}"
        )
    for reason in refused:
        log.warning("references left out: %s", reason)
    return _nearest_in_energy(scan, matched)


def of_energy(
    groups: Sequence[References], energies_ev: FloatArray | None, number: int
) -> list[References]:
    """Keep the references that belong to one energy of a stack: by their number, or else by theirs.

    `energies_ev` `(e,)` of the stack, None where it is not recorded. References of unknown energy
    belong to none: backgrounds differ between energies.
    """
    return [group for group in groups if _belongs(group, energies_ev, number)]


def _belongs(group: References, energies_ev: FloatArray | None, number: int) -> bool:
    if energies_ev is not None and group.optics.energy_ev is not None:
        distance = np.abs(energies_ev - group.optics.energy_ev)
        steps = np.diff(np.unique(energies_ev))
        near = steps.min() / 2 if len(steps) else np.inf
        return bool(distance.argmin() == number and distance.min() <= near)
    return group.energy_number == number


def _nearest_in_energy(
    scan: Scan, matched: list[MatchedReferences]
) -> tuple[MatchedReferences, ...]:
    """Of references at several energies, all within tolerance, keep those nearest to the scan's."""
    low, high = _energy_range(scan)
    known = [m.references.optics.energy_ev for m in matched if m.references.optics.energy_ev]
    if not low or not high or len(set(known)) < 2:
        return tuple(matched)
    nearest = min(known, key=lambda energy: abs(energy - (low + high) / 2))
    return tuple(m for m in matched if m.references.optics.energy_ev in (None, nearest))


def check_raw(scan: Scan, force: bool = False) -> None:
    """Refuse a scan that was already divided by a reference.

    Raises
    ------
    ReferenceMismatchError : it was, and `force` is not set.
    """
    if scan.corrected_by and not force:
        raise ReferenceMismatchError(
            f"{scan.path}: expected raw counts, but {scan.corrected_by} has already corrected them; "
            "use the raw data, or insist with --force"
        )


def _mismatches(scan: Scan, group: References) -> list[str]:
    """Say in what a group differs from the scan."""
    reasons = []
    (h, w), (rh, rw) = scan.shape[1:], group.frames.shape[1:]
    if (h, w) != (rh, rw):
        reasons.append(f"frames of {rh}x{rw} for a scan of {h}x{w}: another region or binning")
    ours, theirs = scan.optics, group.optics
    if ours.binning and theirs.binning and ours.binning != theirs.binning:
        reasons.append(f"binning {_pair(theirs.binning)} for {_pair(ours.binning)}")
    low, high = _energy_range(scan)
    if low and high and theirs.energy_ev:
        slack = TOLERANCE["energy"] * theirs.energy_ev
        if not low - slack <= theirs.energy_ev <= high + slack:
            reasons.append(f"energy {theirs.energy_ev:.1f} eV for {(low + high) / 2:.1f} eV")
    for name, a, b, unit in _numbers(ours, theirs):
        if a and b and abs(a - b) > TOLERANCE[name] * abs(a):
            reasons.append(f"{name} {b:.4g}{unit} for {a:.4g}{unit}")
    return reasons


def _numbers(ours: Optics, theirs: Optics) -> list[tuple[str, float | None, float | None, str]]:
    return [
        ("pixel size", ours.pixel_size_nm, theirs.pixel_size_nm, " nm"),
        ("magnification", ours.magnification, theirs.magnification, "x"),
    ]


def _pair(binning: tuple[int, int]) -> str:
    return f"{binning[0]}x{binning[1]}"


def _energy_range(scan: Scan) -> tuple[float | None, float | None]:
    if scan.energy_ev is None:
        return scan.optics.energy_ev, scan.optics.energy_ev
    return float(scan.energy_ev.min()), float(scan.energy_ev.max())


def _matched(scan: Scan, group: References, notes: tuple[str, ...]) -> MatchedReferences:
    n, m = scan.shape[0], group.frames.shape[0]
    scale, frame_scale, absolute = np.ones(m), np.ones(n), True
    warnings = list(notes)
    current_scale = frame_current = None
    exposed = False
    for name, ours, theirs in (
        ("exposure", scan.exposure_s, group.exposure_s),
        ("current", scan.current_ma, group.current_ma),
    ):
        middle, problem = _comparable(name, ours, theirs)
        if problem or ours is None or theirs is None:
            absolute = False
            warnings.append(problem)
            continue
        scale *= middle / theirs
        frame_scale *= ours / middle
        if name == "current":
            current_scale, frame_current = middle / theirs, ours / middle
        else:
            exposed = True
    unknown = _unchecked(scan.optics, group.optics)
    if unknown:
        warnings.append(f"cannot be checked: {', '.join(unknown)}")
    age = _age(scan, group)
    if age is not None and age.min() > STALE_SECONDS:
        warnings.append(f"the references are {age.min() / 3600:.1f} h old")
    return MatchedReferences(
        group,
        scale,
        frame_scale,
        absolute,
        age,
        tuple(warnings),
        current_scale,
        frame_current,
        exposed,
    )


def _comparable(name: str, ours: FloatArray | None, theirs: FloatArray | None) -> tuple[float, str]:
    """Median of the scan's values, or why the two sides cannot be compared."""
    if ours is None or theirs is None:
        sides = " and ".join(
            side for side, v in (("scan", ours), ("references", theirs)) if v is None
        )
        return 1.0, f"{name} of the {sides} is not recorded; counts are compared as they are"
    if not ((ours > 0).all() and (theirs > 0).all()):
        return 1.0, f"{name} is zero or negative somewhere; counts are compared as they are"
    middle = float(np.median(ours))
    ratio = middle / float(np.median(theirs))
    if not 1 / PLAUSIBLE_RATIO < ratio < PLAUSIBLE_RATIO:
        return 1.0, f"{name} differs by a factor {ratio:.3g} and is taken for another quantity"
    return middle, ""


def _unchecked(ours: Optics, theirs: Optics) -> list[str]:
    names = {"energy": "energy_ev", "binning": "binning", "magnification": "magnification"}
    return [
        name
        for name, field in names.items()
        if getattr(ours, field) is None or getattr(theirs, field) is None
    ]


def _age(scan: Scan, group: References) -> FloatArray | None:
    """Seconds from each flat to the nearest projection."""
    if scan.time_s is None or group.time_s is None:
        return None
    gaps = np.abs(group.time_s[:, None] - scan.time_s[None, :])
    return np.asarray(gaps.min(1), np.float64)
