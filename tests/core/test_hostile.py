"""The hostile corpus through reading, writing and the command line; and what cannot be written.

Each file is read right, or refused with one error that names cause and cure; the others are processed all the same,
inputs stay untouched, and nothing half written is left.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hostile_corpus import Case, cases, encoded, exif, picture, write_corpus
from limits import at_most, permissions_count

from rddm_core import cli, images
from rddm_core.files import atomic_target
from rddm_core.images import ImageError, LoadedImage, load_image, save_image

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names, links and permissions of POSIX")
CASES = {case.name: case for case in cases()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    write_corpus(folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Of every file in `folder`, by name: a hash, and for links their target."""
    return {
        path.name: os.readlink(path) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_symlink() or path.is_file()
    }


def test_the_corpus_is_the_same_every_time(tmp_path: Path, corpus: Path) -> None:
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "hostile_corpus.py"), str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert contents(tmp_path) == contents(corpus) and len(shown.splitlines()) == len(CASES)


@pytest.mark.parametrize("name", CASES, ids=ascii)
def test_reading_and_writing(corpus: Path, tmp_path: Path, name: str) -> None:
    case, path = CASES[name], corpus / name
    with at_most(400 << 20):
        if case.error is not None:
            with pytest.raises(ImageError) as caught:
                load_image(path)
            message = str(caught.value)
            assert message.startswith(f"{path} ") and re.search(case.error, message), message
            assert message.count(str(path)) == 1 and len(message) < len(str(path)) + 300
            return
        loaded = load_image(path)
        assert tuple(loaded.pixels.shape) == (3, *case.size)
        assert loaded.pixels.min() >= 0 and loaded.pixels.max() <= 1
        save_image(tmp_path / name, loaded.pixels, loaded)
        again = load_image(tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    assert (again.grey, again.bits) == (loaded.grey, loaded.bits if path.suffix != ".jpg" else 8)
    assert (again.alpha is None) == (loaded.alpha is None or bool((loaded.alpha == 1).all()))
    lossless = path.suffix not in (".jpg", ".webp")
    assert (again.pixels - loaded.pixels).abs().mean() < (1e-6 if lossless else 0.05)


def test_all_orientations_show_the_same_scene(tmp_path: Path) -> None:
    """Turned as the camera was held, and by EXIF back again."""
    upright = load_image(Case("a.png", encoded(picture(), "PNG")).write(tmp_path)).pixels
    for orientation in range(1, 9):
        stored = upright.transpose(1, 2) if orientation >= 5 else upright
        dims = [dim for dim, flipped in ((1, (3, 4, 6, 7)), (2, (2, 3, 7, 8))) if orientation in flipped]
        save_image(tmp_path / "b.png", stored.flip(dims))
        with images.Image.open(tmp_path / "b.png") as image:
            content = encoded(image, "PNG", exif=exif(orientation).tobytes())
        assert torch.equal(load_image(Case("c.png", content).write(tmp_path)).pixels, upright)


def failures(error: str) -> list[str]:
    return [line for line in error.splitlines() if line.startswith("failed: ")]


def shown_name(name: str) -> str:
    """As the command line prints it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def test_a_folder_of_all_of_them(
    corpus: Path, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = contents(corpus), tmp_path / "out"
    command = ["deblur", str(corpus), "-o", f"{out}/", "--resume", "--model", str(tiny_checkpoint)]
    assert cli.main(command) == 1
    shown = capsys.readouterr()
    good = {name for name, case in CASES.items() if case.error is None}
    written = {path.name for path in out.iterdir()}
    assert {name for name in written if not name.startswith(".") and "manifest" not in name} == good
    assert not [name for name in written if name.endswith(".partial")]
    lines = failures(shown.err)
    assert len(lines) == len(CASES) - len(good)
    for name, case in CASES.items():
        naming = [line for line in lines if shown_name(str(corpus / name)) in line]
        if case.error is None:
            assert not naming and shown_name(f"-> {out / name} (") in shown.out
            assert tuple(load_image(out / name).pixels.shape[1:]) == case.size
        else:
            assert len(naming) == 1 and re.search(case.error, naming[0]), name
    assert contents(corpus) == before
    assert shown.out.isprintable() or all(line.isprintable() for line in shown.out.splitlines())
    # Once more: what is done is not done again, what failed fails again.
    stamps = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name in good}
    assert cli.main(command) == 1
    assert failures(capsys.readouterr().err) == lines
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name in good} == stamps


def test_names_that_the_terminal_cannot_show(corpus: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """As on a terminal of ASCII; and a name that is no UTF-8 at all."""
    names = [name for name, case in CASES.items() if not name.isascii() or "\n" in name]
    command = [sys.executable, "-m", "rddm_core", "deblur", *(str(corpus / name) for name in names)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "1"}
    shown = subprocess.run(
        [*command, "-o", f"{tmp_path}/", "--model", str(tiny_checkpoint)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert shown.stdout.count(b" -> ") == len(names) == len(shown.stdout.decode("ascii").splitlines())


# ---------------------------------------------------------------- permissions, full disks


def test_files_and_folders_without_permission(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, closed, locked, out = (tmp_path / name for name in ("in", "closed", "locked", "out"))
    for path in (folder, closed, locked):
        path.mkdir()
    content = encoded(picture(), "PNG")
    for path in (folder / "a.png", folder / "b.png", closed / "c.png"):
        path.write_bytes(content)
    (folder / "b.png").chmod(0)
    closed.chmod(0)
    locked.chmod(0o500)
    try:
        with permissions_count(folder / "b.png"):
            with pytest.raises(ImageError, match=r"b\.png may not be read: change its permissions"):
                load_image(folder / "b.png")
            with pytest.raises(ImageError, match=r"c\.png may not be read: change its permissions"):
                load_image(closed / "c.png")
            for target in (locked / "a.png", locked / "new" / "a.png"):
                with pytest.raises(ImageError, match=r"a\.png could not be written: it may not be written there"):
                    save_image(target, torch.zeros(3, 2, 2))
            arguments = ["--model", str(tiny_checkpoint)]
            assert cli.main(["deblur", str(folder), str(closed), "-o", f"{out}/", *arguments]) == 1
            error = capsys.readouterr().err
            assert len(failures(error)) == 2 and "2 of 3 failed" in error
            assert f"{folder}/b.png may not be read: change its permissions" in error
            assert f"{closed}: may not be read: change its permissions" in error
            assert os.listdir(out) == ["a.png"]
            assert cli.main(["deblur", str(folder / "a.png"), "-o", f"{locked}/", *arguments]) == 1
            assert "locked cannot be written to (Permission denied): change its permissions" in capsys.readouterr().err
        assert os.listdir(locked) == []
    finally:
        closed.chmod(0o700)


@pytest.fixture(params=["tmpfs", "fake"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which there is room for 64 kB, or none at all."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "fake":

        @contextmanager
        def onto_full_disk(path: Path) -> Iterator[Path]:
            with atomic_target(path) as partial:
                partial.unlink()
                partial.symlink_to("/dev/full")
                yield partial

        monkeypatch.setattr(images, "atomic_target", onto_full_disk)
        yield folder
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp", "deep.png", "deep.tif"])
def test_a_full_disk(small_disk: Path, name: str) -> None:
    (small_disk / name).write_bytes(b"what stood there before")
    pixels = torch.rand(3, 400, 400, generator=torch.Generator().manual_seed(0))
    like = LoadedImage(pixels, bits=16 if "deep" in name else 8)
    with pytest.raises(ImageError, match=rf"{name} could not be written: the disk is full: free some space"):
        save_image(small_disk / name, pixels, like)
    assert os.listdir(small_disk) == [name]
    assert (small_disk / name).read_bytes() == b"what stood there before"


def test_a_disk_that_fills_up_during_a_run(
    small_disk: Path, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, size in (("a.png", (8, 8)), ("b.png", (400, 400)), ("c.png", (8, 8))):
        (source / name).write_bytes(encoded(picture(size=size), "PNG"))
    assert cli.main(["deblur", str(source), "-o", f"{small_disk}/", "--model", str(tiny_checkpoint)]) == 1
    fake = not os.path.ismount(small_disk)
    lines = failures(capsys.readouterr().err)
    assert len(lines) == (3 if fake else 1) and all("the disk is full: free some space" in line for line in lines)
    assert sorted(os.listdir(small_disk)) == ([] if fake else ["a.png", "c.png"])
