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
    tiles = cut(height, width, tile, halo, 8)
    for t in tiles:
        seen[t.top : t.bottom, t.left : t.right] += 1
        assert t.top % 8 == t.left % 8 == t.read_top % 8 == t.read_left % 8 == 0
        assert t.read_top <= max(0, t.top - halo)
        assert t.read_bottom >= min(height, t.bottom + halo)
        assert t.read_left <= max(0, t.left - halo)
        assert t.read_right >= min(width, t.right + halo)
        assert 0 <= t.read_top < t.read_bottom <= height
        assert 0 <= t.read_left < t.read_right <= width
    assert (seen == 1).all()
    # Padded to the stride, all are of one size.
    sizes = {(-((t.read_top - t.read_bottom) // 8), -((t.read_left - t.read_right) // 8)) for t in tiles}
    assert len(sizes) == 1
    assert 8 * max(sizes)[0] <= max(tile + 2 * halo, 8)
    assert 8 * max(sizes)[1] <= max(tile + 2 * halo, 8)


def test_cut_leaves_no_slivers() -> None:
    assert [t.right - t.left for t in cut(8, 392, 384, 0, 8)] == [192, 200]
    assert [t.right - t.left for t in cut(8, 1000, 384, 48, 8)] == [344, 304, 352]


@pytest.mark.parametrize(("tile", "halo"), [(30, 8), (32, 4), (0, 8), (32, -8)])
def test_cut_off_the_grid_is_our_bug(tile: int, halo: int) -> None:
    with pytest.raises(AssertionError):
        cut(64, 64, tile, halo, 8)


def test_tiles_may_be_taller_than_wide() -> None:
    tiles = cut(400, 400, 64, 16, 16, rows=256)
    assert {t.read_right - t.read_left for t in tiles} <= {80, 96}
    assert len({t.top for t in tiles}) == 2
    assert sum((t.bottom - t.top) * (t.right - t.left) for t in tiles) == 400 * 400
