"""What a measurement does to an image, and how noisy it is."""

from txmcorrect.physics.blur import (
    Blur,
    Separable,
    gaussian_kernel,
    measured_kernel,
    open_blur,
    separable_blur,
    uniform_kernel,
)
from txmcorrect.physics.fourier import MASKS, MaskedFourier, fourier_mask
from txmcorrect.physics.noise import NoiseModel, estimate_gaussian, estimate_poisson
from txmcorrect.physics.operators import (
    Chain,
    ChannelMix,
    Crop,
    Identity,
    Inpainting,
    Operator,
    Scalar,
    Spectral,
    conjugate_gradients,
    inner,
    pseudo_inverse,
    solve,
)
from txmcorrect.physics.sampling import BlockMean, bicubic

__all__ = [
    "MASKS",
    "BlockMean",
    "Blur",
    "Chain",
    "ChannelMix",
    "Crop",
    "Identity",
    "Inpainting",
    "MaskedFourier",
    "NoiseModel",
    "Operator",
    "Scalar",
    "Separable",
    "Spectral",
    "bicubic",
    "conjugate_gradients",
    "estimate_gaussian",
    "estimate_poisson",
    "fourier_mask",
    "gaussian_kernel",
    "inner",
    "measured_kernel",
    "open_blur",
    "pseudo_inverse",
    "separable_blur",
    "solve",
    "uniform_kernel",
]
