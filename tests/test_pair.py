"""The pair condition: what it shows of two frames, and at which scale."""

import numpy as np
import pytest
import torch

from txmcorrect.background.conditions import LEAST_SCALE, pair_condition
from txmcorrect.background.estimate import Draw, draw_samples, pair_conditions, partners
from txmcorrect.errors import ModelError
from txmcorrect.weights import Model, ModelSpec


def test_a_model_of_another_version_of_the_condition_is_refused():
    spec = ModelSpec({"channels": 8}, "pair", 8, 64)
    model = Model(spec.build().eval(), spec, "0" * 64, "test")
    looks = pair_conditions(
        np.full((2, 16, 16), 100, np.float32), np.ones(2, bool), 1, 1.0, 1
    ).looks
    with pytest.raises(ModelError, match=r"sees 8 channels.*has 10"):
        draw_samples(model, looks, np.array([0]), Draw(samples=1))


def test_scale_of_a_pair_follows_what_differs_not_noise_or_brightness():
    generator = torch.Generator().manual_seed(0)
    background = torch.full((1, 64, 64), 2000.0)
    shadow = torch.ones(1, 64, 64)
    shadow[:, 20:40, 20:40] = 0.5

    def scale_of(second):
        noisy = [torch.poisson(x, generator=generator) for x in (background, second)]
        return float(pair_condition(*noisy, torch.ones(1))[1].scale)

    wanted = float(shadow.log().std())
    assert scale_of(background) == pytest.approx(LEAST_SCALE, rel=0.2)
    assert scale_of(1.3 * background) == pytest.approx(LEAST_SCALE, rel=0.2)
    assert scale_of(background * shadow) == pytest.approx(wanted, rel=0.1)


def test_basis_of_a_pair_is_inverted_where_the_network_is_trusted():
    frames = torch.full((2, 1, 32, 32), 500.0)
    frames[..., :4] *= 0.05  # beyond the aperture
    _, basis = pair_condition(*frames, torch.ones(1))
    truth = basis.base + torch.linspace(-0.02, 0.05, 32)
    back = basis.log_counts(basis.residual(truth))
    clear = basis.trust == 1
    assert not bool(clear.all())
    assert torch.allclose(back[clear], truth[clear], atol=2e-3)
    unlit = basis.trust == 0
    assert float((back - basis.base)[unlit].std()) < 1e-6


def test_partners_are_the_frames_nearest_to_the_interval_the_later_first():
    usable = np.array([True, True, False, True, True])
    assert partners(0, 1, usable, 3).tolist() == [1, 3, 4]
    assert partners(4, 1, usable, 2).tolist() == [3, 1]
    assert partners(1, 1, usable, 1).tolist() == [0]
    assert partners(3, 4, usable, 1).tolist() == [0]
    assert partners(0, 1, usable[:2], 3).tolist() == [1, 1, 1]  # the only one, again
    assert partners(100, 1, np.ones(640, bool), 2).tolist() == [110, 90]
