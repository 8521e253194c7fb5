"""The pair condition: what it shows of two frames, and at which scale."""

import pytest
import torch

from txmcorrect.background.conditions import LEAST_SCALE, pair_condition
from txmcorrect.background.estimate import Draw, draw_samples
from txmcorrect.errors import ModelError
from txmcorrect.weights import Model, ModelSpec


def test_a_model_of_another_version_of_the_condition_is_refused():
    spec = ModelSpec({"channels": 8}, "pair", 8, 64)
    model = Model(spec.build().eval(), spec, "0" * 64, "test")
    frames = torch.full((1, 16, 16), 100.0)
    cond, basis = pair_condition(frames, frames, torch.ones(1))
    with pytest.raises(ModelError, match="sees 8 channels.*has 10"):
        draw_samples(model, cond, basis.log_counts, Draw(samples=1))


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
