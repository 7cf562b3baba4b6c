"""Tiles cover every pixel once, lie on the grid, and see their halo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdrn_plugin.engine.tiles import cut


@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    tile=st.integers(1, 12).map(lambda n: 8 * n),
    halo=st.integers(0, 6).map(lambda n: 8 * n),
)
def test_cut_any_size_covers_each_pixel_once(height: int, width: int, tile: int, halo: int) -> None:
    seen = np.zeros((height, width), int)
    for t in cut(height, width, tile, halo, 8):
        seen[t.top : t.bottom, t.left : t.right] += 1
        assert t.top % 8 == 0
        assert t.left % 8 == 0
        assert 0 < t.bottom - t.top <= tile
        assert 0 < t.right - t.left <= tile
        assert t.read_top == max(0, t.top - halo)
        assert t.read_bottom == min(height, t.bottom + halo)
        assert t.read_left == max(0, t.left - halo)
        assert t.read_right == min(width, t.right + halo)
    assert (seen == 1).all()


def test_cut_leaves_no_slivers() -> None:
    widths = [t.right - t.left for t in cut(8, 392, 384, 0, 8)]
    assert widths == [192, 200]


@pytest.mark.parametrize(("tile", "halo"), [(30, 8), (32, 4), (0, 8), (32, -8)])
def test_cut_off_the_grid_is_our_bug(tile: int, halo: int) -> None:
    with pytest.raises(AssertionError):
        cut(64, 64, tile, halo, 8)
