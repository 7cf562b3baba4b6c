"""Windows of a plane equal the plane, wherever they are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdrn_plugin.engine.run import Job, run_plane
from mdrn_plugin.engine.tiles import Window, cut
from mdrn_plugin.engine.windows import Part, around
from mdrn_plugin.networks.mdrn import MDRN, FoldedMDRN, exact_halo


@pytest.fixture(scope="module")
def job() -> Job:
    torch.manual_seed(0)
    network = FoldedMDRN(MDRN(colours=1, blocks=1, channels=16)).eval()
    halo = -(-exact_halo(1) // 16) * 16
    return Job(network=network, black=0.0, gain=1.0, tile=64, halo=halo, stride=16)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 12), st.integers(0, 12), st.integers(1, 6))
def test_cut_window_covers_it_once_and_stays_on_the_grid(
    height: int, width: int, top: int, left: int, side: int
) -> None:
    window = Window(
        min(16 * top, (height - 1) // 16 * 16),
        min(height, 16 * (top + side)),
        min(16 * left, (width - 1) // 16 * 16),
        min(width, 16 * (left + side)),
    )
    kept = np.zeros((height, width), int)
    for tile in cut(height, width, 32, 16, 16, window):
        kept[tile.top : tile.bottom, tile.left : tile.right] += 1
        assert tile.top % 16 == tile.left % 16 == 0
        assert tile.read_top <= max(0, tile.top - 16)
        assert min(height, tile.bottom + 16) <= tile.read_bottom <= min(height, window.bottom + 16)
    inside = np.zeros_like(kept)
    inside[window.top : window.bottom, window.left : window.right] = 1
    np.testing.assert_array_equal(kept, inside)


def test_cut_window_off_the_grid_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="multiples of 16"):
        cut(100, 100, 32, 16, 16, Window(8, 64, 0, 64))


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 3), st.integers(0, 3))
def test_run_plane_window_equals_the_whole_plane(row: int, column: int) -> None:
    torch.manual_seed(0)
    network = FoldedMDRN(MDRN(colours=1, blocks=1, channels=16)).eval()
    halo = -(-exact_halo(1) // 16) * 16
    job = Job(network=network, black=0.0, gain=1.0, tile=64, halo=halo, stride=16)
    x = np.random.default_rng(0).random((200, 216, 1)).astype(np.float32)
    whole = np.empty_like(x)
    run_plane(x, whole, job)
    window = Window(48 * row, min(200, 48 * row + 64), 48 * column, min(216, 48 * column + 64))
    read = around(window, halo, 200, 216)
    source = Part(x[read.top : read.bottom, read.left : read.right], read.top, read.left, 200, 216)
    rows, columns = window.bottom - window.top, window.right - window.left
    out = Part(np.empty((rows, columns, 1), np.float32), window.top, window.left, 200, 216)
    run_plane(source, out, job, window=window)  # type: ignore[arg-type]
    expected = whole[window.top : window.bottom, window.left : window.right]
    assert np.abs(out.pixels - expected).max() < 1e-5


def test_part_outside_is_our_bug() -> None:
    part = Part(np.zeros((4, 4, 1)), 8, 8, 100, 100)
    with pytest.raises(AssertionError, match="before"):
        part[4:10, 8:10]
    with pytest.raises(AssertionError, match="behind"):
        part[8:13, 8:10]
