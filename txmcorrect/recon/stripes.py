"""Stripes in sinograms, which would become rings: what a detector column does at every angle."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def remove_stripes(sinograms: Tensor, width: int = 9) -> Tensor:
    """Suppress stripes up to half of `width` pixels wide.

    Sorted by value, the pixels of a column at all angles should resemble those of its neighbours
    rank by rank; a column of another gain or offset stands out and takes the neighbours' median.

    Parameters
    ----------
    sinograms : `(..., n_theta, w)`. width : odd number of columns the median is taken over.

    Source: Vo, Atwood and Drakopoulos 2018, "Superior techniques for eliminating ring artifacts
    in X-ray micro-tomography", Sec. 2.1 (sorting).
    """
    ranked, order = sinograms.sort(dim=-2)
    reach = min(width, sinograms.shape[-1] - 1) // 2
    flat = ranked.reshape(-1, 1, ranked.shape[-1])
    wide = pad(flat, (reach, reach), mode="replicate")
    smooth = wide.unfold(-1, 2 * reach + 1, 1).median(-1).values.reshape(ranked.shape)
    return sinograms.scatter(-2, order, smooth)
