"""Fetching DIV2K, against a server of our own with a small archive."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdrn_plugin.errors import BadOption, CannotRead
from mdrn_plugin.training import download
from mdrn_plugin.training.command import main
from mdrn_plugin.training.download import Archive, PictureSet, fetch

SENT: list[tuple[str, int]] = []  # (Range header, bytes sent)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """A file server that knows Range, and can break off."""

    break_after = 10**9

    def do_GET(self) -> None:
        data = (Path(self.directory) / self.path.strip("/")).read_bytes()
        wanted = self.headers.get("Range", "")
        start = int(wanted[6:-1]) if wanted else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start : start + self.break_after]
        SENT.append((wanted, len(body)))
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        SENT.clear()
        yield f"http://127.0.0.1:{httpd.server_address[1]}", folder
        httpd.shutdown()


def _zip(path: Path, names: list[str]) -> Archive:
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (80, 80, 3), np.uint8)).save(buffer, "png")
            archive.writestr(name, buffer.getvalue() if name.endswith(".png") else b"text")
    return Archive(path.name, hashlib.md5(path.read_bytes()).hexdigest())


def test_fetch_unpacks_pictures_only_and_not_twice(server: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = server
    archive = _zip(folder / "A.zip", ["A/1.png", "A/2.png", "A/readme.txt", "../../evil.png"])
    pictures = PictureSet("http://127.0.0.1:9", (archive,), "free")
    (target,) = fetch(pictures, tmp_path / "data", url)
    assert sorted(p.name for p in target.iterdir()) == ["1.png", "2.png", "evil.png"]  # the last one inside
    assert not (tmp_path / "evil.png").exists()
    assert list((tmp_path / "data").iterdir()) == [target]
    fetch(pictures, tmp_path / "data", url)
    assert len(SENT) == 1


def test_fetch_goes_on_where_it_broke_off(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    pictures = PictureSet(url, (_zip(folder / "A.zip", ["1.png", "2.png"]),), "free")
    size = (folder / "A.zip").stat().st_size
    monkeypatch.setattr(_Handler, "break_after", size // 3)
    with pytest.raises(CannotRead, match="goes on from there"):
        fetch(pictures, tmp_path / "data")
    monkeypatch.setattr(_Handler, "break_after", 10**9)
    (target,) = fetch(pictures, tmp_path / "data")
    assert len(list(target.iterdir())) == 2
    assert SENT[-1] == (f"bytes={size // 3}-", size - size // 3)


def test_fetch_refuses_another_archive(server: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = server
    good = _zip(folder / "A.zip", ["1.png"])
    with pytest.raises(CannotRead, match="expected md5"):
        fetch(PictureSet(url, (Archive(good.name, "0" * 32),), ""), tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())
    (folder / "B.zip").write_bytes(b"not a zip")
    bad = Archive("B.zip", hashlib.md5(b"not a zip").hexdigest())
    with pytest.raises(CannotRead, match="not a valid zip"):
        fetch(PictureSet(url, (bad,), ""), tmp_path / "data")


def test_fetch_bad_addresses(server: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = server
    archive = _zip(folder / "A.zip", ["1.png"])
    with pytest.raises(BadOption, match="http or https"):
        fetch(PictureSet("", (archive,), ""), tmp_path / "data", "file:///etc")
    with pytest.raises(CannotRead, match="broke off"):
        fetch(PictureSet("", (archive,), ""), tmp_path / "data", "http://127.0.0.1:9")


def test_data_command_downloads_and_packs(
    server: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, folder = server
    archives = (
        _zip(folder / "DIV2K_train_HR.zip", ["1.png"]),
        _zip(folder / "DIV2K_valid_HR.zip", ["2.png"]),
    )
    monkeypatch.setattr(download, "DIV2K", PictureSet(url, archives, "for research"))
    assert main(["data", str(tmp_path / "data"), "--download", "div2k", "--cache", str(tmp_path / "c")]) == 0
    shown = capsys.readouterr()
    assert "2 pictures" in shown.out
    assert "for research" in shown.err
