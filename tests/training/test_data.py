from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdrn_plugin.errors import BadOption, CannotRead
from mdrn_plugin.training.data import LUMA, CropRules, Crops, dihedral, open_pack, whole_pictures
from mdrn_plugin.training.degrade import add_awgn
from mdrn_plugin.training.losses import LOSSES, get_loss, squared_per_sigma


def test_open_pack_holds_every_picture_exactly(pictures: Path, tmp_path: Path) -> None:
    pack = open_pack(pictures, tmp_path / "cache")
    assert len(pack.entries) == 6
    for k, entry in enumerate(pack.entries):
        with Image.open(pictures / entry.name) as image:
            expected = np.atleast_3d(np.asarray(image))
        np.testing.assert_array_equal(pack.crop(k, 0, 0, entry.height, entry.width), expected)


def test_open_pack_decodes_once_and_again_when_the_folder_changed(pictures: Path, tmp_path: Path) -> None:
    first = open_pack(pictures, tmp_path / "cache")
    stamp = (tmp_path / "cache" / first.digest[:16] / "pixels.u8").stat().st_mtime_ns
    again = open_pack(pictures, tmp_path / "cache")
    assert (tmp_path / "cache" / again.digest[:16] / "pixels.u8").stat().st_mtime_ns == stamp
    (pictures / "photos" / "0.png").unlink()
    assert open_pack(pictures, tmp_path / "cache").digest != first.digest


def test_open_pack_takes_a_pack_itself(pictures: Path, tmp_path: Path) -> None:
    first = open_pack(pictures, tmp_path / "cache")
    assert open_pack(tmp_path / "cache" / first.digest[:16], tmp_path / "unused").digest == first.digest
    assert not (tmp_path / "unused").exists()


def test_open_pack_damaged_pack_is_refused(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / open_pack(pictures, tmp_path / "cache").digest[:16]
    data = (folder / "pixels.u8").read_bytes()
    (folder / "pixels.u8").unlink()
    (folder / "pixels.u8").write_bytes(data[:-1])
    with pytest.raises(CannotRead, match="delete the folder"):
        open_pack(folder, tmp_path)


def test_open_pack_undecodable_picture_is_named(pictures: Path, tmp_path: Path) -> None:
    (pictures / "photos" / "bad.png").write_text("no")
    with pytest.raises(CannotRead, match=r"bad\.png"):
        open_pack(pictures, tmp_path / "cache")


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_open_pack_nothing_there_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadOption, match="expected"):
        open_pack(tmp_path / name, tmp_path / "cache")


def test_select_keeps_the_validation_folder_apart(pictures: Path, tmp_path: Path) -> None:
    pack = open_pack(pictures, tmp_path / "cache")
    inside, outside = pack.select("DIV2K_valid_crops")
    assert {pack.entries[i].name for i in inside} == {"DIV2K_valid_crops/4.png", "DIV2K_valid_crops/5.png"}
    assert sorted(inside + outside) == list(range(6))


@pytest.mark.parametrize("colours", [1, 3])
def test_crops_are_a_function_of_seed_and_step(pictures: Path, tmp_path: Path, colours: int) -> None:
    pack = open_pack(pictures, tmp_path / "cache")
    rules = CropRules(patch=32, colours=colours, rescale_above_px=8000)
    a, b = Crops(pack, [0, 1, 2, 3], rules, 1), Crops(pack, [0, 1, 2, 3], rules, 1)
    batch = a.batch(5, 4)
    assert batch.shape == (4, colours, 32, 32)
    assert 0 <= batch.min() < batch.max() <= 1
    a.batch(6, 4)
    assert torch.equal(b.batch(5, 4), batch)
    assert not torch.equal(b.batch(6, 4), batch)
    assert not torch.equal(Crops(pack, [0, 1, 2, 3], rules, 2).batch(5, 4), batch)


def test_crops_gray_of_colour_is_its_luma(pictures: Path, tmp_path: Path) -> None:
    pack = open_pack(pictures, tmp_path / "cache")
    colour, gray = (whole_pictures(pack, [0], c, 8)[0] for c in (3, 1))
    torch.testing.assert_close(gray[0], sum(w * colour[k] for k, w in enumerate(LUMA)))


def test_crops_all_too_small_is_refused(pictures: Path, tmp_path: Path) -> None:
    pack = open_pack(pictures, tmp_path / "cache")
    with pytest.raises(BadOption, match="128x128"):
        Crops(pack, [0, 1], CropRules(patch=128), 1)


def test_dihedral_gives_eight_different_pictures() -> None:
    x = torch.arange(9.0).reshape(1, 3, 3)
    seen = {tuple(dihedral(x, k).flatten().tolist()) for k in range(8)}
    assert len(seen) == 8


def test_whole_pictures_are_cut_to_multiples(pictures: Path, tmp_path: Path) -> None:
    pack = open_pack(pictures, tmp_path / "cache")
    for picture in whole_pictures(pack, list(range(6)), 1, 32):
        assert picture.shape[1] % 32 == 0
        assert picture.shape[2] % 32 == 0


def test_add_awgn_has_the_level_it_says_and_is_not_clipped() -> None:
    clean = torch.full((4, 1, 128, 128), 0.01)
    noisy, sigma = add_awgn(clean, (20, 60), seed=1, step=3)
    measured = 255 * (noisy - clean).std((1, 2, 3))
    torch.testing.assert_close(measured, sigma.flatten(), rtol=0.03, atol=0)
    assert 20 <= sigma.min() < sigma.max() <= 60
    assert noisy.min() < 0
    again, _ = add_awgn(clean, (20, 60), seed=1, step=3)
    assert torch.equal(again, noisy)
    for other in ({"seed": 2, "step": 3}, {"seed": 1, "step": 4}):
        assert not torch.equal(add_awgn(clean, (20, 60), **other)[0], noisy)


def test_squared_per_sigma_weights_levels_alike() -> None:
    """An error whose square grows with sigma costs the same at every level."""
    zero, losses = torch.zeros(1, 1, 4, 4), []
    for level in (10.0, 40.0):
        sigma = torch.full((1, 1, 1, 1), level)
        losses.append(float(squared_per_sigma(zero + (level / 255) ** 0.5, zero, sigma)))
    assert losses[0] == pytest.approx(losses[1])


def test_get_loss_unknown_lists_the_choices() -> None:
    assert get_loss("l1") is LOSSES["l1"]
    with pytest.raises(BadOption, match="squared-per-sigma"):
        get_loss("l0")


def test_smooth_patches_have_no_fine_detail_and_leave_the_others_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for k in range(3):
        Image.fromarray(rng.integers(0, 256, (200, 220), np.uint8)).save(tmp_path / "in" / f"{k}.png")
    pack = open_pack(tmp_path / "in", tmp_path / "cache")

    def batch(smooth: float) -> torch.Tensor:
        return Crops(pack, [0, 1, 2], CropRules(patch=64, smooth=smooth), 1).batch(3, 16)

    def fine(x_NCHW: torch.Tensor) -> float:
        return float((x_NCHW[..., 1:] - x_NCHW[..., :-1]).square().mean() / x_NCHW.var())

    assert torch.equal(batch(0.0), Crops(pack, [0, 1, 2], CropRules(patch=64), 1).batch(3, 16))
    assert fine(batch(1.0)) < 0.5 * fine(batch(0.0))
    assert batch(1.0).mean() < batch(0.0).mean()
    assert batch(1.0).shape == (16, 1, 64, 64)
