"""A helix keeps its hand, and its angles their sign, through every format."""

import h5py
import numpy as np
import pytest
import tifffile
from ole import write_xradia

from txmcorrect.formats import open_references, open_scan

ANGLES = np.linspace(0, 180, 13)[:-1]


def project_helix(hand, h=24, w=40):
    """Projections `(n, h, w)` of beads whose azimuth grows with the row (or shrinks): counts."""
    rows = np.arange(h)[None, :, None]
    azimuth = hand * rows / h * 2 * np.pi + np.deg2rad(ANGLES)[:, None, None]
    x = np.arange(w)[None, None, :] - (w / 2 + 12 * np.cos(azimuth))
    return (4000 * (1 - 0.7 * np.exp(-(x**2) / 8))).astype(np.uint16)


def find_hand(scan):
    """Sign of the change of azimuth with the row, from bead positions fitted over the angles."""
    counts = scan.projections.read(0, scan.shape[0]).astype(float)
    weight = counts.max() - counts
    x = (weight * np.arange(counts.shape[2])).sum(2) / weight.sum(2)
    basis = np.stack([np.cos(scan.theta), -np.sin(scan.theta), np.ones_like(scan.theta)], 1)
    (cosine, sine, _), *_ = np.linalg.lstsq(basis, x, rcond=None)
    turn = np.unwrap(np.arctan2(sine, cosine))
    return np.sign(turn[-1] - turn[0])


def as_exchange(path, images, flat):
    with h5py.File(path, "w") as file:
        file["/exchange/data"], file["/exchange/theta"] = images, ANGLES
        file["/exchange/data_white"] = flat[None]
        file["/exchange/theta"].attrs["units"] = "degrees"
    return path


def as_exchange_in_radians(path, images, flat):
    with h5py.File(path, "w") as file:
        file["/exchange/data"], file["/exchange/theta"] = images, np.deg2rad(ANGLES)
        file["/exchange/data_white"] = flat[None]
        file["/exchange/theta"].attrs["units"] = "rad"
    return path


def as_nxtomo(path, images, flat):
    with h5py.File(path, "w") as file:
        file["entry/instrument/detector/data"] = np.concatenate([flat[None], images])
        file["entry/instrument/detector/image_key"] = [1] + [0] * len(images)
        file["entry/sample/rotation_angle"] = np.concatenate([[0], ANGLES])
    return path


def as_xradia(path, images, flat):
    reference = {"ReferenceData/Image": np.ascontiguousarray(flat[::-1]).tobytes()}
    return write_xradia(path, images, ANGLES, extra=reference)


@pytest.mark.parametrize("hand", [1, -1])
@pytest.mark.parametrize("write", [as_exchange, as_exchange_in_radians, as_nxtomo, as_xradia])
def test_helix_keeps_its_hand(tmp_path, hand, write):
    images = project_helix(hand)
    flat = np.arange(images[0].size, dtype=np.uint16).reshape(images[0].shape)
    scan = open_scan(write(tmp_path / "scan", images, flat))
    assert find_hand(scan) == hand
    np.testing.assert_array_equal(scan.projections.read(0, len(images)), images)
    np.testing.assert_allclose(scan.theta, np.deg2rad(ANGLES), atol=1e-6)
    np.testing.assert_array_equal(scan.flats[0].frames.read(0, 1)[0], flat)


def test_frames_without_angles_keep_their_rows(tmp_path):
    images = project_helix(1)
    np.save(tmp_path / "scan.npy", images)
    tifffile.imwrite(tmp_path / "scan.tif", images)
    for name in ("scan.npy", "scan.tif"):
        np.testing.assert_array_equal(open_scan(tmp_path / name).projections.read(0, 12), images)


def test_real_reference_lies_as_its_image_does(shared_data):
    """Both share the detector's fixed pattern, so turned the same way they correlate, else not."""
    scan = open_scan(shared_data / "xradia" / "test_chip00.xrm")
    image, flat = (f.read(0, 1)[0].astype(float) for f in (scan.projections, scan.flats[0].frames))

    def correlation(a, b):
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    assert correlation(image, flat) > correlation(image, flat[::-1]) + 0.05
    alone = open_references(scan.path)[0].frames.read(0, 1)[0]
    np.testing.assert_array_equal(alone, image)
