"""The absolute scale: taken from what is lit, whatever lies in the dark."""

import numpy as np
import pytest

from txmcorrect.background.scale import Reference, anchor


@pytest.mark.parametrize("dark_rows", [0, 6])
def test_the_level_of_a_reference_is_taken_where_there_is_light(dark_rows):
    counts = np.full((32, 32), 4000.0, np.float32)
    counts[:dark_rows] = 0.0
    true = np.log(np.maximum(counts, 200.0))  # a field has a floor, a reference has none
    fields = np.stack([true - 0.7, true + 0.4]).astype(np.float32)
    exposure = np.array([0.0, -0.02])
    reference = Reference(counts, exposure, True, "given")
    found = anchor(fields, np.ones((32, 32), bool), exposure, reference, 1)
    np.testing.assert_allclose(found, true + exposure[:, None, None], atol=1e-5)
