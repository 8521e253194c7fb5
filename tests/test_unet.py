"""The bare network: any frame, any channels, and a denoiser that can be learned."""

import shutil

import pytest
import torch

from txmcorrect.diffusion.denoiser import NetworkDenoiser, Noise, Preconditioning
from txmcorrect.diffusion.loss import denoising_loss
from txmcorrect.diffusion.schedules import linear
from txmcorrect.diffusion.unet import UNet

SMALL = {"channels": 8, "multipliers": (1, 2), "attention": (1,), "patch": 2}


def network(in_channels=3, out_channels=1, **shape):
    """Build a network whose zero-initialised layers are stirred, so that all of it matters."""
    torch.manual_seed(0)
    net = UNet(in_channels, out_channels, **{**SMALL, **shape})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


def frozen(*arguments, **shape):
    return network(*arguments, **shape).requires_grad_(False)


def images(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LEVEL = torch.tensor([0.3, -0.7])


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (2, 40), (1, 5), (64, 8)], ids=str)
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_frames_of_any_shape(shape, patch):
    out = network(patch=patch)(images(2, 3, *shape), LEVEL)
    assert out.shape == (2, 1, *shape)
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize(("inside", "outside"), [(1, 1), (2, 1), (8, 1), (9, 4)])
@pytest.mark.parametrize("channels", [5, 12, 64])
def test_any_number_of_channels(inside, outside, channels):
    out = network(inside, outside, channels=channels)(images(2, inside, 8, 8), LEVEL)
    assert out.shape == (2, outside, 8, 8)


@pytest.mark.parametrize("attention", [(), (0,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("blocks", [1, 2])
def test_depth_and_attention(attention, blocks):
    net = network(multipliers=(1, 2, 3), attention=attention, blocks=blocks)
    attending = [m for m in net.modules() if type(m).__name__ == "Attention"]
    assert len(attending) == len(attention) * (2 * blocks + 1) + bool(attention)
    assert net(images(2, 3, 16, 16), LEVEL).shape == (2, 1, 16, 16)


def test_a_fresh_network_says_nothing():
    assert not UNet(3, **SMALL)(images(2, 3, 8, 8), LEVEL).any()


def test_items_do_not_mix_and_the_noise_level_matters():
    net, x = network(), images(2, 3, 12, 12)
    out = net(x, LEVEL)
    torch.testing.assert_close(net(x[1:], LEVEL[1:]), out[1:])
    assert not torch.allclose(net(x, LEVEL + 0.5), out, atol=1e-3)


def test_what_lies_far_away_is_seen():
    """A corner changes what is said of the opposite one: attention and depth span the frame."""
    net, x = frozen(), images(2, 3, 64, 64)
    other = x.clone()
    other[:, :, :4, :4] += 3
    far = (net(other, LEVEL) - net(x, LEVEL))[:, :, -4:, -4:].abs()
    assert float(far.max()) > 1e-5


def test_folding_keeps_every_pixel_in_its_place():
    """With the last layer passing the folded input on, the frame comes back as it was."""
    net = network(1, patch=4)
    with torch.no_grad():
        for parameter in (*net.gate.parameters(), *net.last.parameters()):
            parameter.zero_()
        net.gate.bias.fill_(1.0)  # detail passes
        inside = net.last.in_channels - 16
        net.last.weight[:, inside:, 1, 1] = torch.eye(16)
    x = images(2, 1, 18, 13)
    torch.testing.assert_close(net(x, LEVEL), x)


def test_gradients_reach_every_weight():
    net = network().train()
    net(images(2, 3, 8, 8), LEVEL).square().mean().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_dropout_acts_in_training_only():
    net, x = network(dropout=0.5), images(2, 3, 8, 8)
    assert torch.equal(net(x, LEVEL), net(x, LEVEL))
    net.train()
    assert not torch.equal(net(x, LEVEL), net(x, LEVEL))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_nearly_the_same(kind):
    net, x = frozen(), images(2, 3, 16, 16)
    with torch.autocast("cpu", kind):
        half = net(x, LEVEL)
    expected = net(x, LEVEL)
    assert float((half - expected).abs().max()) < 0.03 * float(expected.abs().max())


def test_channels_last_is_the_same():
    net, x = network(), images(2, 3, 16, 16)
    expected = net(x, LEVEL)
    last = net.to(memory_format=torch.channels_last)
    found = last(x.to(memory_format=torch.channels_last), LEVEL)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compiled_network_is_the_same():
    net, x = network(), images(2, 3, 16, 16)
    compiled = torch.compile(net)
    torch.testing.assert_close(compiled(x, LEVEL), net(x, LEVEL), rtol=1e-4, atol=1e-5)


def test_at_the_largest_sigma_one_evaluation_is_the_posterior_mean():
    """x0 = condition + N(0, 1): the best answer is the condition, whatever the noise was."""
    torch.manual_seed(0)
    net = UNet(2, channels=8, multipliers=(1,), attention=(), patch=1)
    denoise = NetworkDenoiser(net, Preconditioning("v"), 1)
    top = linear(1000)[-1].float()
    optimizer = torch.optim.Adam(denoise.parameters(), 1e-2)
    ones = torch.ones(8)
    for step in range(80):
        cond = images(8, 1, 8, 8, seed=step)
        x0 = cond + images(8, 1, 8, 8, seed=10_000 + step)
        eps = Noise(0, shared=False).step(step).normal_like(x0)
        weight = torch.ones_like(x0)
        loss = denoising_loss(
            denoise, denoise.preconditioning, x0, cond, top.expand(8), eps, ones, weight
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    denoise.eval()
    cond = images(8, 1, 8, 8, seed=77)
    with torch.no_grad():
        first, second = (
            denoise(Noise(seed).start(cond.shape, float(top), like=cond), top, cond)
            for seed in (1, 2)
        )
    assert float((first - cond).square().mean().sqrt()) < 0.35  # it was 1 before
    assert float((first - second).square().mean().sqrt()) < 0.2
