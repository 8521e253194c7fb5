"""Training losses: known values, what counts and what does not, and the same sum however split."""

import pytest
import torch
from torch import nn

from txmcorrect.diffusion.denoiser import NetworkDenoiser, Preconditioning
from txmcorrect.diffusion.loss import LOSSES, denoising_loss, snr_weight

B, H, W = 6, 5, 7


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Constant(nn.Module):
    """A network that always says the same, and remembers what it was shown."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value, self.seen = value, []

    def forward(self, inputs, c_noise):
        self.seen.append(inputs)
        return torch.full_like(inputs[:, :1], self.value)


@pytest.fixture
def batch():
    return {
        "x0": numbers(B, 1, H, W),
        "cond": numbers(B, 2, H, W, seed=1),
        "sigma": torch.linspace(0.1, 9, B),
        "eps": numbers(B, 1, H, W, seed=2),
        "keep": torch.ones(B),
        "weight": torch.ones(B, 1, H, W),
    }


def loss_of(batch, network=None, target="eps", **options):
    model = NetworkDenoiser(network or Constant(), Preconditioning(target), 2)
    return denoising_loss(model, model.preconditioning, **batch, **options)


def test_known_values(batch):
    """A network that says 0 where noise is wanted errs by the noise."""
    eps = batch["eps"]
    assert float(loss_of(batch)) == pytest.approx(float((eps**2).mean()), rel=1e-4)
    assert float(loss_of(batch, kind="l1")) == pytest.approx(float(eps.abs().mean()), rel=1e-4)
    size = eps.abs()
    huber = torch.where(size < 0.1, eps**2 / 0.2, size - 0.05).mean()
    assert float(loss_of(batch, kind="huber")) == pytest.approx(float(huber), rel=1e-4)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("kind", LOSSES)
def test_the_right_answer_costs_nothing(batch, target, kind):
    scaling = Preconditioning(target)

    class Knows(nn.Module):
        def forward(self, x, sigma, cond, raw):
            return scaling.wanted(batch["x0"], x, sigma)

    assert float(denoising_loss(Knows(), scaling, **batch, kind=kind)) == 0


@pytest.mark.parametrize("kind", LOSSES)
def test_what_has_no_weight_does_not_count(batch, kind):
    batch["weight"][:, :, :2] = 0
    before = loss_of(batch, kind=kind)
    batch["x0"][:, :, :2] = 50
    batch["eps"][:, :, :2] = 1e3
    torch.testing.assert_close(loss_of(batch, kind=kind), before, rtol=1e-4, atol=1e-6)


def test_an_item_that_is_all_unlit_is_no_number_to_fear(batch):
    batch["weight"][0] = 0
    assert bool(torch.isfinite(loss_of(batch)))


@pytest.mark.parametrize("snr", ["none", "min-snr", "sigmoid"])
@pytest.mark.parametrize("parts", [2, 3, 6])
def test_micro_batches_and_processes_add_up_to_the_batch(batch, parts, snr):
    """Also where items have unequal numbers of lit pixels, and dealt out in turn."""
    batch["weight"][::2, :, :3] = 0
    whole = loss_of(batch, snr=snr)
    shares = [{n: t[k::parts] for n, t in batch.items()} for k in range(parts)]
    mean = torch.stack([loss_of(share, snr=snr) for share in shares]).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-5, atol=1e-6)


def test_a_dropped_condition_is_shown_as_zeros(batch):
    batch["keep"][1::2] = 0
    network = Constant()
    loss_of(batch, network)
    shown = network.seen[0][:, 1:]
    assert torch.equal(shown[0::2], batch["cond"][0::2])
    assert not shown[1::2].any()


def test_what_the_network_sees_has_unit_variance(batch):
    network = Constant()
    batch["x0"], batch["eps"] = numbers(B, 1, 99, 99), numbers(B, 1, 99, 99, seed=5)
    batch["cond"], batch["weight"] = torch.zeros(B, 2, 99, 99), torch.ones(B, 1, 99, 99)
    loss_of(batch, network)
    torch.testing.assert_close(
        network.seen[0][:, 0].flatten(1).std(1), torch.ones(B), rtol=0, atol=0.03
    )


SIGMA = torch.tensor([0.05, 0.3, 1.0, 4.0, 100.0], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["min-snr", "sigmoid"])
def test_weights_mean_the_same_for_every_target(kind):
    """An error of x0 by 1 costs the same whichever way it is expressed."""
    scaling = {target: Preconditioning(target) for target in ("eps", "x0", "v")}
    costs = {}
    for target, own in scaling.items():
        zero = torch.zeros_like(SIGMA)
        error = own.wanted(zero + 1, zero, SIGMA) - own.wanted(zero, zero, SIGMA)
        costs[target] = snr_weight(kind, SIGMA, target) * error**2
    torch.testing.assert_close(costs["eps"], costs["x0"])
    torch.testing.assert_close(costs["v"], costs["x0"])


def test_weights_are_the_published_ones():
    snr = 1 / SIGMA**2
    torch.testing.assert_close(snr_weight("min-snr", SIGMA, "eps"), snr.clamp_max(5) / snr)
    torch.testing.assert_close(
        snr_weight("sigmoid", SIGMA, "eps"), torch.sigmoid(2 - torch.log(snr))
    )
    assert torch.equal(snr_weight("none", SIGMA, "v"), torch.ones_like(SIGMA))
