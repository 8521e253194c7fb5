"""How far fit and network are from what they claim, measured on items whose truth is known."""

from dataclasses import replace

import pytest
import torch

from txmcorrect.background.conditions import CHANNELS
from txmcorrect.background.stack import FLAGS, REFERENCES, references_seen
from txmcorrect.config import DataSettings, TrainSettings
from txmcorrect.diffusion.schedules import SCHEDULES
from txmcorrect.training import calibrate as module
from txmcorrect.training.calibrate import calibrate

SETTINGS = TrainSettings(batch=8, dataset=DataSettings(condition="stack", size=16))
SIGMAS = SCHEDULES["linear"](1000)


class Known(torch.nn.Module):
    """Says `share` of the truth that the last batch held, and spreads by `width` about it."""

    def __init__(self, share, width):
        super().__init__()
        self.parameter = torch.nn.Parameter(torch.zeros(1))
        self.share, self.width = share, width
        self.truth = torch.zeros(1)

    def forward(self, x, sigma, cond, step=None):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(x.sum() * 1e3)))
        last = float(torch.as_tensor(sigma).max()) < float(SIGMAS[-1])
        return self.share * self.truth + self.width * noise * last


@pytest.fixture
def known(monkeypatch):
    """A network that is shown the truth of every batch."""

    def make(share, width=1.0, truth=1.0):
        network = Known(share, width)

        class Spied(module.Batches):
            def __getitem__(self, index):
                batch = super().__getitem__(index)
                generator = torch.Generator().manual_seed(index)
                shape = truth * torch.randn(batch.x0.shape, generator=generator)
                batch = replace(batch, x0=shape, scale=torch.full((len(shape),), 0.05))
                network.truth = batch.x0
                return batch

        monkeypatch.setattr(module, "Batches", Spied)
        return network

    return make


def test_a_spread_of_the_errors_own_size_is_left(known):
    """Nothing is said, so errors have unit deviation, and so have the samples."""
    found = calibrate(known(0.0), SETTINGS, SIGMAS, 6).spread
    assert any(factor != 1.0 for factor in found.values())
    assert all(0.8 < factor < 1.25 for factor in found.values())


def test_samples_that_spread_half_as_much_count_twice(known):
    wide, narrow = (calibrate(known(0.0, w), SETTINGS, SIGMAS, 6).spread for w in (1.0, 0.5))
    ratios = [narrow[k] / wide[k] for k in REFERENCES if wide[k] != 1.0]
    assert ratios and all(1.7 < ratio < 2.3 for ratio in ratios)


def test_a_fit_that_errs_twice_as_much_is_doubted_twice_as_much(known):
    """Also where the network knows the truth: it is the fit's doubt that is measured."""
    small, large = (calibrate(known(1.0, truth=t), SETTINGS, SIGMAS, 6).doubt for t in (0.05, 0.1))
    ratios = [large[k] / small[k] for k in REFERENCES if 0.31 < small[k] != 1.0 and large[k] < 19]
    assert ratios and all(ratio == pytest.approx(2, rel=0.01) for ratio in ratios)


def test_references_are_read_off_the_condition():
    cond = torch.zeros(4, CHANNELS["stack"], 4, 4)
    cond[1, FLAGS.start] = cond[2, FLAGS.start] = cond[2, FLAGS.start + 1] = 1
    cond[3, FLAGS.start + 2] = 1
    assert references_seen(cond) == list(REFERENCES)
