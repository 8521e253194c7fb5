"""Copying `/measurement` without what names people or makes others rescale the data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

PERSONAL = (
    "experimenter|user|operator|person|author|owner|contact|e_?-?mail|phone|telephone|affiliation|"
    "institution|address|badge|orcid|principal_?investigator|proposer|proposal|"
    "full_file_name|path|folder|directory"  # beamlines name folders after people
)
RESCALING = "exposure|acquire_time|count_time|dwell|current|monitor|fill|(flat|dark)_field_value"
DROPPED = re.compile(f"({PERSONAL})|({RESCALING})", re.IGNORECASE)
MAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")


def copy_measurement(source: Path, target: h5py.File) -> bool:
    """Copy `/measurement` of an HDF5 file; tell whether there was one.

    Left out: fields named after people, texts that hold an e-mail address, and exposures,
    currents and fill values by which other programs would rescale what is already a transmission.
    """
    if not source.is_file() or not h5py.is_hdf5(source):
        return False
    with h5py.File(source, "r") as file:
        group = file.get("measurement")
        if not isinstance(group, h5py.Group):
            return False
        _copy_group(group, target.create_group("measurement"), set())
    return True


def _copy_group(source: h5py.Group, target: h5py.Group, seen: set[int]) -> None:
    """Copy members one by one; `seen` stops links that lead back."""
    seen.add(h5py.h5o.get_info(source.id).addr)
    _copy_attributes(source, target)
    for name in source:
        member = source.get(name)  # None where a link leads nowhere
        if DROPPED.search(name):
            continue
        if isinstance(member, h5py.Group):
            if h5py.h5o.get_info(member.id).addr not in seen:
                _copy_group(member, target.create_group(name), seen)
        elif isinstance(member, h5py.Dataset) and not _holds_address(member):
            source.file.copy(member, target, name, without_attrs=True)
            _copy_attributes(member, target[name])


def _copy_attributes(source: h5py.HLObject, target: h5py.HLObject) -> None:
    for name, value in source.attrs.items():
        if not DROPPED.search(name) and not _has_mail(value):
            target.attrs[name] = value


def _holds_address(dataset: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(dataset.dtype) is not None and _has_mail(dataset[()])


def _has_mail(value: Any) -> bool:
    return any(
        MAIL.search(item.decode(errors="replace") if isinstance(item, bytes) else item)
        for item in np.ravel(np.asarray(value, dtype=object)).tolist()
        if isinstance(item, str | bytes)
    )
