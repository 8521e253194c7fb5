"""What is the same in all frames of a scan: the detector's fixed pattern, and what stands of its sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from txmcorrect.background.base import is_unchanged
from txmcorrect.background.cylinders import find_standing
from txmcorrect.background.detail import choose_frames
from txmcorrect.background.known import Known, kind_of, known_scan
from txmcorrect.background.mending import mended
from txmcorrect.background.pattern import Pattern, fixed_pattern, survey_light
from txmcorrect.background.scale import Reference
from txmcorrect.background.standing import Standing, without
from txmcorrect.background.survey import Survey
from txmcorrect.scan import Array, Scan
from txmcorrect.team import Pieces


@dataclass(frozen=True)
class Fixed:
    """`pattern` of the detector; `standing`: what stands of a sample that turns, None where nothing does."""

    pattern: Pattern
    standing: Standing | None = None

    def fitting(self, references: tuple[Reference, ...], factor: int) -> tuple[Reference, ...]:
        """The references that show the pattern, without their odd pixels; `factor` of the working grid."""
        odd = self.pattern.odd
        return tuple(
            mended(references[i], odd[odd[:, 0] == i, 1], factor) for i in self.pattern.fit.tolist()
        )

    def notes(self, references: tuple[Reference, ...]) -> tuple[str, ...]:
        """What is said of the others."""
        others = np.delete(np.arange(len(references)), self.pattern.fit).tolist()
        return tuple(
            f"{references[i].origin} shows another fixed pattern and was not used" for i in others
        )


def fixed_of(
    scan: Scan, survey: Survey, references: tuple[Reference, ...], memory: int, pieces: Pieces
) -> Fixed:
    """Find it once, whoever asks; `memory` in bytes."""

    def make(_: int) -> Mapping[str, Array]:
        found = find_fixed(scan, survey, references, memory)
        pattern, standing = found.pattern, found.standing
        return {
            "detail": pattern.detail,
            "fit": pattern.fit,
            "grain": np.array(pattern.grain),
            "odd": pattern.odd,
            "standing": np.array([] if standing is None else standing.as_numbers()),
        }

    (made,) = pieces.each("detail", 1, make)
    pattern = Pattern(made["detail"], made["fit"], float(made["grain"]), made["odd"])
    return Fixed(pattern, Standing.of(made["standing"]) if len(made["standing"]) else None)


def _may_be_missed(known: Known) -> bool:
    """Whether a fit would take what stands in all frames for the beam's: nothing shows how that changed."""
    if kind_of(known) == "one":
        assert known.before is not None
        return not is_unchanged(known.frames[choose_frames(known.usable)], known.before)
    return kind_of(known) == "none"


def find_fixed(scan: Scan, survey: Survey, references: tuple[Reference, ...], memory: int) -> Fixed:
    """References that show the pattern tell it; where none does it is the frames' own, and what stands shows
    in it unless that is taken out before.
    """
    found, fitting = None, references
    if references:
        found = Fixed(fixed_pattern(scan, survey, references, memory))
        fitting = found.fitting(references, survey.factor)
    standing = None
    if scan.turns and _may_be_missed(known_scan(survey, fitting)):
        usable, light = np.flatnonzero(survey.usable), survey_light(survey, scan.shape[1:])
        beam = fitting[-1].counts if fitting else None
        standing = find_standing(scan.projections, usable, survey.dark, light, beam)
    if standing is None:
        return found or Fixed(fixed_pattern(scan, survey, (), memory))
    scan, survey = without(scan, survey, standing)
    return Fixed(fixed_pattern(scan, survey, references if fitting else (), memory, True), standing)
