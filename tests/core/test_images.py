"""Reading and writing photographs."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, TiffImagePlugin

from rddm_core.bit_depth import write_tiff
from rddm_core.files import atomic_target
from rddm_core.images import ImageError, LoadedImage, comparison_sheet, load_image, save_image

ROOT = Path(__file__).parents[2]
LOSSLESS = ("png", "tif", "bmp")
ORIENTATION, MAKE, EXIF, GPS = 0x0112, 0x010F, 0x8769, 0x8825
LENS, MAKER_NOTE, LATITUDE_REF = 0xA434, 0x927C, 1
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/></rdf:RDF></x:xmpmeta>'
)


def picture(mode: str = "RGB", size: tuple[int, int] = (7, 5), seed: int = 0) -> Image.Image:
    """Random 8-bit values; width, height."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.frombytes(mode, size, array.tobytes())


def bytes_of(pixels: torch.Tensor) -> np.ndarray:
    return (pixels * 255).round().byte().permute(1, 2, 0).numpy()


def exif_with(orientation: int | None, maker_note: bytes = b"\x01secret\x00") -> bytes:
    exif = Image.Exif()
    exif[MAKE] = "Camera"
    if orientation is not None:
        exif[ORIENTATION] = orientation
    exif[EXIF] = {LENS: "Lens 50mm", MAKER_NOTE: maker_note}
    exif[GPS] = {LATITUDE_REF: "N"}
    return exif.tobytes()


def icc_header(space: bytes) -> bytes:
    """Enough of a profile for its colour space to be read."""
    return b"\x00" * 16 + space + b"\x00" * 108


@pytest.mark.parametrize("extension", LOSSLESS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(width=st.integers(1, 9), height=st.integers(1, 9), seed=st.integers(0, 99))
def test_8_bit_values_survive_unchanged(
    tmp_path_factory: pytest.TempPathFactory, extension: str, width: int, height: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("round")
    source = picture("RGB", (width, height), seed)
    source.save(folder / f"a.{extension}")
    loaded = load_image(folder / f"a.{extension}")
    assert loaded.pixels.shape == (3, height, width) and loaded.pixels.dtype == torch.float32
    save_image(folder / f"b.{extension}", loaded.pixels, loaded)
    assert np.array_equal(np.asarray(Image.open(folder / f"b.{extension}")), np.asarray(source))


def test_lossless_webp_survives_unchanged_at_quality_100(tmp_path: Path) -> None:
    source = picture("RGBA")
    source.save(tmp_path / "a.webp", lossless=True, exact=True)
    loaded = load_image(tmp_path / "a.webp")
    save_image(tmp_path / "b.webp", loaded.pixels, loaded, quality=100)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.webp")), np.asarray(source))


@pytest.mark.parametrize("extension", ["png", "webp", "tif"])
def test_alpha_is_kept(tmp_path: Path, extension: str) -> None:
    source = picture("RGBA")
    source.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.alpha is not None and loaded.alpha.shape == (1, 5, 7)
    save_image(tmp_path / f"b.{extension}", loaded.pixels, loaded)
    with Image.open(tmp_path / f"b.{extension}") as written:
        assert np.array_equal(np.asarray(written)[:, :, 3], np.asarray(source)[:, :, 3])


@pytest.mark.parametrize("extension", ["jpg", "bmp"])
def test_alpha_is_dropped_with_a_warning_where_the_format_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, extension: str
) -> None:
    picture("RGBA").save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    save_image(tmp_path / f"b.{extension}", loaded.pixels, loaded)
    assert Image.open(tmp_path / f"b.{extension}").mode == "RGB"
    assert "transparency" in caplog.text and f"b.{extension}" in caplog.text


def test_opaque_alpha_is_dropped_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = LoadedImage(torch.rand(3, 4, 4), torch.ones(1, 4, 4))
    save_image(tmp_path / "b.jpg", loaded.pixels, loaded)
    assert not caplog.text


def test_grey_pictures_stay_grey(tmp_path: Path) -> None:
    source = picture("LA")
    source.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.grey and torch.equal(loaded.pixels[0], loaded.pixels[2])
    save_image(tmp_path / "b.png", loaded.pixels, loaded)
    written = Image.open(tmp_path / "b.png")
    assert written.mode == "LA" and np.array_equal(np.asarray(written), np.asarray(source))


def test_a_grey_picture_is_written_as_the_mean_of_its_colours(tmp_path: Path) -> None:
    pixels = torch.tensor([0.2, 0.4, 0.6])[:, None, None].expand(3, 2, 2)
    save_image(tmp_path / "a.png", pixels, LoadedImage(pixels, grey=True))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[102, 102], [102, 102]]


def test_palette_with_transparency(tmp_path: Path) -> None:
    source = Image.new("P", (2, 1))
    source.putpalette([255, 0, 0, 0, 255, 0])
    source.putdata([0, 1])
    source.save(tmp_path / "a.png", transparency=1)
    loaded = load_image(tmp_path / "a.png")
    assert loaded.alpha is not None
    assert loaded.pixels[:, 0].T.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert loaded.alpha[0, 0].tolist() == [1, 0]


def test_colour_key_transparency_becomes_alpha(tmp_path: Path) -> None:
    source = Image.new("RGB", (2, 1), (1, 2, 3))
    source.putpixel((1, 0), (9, 9, 9))
    source.save(tmp_path / "a.png", transparency=(9, 9, 9))
    alpha = load_image(tmp_path / "a.png").alpha
    assert alpha is not None and alpha[0, 0].tolist() == [1, 0]


def test_black_and_white(tmp_path: Path) -> None:
    source = Image.new("1", (2, 1))
    source.putpixel((1, 0), 1)
    source.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.grey and loaded.pixels[:, 0].T.tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grey_keeps_its_precision(tmp_path: Path, extension: str) -> None:
    values = np.array([[0, 1, 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{extension}")
    loaded = load_image(tmp_path / f"a.{extension}")
    assert loaded.grey
    assert torch.allclose(loaded.pixels[0, 0] * 65535, torch.tensor([0.0, 1, 257, 65535]), atol=1e-2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif"])
def test_orientation_is_applied_and_reset(tmp_path: Path, extension: str, orientation: int) -> None:
    # Stored so that turning by the EXIF rule gives this picture: a bright top left quarter, 32 wide, 16 high.
    upright = Image.new("RGB", (32, 16))
    upright.paste((250, 250, 250), (0, 0, 16, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    path = tmp_path / f"a.{extension}"
    stored.save(path, exif=exif_with(orientation))
    loaded = load_image(path)
    assert loaded.pixels.shape == (3, 16, 32)
    assert loaded.pixels[:, :6, :14].mean() > 0.9 and loaded.pixels[:, 10:].mean() < 0.1

    save_image(tmp_path / f"b.{extension}", loaded.pixels, loaded)
    with Image.open(tmp_path / f"b.{extension}") as written:
        exif = written.getexif()
        assert written.size == (32, 16)
        assert exif.get(ORIENTATION, 1) == 1 and exif[MAKE] == "Camera"
        assert exif.get_ifd(EXIF)[LENS] == "Lens 50mm" and exif.get_ifd(EXIF)[MAKER_NOTE] == b"\x01secret\x00"
        assert exif.get_ifd(GPS)[LATITUDE_REF] == "N"
    assert load_image(tmp_path / f"b.{extension}").pixels.shape == (3, 16, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16", "I;16B", "RGB 16"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiffs_of_every_mode_are_turned(tmp_path: Path, mode: str, orientation: int, compression: str | None) -> None:
    """Sides of no round number: nothing fits by chance."""
    shape = (23, 37)
    stored = shape if orientation < 5 else shape[::-1]
    rng = np.random.default_rng(orientation)
    path = tmp_path / "a.tif"
    if mode in ("I;16", "I;16B", "RGB 16"):
        tifffile = pytest.importorskip("tifffile")
        values = rng.integers(0, 65536, (*stored, *((3,) if mode == "RGB 16" else ()))).astype(np.uint16)
        order = {"byteorder": ">" if mode == "I;16B" else "<", "compression": compression}
        kind = "rgb" if mode == "RGB 16" else "minisblack"
        tags = [(ORIENTATION, 3, 1, orientation, True)]
        tifffile.imwrite(path, values, photometric=kind, extratags=tags, metadata=None, **order)
        white = 65535.0
    else:
        made = Image.fromarray(rng.integers(0, 256, (*stored, 4), dtype=np.uint8), "RGBA")
        made = made.convert("RGB").convert(mode) if mode != "RGBA" else made
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[ORIENTATION] = orientation
        made.save(path, tiffinfo=tags, **({"compression": "tiff_deflate"} if compression else {}))
        values, white = np.asarray(made.convert("L" if mode in ("1", "L") else "RGB")), 255.0
    turned = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.swapaxes(0, 1),
        6: np.rot90(values, -1),
        7: values[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(values, 1),
    }[orientation]
    expected = torch.from_numpy(np.ascontiguousarray(turned).reshape(*shape, -1) / white).movedim(-1, 0)
    pixels = load_image(path).pixels
    assert pixels.shape == (3, *shape)
    assert torch.allclose(pixels, expected.float().expand(3, -1, -1), atol=0.5 / white)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "8-bit.tif", "16-bit.tif"])
def test_what_is_said_of_the_sides_turns_with_them(tmp_path: Path, kind: str, orientation: int) -> None:
    lies = orientation >= 5
    wide, high = (12, 20) if lies else (20, 12)  # as stored
    sides = {0xA002: wide, 0xA003: high}
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "Camera"
    exif[EXIF] = sides
    path = tmp_path / f"a.{kind}"
    if kind == "16-bit.tif":
        pytest.importorskip("tifffile")
        entries = {ORIENTATION: orientation, MAKE: "Camera", EXIF: sides}
        rows = [np.zeros((high, wide, 3), np.uint16)]
        with path.open("wb") as handle:
            write_tiff(handle, rows, (high, wide), channels=3, bits=16, exif=entries, dpi=(300, 150))
    else:
        Image.new("RGB", (wide, high)).save(path, exif=exif.tobytes(), dpi=(300, 150))
    loaded = load_image(path)
    assert loaded.pixels.shape == (3, 12, 20)
    assert loaded.dpi == pytest.approx((150, 300) if lies else (300, 150), rel=1e-3)
    assert loaded.exif is not None
    told = Image.Exif()
    told.load(loaded.exif)
    assert told[MAKE] == "Camera" and dict(told.get_ifd(EXIF)) == {0xA002: 20, 0xA003: 12}


def test_exif_moves_between_formats_without_the_layout_of_a_tiff(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.tif", exif=exif_with(1))
    loaded = load_image(tmp_path / "a.tif")
    save_image(tmp_path / "b.jpg", loaded.pixels, loaded)
    with Image.open(tmp_path / "b.jpg") as written:
        assert set(written.getexif()) == {MAKE, ORIENTATION, EXIF, GPS}


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
@pytest.mark.parametrize("xmp", [None, XMP])
def test_a_tiff_takes_no_layout_from_the_exif_of_another_format(
    tmp_path: Path, extension: str, xmp: bytes | None
) -> None:
    """Phones write the size as it was before turning; Pillow's TIFF writer would believe it, and what else is there."""
    exif = Image.Exif()
    exif.load(exif_with(6))
    layout = {0x0100: 9999, 0x0101: 9999, 0x0102: 16, 0x0103: 5, 0x0106: 6, 0x0142: 16, 0x0152: 1, 0x0153: 3}
    for tag, value in layout.items():
        exif[tag] = value
    picture().save(tmp_path / f"a.{extension}", exif=exif.tobytes(), lossless=True)
    loaded = replace(load_image(tmp_path / f"a.{extension}"), xmp=xmp)
    save_image(tmp_path / "b.tif", loaded.pixels, loaded)
    written = load_image(tmp_path / "b.tif")
    assert np.array_equal(bytes_of(written.pixels), bytes_of(loaded.pixels))
    assert (written.xmp is not None and b'Rating="4"' in written.xmp) == (xmp is not None)
    with Image.open(tmp_path / "b.tif") as tiff:
        assert tiff.getexif()[MAKE] == "Camera" and tiff.getexif().get_ifd(EXIF)[LENS] == "Lens 50mm"


def test_the_size_in_exif_turns_with_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x0100], exif[0x0101], exif[EXIF] = 6, 7, 5, {0xA002: 7, 0xA003: 5}
    picture().save(tmp_path / "a.jpg", exif=exif.tobytes())
    loaded = load_image(tmp_path / "a.jpg")
    save_image(tmp_path / "b.jpg", loaded.pixels, loaded)
    with Image.open(tmp_path / "b.jpg") as written:
        kept, entries = written.getexif(), written.getexif().get_ifd(EXIF)
        assert written.size == (5, 7)
        assert (kept[0x0100], kept[0x0101]) == (entries[0xA002], entries[0xA003]) == (5, 7)


def test_a_resolution_that_jpeg_cannot_hold_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture().save(tmp_path / "a.tif", dpi=(70000, 70000))
    loaded = load_image(tmp_path / "a.tif")
    save_image(tmp_path / "b.jpg", loaded.pixels, loaded)
    with Image.open(tmp_path / "b.jpg") as written:
        assert "dpi" not in written.info and "resolution" in caplog.text


def test_a_picture_without_exif_gets_none(tmp_path: Path) -> None:
    for extension in ("png", "jpg", "tif"):
        picture().save(tmp_path / f"a.{extension}")
        assert load_image(tmp_path / f"a.{extension}").exif is None


def test_damaged_exif_costs_the_exif_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    loaded = load_image(tmp_path / "a.jpg")
    assert loaded.pixels.shape == (3, 5, 7) and "a.jpg: Corrupt EXIF" in caplog.text
    save_image(tmp_path / "b.jpg", loaded.pixels, loaded)


def test_exif_too_long_for_jpeg_is_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture().save(tmp_path / "a.png", exif=exif_with(None, maker_note=bytes(70000)))
    loaded = load_image(tmp_path / "a.png")
    save_image(tmp_path / "b.jpg", loaded.pixels, loaded)
    assert "too long" in caplog.text and not Image.open(tmp_path / "b.jpg").getexif()


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif"])
def test_colour_profile_is_kept(tmp_path: Path, extension: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture().save(tmp_path / f"a.{extension}", icc_profile=profile)
    loaded = load_image(tmp_path / f"a.{extension}")
    save_image(tmp_path / f"b.{extension}", loaded.pixels, loaded)
    assert Image.open(tmp_path / f"b.{extension}").info["icc_profile"] == profile


def test_cmyk_becomes_rgb_without_the_cmyk_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95, icc_profile=icc_header(b"CMYK"))
    loaded = load_image(tmp_path / "a.jpg")
    assert loaded.icc is None and "CMYK profile" in caplog.text
    assert loaded.pixels[0].min() > 0.9 and loaded.pixels[1:].max() < 0.1  # magenta and yellow ink make red
    save_image(tmp_path / "b.jpg", loaded.pixels, loaded)
    written = Image.open(tmp_path / "b.jpg")
    assert written.mode == "RGB" and "icc_profile" not in written.info


@pytest.mark.parametrize(
    ("mode", "space", "kept"), [("L", b"RGB ", False), ("L", b"GRAY", True), ("RGB", b"GRAY", False)]
)
def test_a_profile_must_fit_the_pixels(tmp_path: Path, mode: str, space: bytes, kept: bool) -> None:
    picture(mode).save(tmp_path / "a.jpg", icc_profile=icc_header(space))
    assert (load_image(tmp_path / "a.jpg").icc is not None) == kept


def test_jpeg_is_written_without_chroma_subsampling(tmp_path: Path) -> None:
    pixels = torch.zeros(3, 16, 16)
    pixels[0, :, ::2] = 1  # red and blue columns one pixel wide: subsampling would mix them to purple
    pixels[2, :, 1::2] = 1
    save_image(tmp_path / "b.jpg", pixels)
    assert (load_image(tmp_path / "b.jpg").pixels - pixels).abs().mean() < 0.05


@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_a_higher_quality_takes_more_bytes_and_95_is_the_default(tmp_path: Path, extension: str) -> None:
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    written = []
    for quality in (50, 75, 95):
        save_image(tmp_path / f"a.{extension}", pixels, quality=quality)
        written.append((tmp_path / f"a.{extension}").read_bytes())
    assert len(written[0]) < len(written[1]) < len(written[2])
    save_image(tmp_path / f"a.{extension}", pixels)
    assert (tmp_path / f"a.{extension}").read_bytes() == written[2]


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "bmp"])
def test_empty_and_truncated_files(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=rf"a\.{extension} is empty"):
        load_image(path)
    buffer = io.BytesIO()
    picture("RGB", (64, 64)).save(path)
    buffer.write(path.read_bytes())
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
        with pytest.raises(ImageError, match=rf"a\.{extension} .*(again|convert)"):
            load_image(path)


@pytest.mark.parametrize(
    ("name", "tags"),
    [("a.nef", {254: 1}), ("a.tif", {254: 1}), ("a.CR2", {}), ("a.tif", {262: 32803}), ("a.tif", {262: 34892})],
)
def test_raw_files_are_refused_rather_than_their_preview_read(tmp_path: Path, name: str, tags: dict[int, int]) -> None:
    buffer = io.BytesIO()
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[254] = tags.get(254, 0)
    Image.new("L", (16, 12), 90).save(buffer, "TIFF", tiffinfo=directory)
    content = buffer.getvalue()
    if 262 in tags:  # which Pillow writes by itself
        entry = content.index(struct.pack("<HHI", 262, 3, 1))
        content = content[: entry + 8] + struct.pack("<H", tags[262]) + content[entry + 10 :]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=rf"{name} is a camera's raw file: develop it first"):
        load_image(tmp_path / name)


@pytest.mark.parametrize("kind", [0, 2])
def test_pages_of_full_size_are_read(tmp_path: Path, kind: int) -> None:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[254] = kind
    Image.new("L", (16, 12), 90).save(tmp_path / "a.tif", tiffinfo=directory)
    assert load_image(tmp_path / "a.tif").pixels.shape == (3, 12, 16)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), extension=st.sampled_from(["jpg", "png", "webp", "tif", "bmp"]))
def test_damaged_files_give_a_picture_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, extension: str
) -> None:
    path = tmp_path_factory.mktemp("damage") / f"a.{extension}"
    picture("RGB", (16, 16)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        loaded = load_image(path, max_pixels=10_000)
    except ImageError as error:
        assert path.name in str(error)
    else:
        assert loaded.pixels.shape[0] == 3 and bool(torch.isfinite(loaded.pixels).all())


def test_foreign_missing_and_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("this is no picture")
    with pytest.raises(ImageError, match="is not a JPEG"):
        load_image(tmp_path / "a.jpg")
    picture().save(tmp_path / "a.gif")
    with pytest.raises(ImageError, match="is not a JPEG"):
        load_image(tmp_path / "a.gif")
    with pytest.raises(ImageError, match="does not exist"):
        load_image(tmp_path / "b.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


def test_content_decides_over_the_extension(tmp_path: Path) -> None:
    source = picture()
    source.save(tmp_path / "a.jpg", format="PNG")
    loaded = load_image(tmp_path / "a.jpg")
    assert loaded.format == "PNG" and np.array_equal(bytes_of(loaded.pixels), np.asarray(source))
    save_image(tmp_path / "b.jpg", loaded.pixels, loaded)
    assert Image.open(tmp_path / "b.jpg").format == "JPEG"


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_animations_are_refused(tmp_path: Path, extension: str) -> None:
    frames = [picture(seed=s) for s in range(3)]
    frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(ImageError, match="animated"):
        load_image(tmp_path / f"a.{extension}")


@pytest.mark.parametrize(
    ("kinds", "told"),
    [((0, 0), 2), ((0, 1, 2, 4), 2), ((0, 1, 4), None), ((0,), None)],  # 1: reduced, 4: a mask
)
def test_first_page_of_a_tiff(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kinds: tuple[int, ...], told: int | None
) -> None:
    pages = [picture(seed=s) for s in range(len(kinds))]
    for page, kind in zip(pages, kinds, strict=True):
        directory = TiffImagePlugin.ImageFileDirectory_v2()
        directory[254] = kind
        page.encoderinfo = {"tiffinfo": directory}
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], tiffinfo=pages[0].encoderinfo["tiffinfo"])
    assert np.array_equal(bytes_of(load_image(tmp_path / "a.tif").pixels), np.asarray(pages[0]))
    assert caplog.messages == (
        [f"{tmp_path / 'a.tif'}: of its {told} pages only the first is read; save the others as files"] if told else []
    )


def test_pages_that_lead_in_a_circle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = [picture(seed=s) for s in range(2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with Image.open(tmp_path / "a.tif") as image:
        image.seek(1)
        second = image.tag_v2.offset
    tags = struct.unpack_from("<H", content, second)[0]
    struct.pack_into("<L", content, second + 2 + 12 * tags, struct.unpack_from("<L", content, 4)[0])
    (tmp_path / "a.tif").write_bytes(content)
    assert np.array_equal(bytes_of(load_image(tmp_path / "a.tif").pixels), np.asarray(pages[0]))
    assert "of its 2 pages" in caplog.text


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    picture("RGB", (20, 10)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="20x10"):
        load_image(tmp_path / "a.png", max_pixels=199)
    assert load_image(tmp_path / "a.png", max_pixels=200).pixels.shape == (3, 10, 20)
    with monkeypatch.context() as patch:  # Pillow's own limit, at which it raises from twice as many on
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        assert load_image(tmp_path / "a.png", max_pixels=200).pixels.shape == (3, 10, 20)
        assert Image.MAX_IMAGE_PIXELS == 50
    # A bomb: a header that promises 30000 x 30000 pixels.
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = (30000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ImageError, match="megapixels"):
        load_image(tmp_path / "bomb.png")
    assert Image.MAX_IMAGE_PIXELS == limit


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"written as \.jpg"):
        save_image(tmp_path / "a.gif", torch.rand(3, 2, 2))
    with pytest.raises(ImageError, match=r"\[3, H, W\]"):
        save_image(tmp_path / "a.png", torch.rand(1, 3, 2, 2))
    with pytest.raises(ImageError, match="NaN"):
        save_image(tmp_path / "a.png", torch.full((3, 2, 2), torch.nan))
    with pytest.raises(ImageError, match="16383"):
        save_image(tmp_path / "a.webp", torch.zeros(3, 1, 16384))
    with pytest.raises(ImageError, match="65500"):
        save_image(tmp_path / "a.jpg", torch.zeros(3, 1, 65501))
    with pytest.raises(ImageError, match="alpha is"):
        save_image(tmp_path / "a.png", torch.rand(3, 2, 2), LoadedImage(torch.rand(3, 1, 1), torch.zeros(1, 1, 1)))
    assert list(tmp_path.iterdir()) == []


def test_values_outside_the_range_are_clipped(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", torch.tensor([-1.0, 0.5, 2.0])[:, None, None])
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[[0, 128, 255]]]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "a.png", torch.zeros(3, 2, 2))
    before = (tmp_path / "a.png").read_bytes()
    for error, seen in ((OSError("disk full"), ImageError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(self: Image.Image, handle: io.BufferedWriter, *, error: BaseException = error, **_: object) -> None:
            handle.write(b"half a picture")
            raise error

        monkeypatch.setattr(Image.Image, "save", fail)
        with pytest.raises(seen):
            save_image(tmp_path / "a.png", torch.ones(3, 2, 2))
        assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
        assert (tmp_path / "a.png").read_bytes() == before


def test_atomic_target_makes_folders_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with atomic_target(target) as partial:
            partial.write_text(text)
            assert partial.parent == target.parent
        assert target.read_text() == text
    assert os.listdir(target.parent) == ["a.txt"]


def test_names_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    name = "ä" * 125 + ".png"
    save_image(tmp_path / name, torch.zeros(3, 2, 2))
    assert os.listdir(tmp_path) == [name]


def test_new_files_get_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_image(tmp_path / "a.png", torch.zeros(3, 2, 2))
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (90, 60), (64, 301)])
def test_comparison_sheet_has_two_rows_of_labelled_panels(size: tuple[int, int]) -> None:
    a, b = torch.zeros(3, *size), torch.ones(3, *size) * 0.5
    sheet = comparison_sheet({"input": a, "deblurred": b}, max_side=200)
    scale = min(1, 200 / max(size))
    height, width = round(size[0] * scale), round(size[1] * scale)
    assert sheet.shape == (3, 2 * height, 2 * width)
    assert sheet.min() >= 0 and sheet.max() <= 1
    if min(size) > 50:
        assert (sheet[:, :height, :width] > 0.9).any(), "no label on the black panel"


def test_comparison_shows_the_detail_that_changed_most() -> None:
    a = torch.zeros(3, 160, 160)
    b = a.clone()
    b[0, 100:130, 20:50] = 1
    sheet = comparison_sheet({"input": a, "deblurred": b}, max_side=160)
    assert sheet[0, 240:, 240:].mean() > 0.3  # the red square fills much of the enlarged detail


def test_a_detail_in_the_corner_is_enlarged_as_much_as_any() -> None:
    a = torch.zeros(3, 160, 160)
    b = a.clone()
    b[0, 150:, 150:] = 1
    detail = comparison_sheet({"input": a, "deblurred": b}, max_side=160)[0, 160:, 160:]
    assert float(detail.mean()) == pytest.approx((10 / 40) ** 2, abs=0.02)  # ten of the 40 pixels that are shown


MEASURE = """
import re, sys, torch
from pathlib import Path
from rddm_core.images import LoadedImage, load_image, save_image

def peak(action):
    def status(name):
        return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    result = action()
    print(status("VmHWM") - before)

folder = Path(sys.argv[1])
peak(lambda: load_image(folder / "photo.jpg"))
peak(lambda: load_image(folder / "turned.jpg"))
pixels = torch.full((3, 3000, 4000), 0.5)
peak(lambda: save_image(folder / "new.jpg", pixels))
peak(lambda: save_image(folder / "new.png", pixels, LoadedImage(pixels, bits=16)))
peak(lambda: save_image(folder / "new.tif", pixels, LoadedImage(pixels, bits=32)))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_no_more_memory_than_needed(tmp_path: Path) -> None:
    """12 megapixels: 48 MB as Pillow holds them, 144 MB as float32 [3, H, W]; some more for strips and codecs."""
    for name, orientation in (("photo.jpg", 1), ("turned.jpg", 6)):
        Image.new("RGB", (4000, 3000), (90, 120, 150)).save(tmp_path / name, exif=exif_with(orientation))
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    peaks = [float(line) for line in shown.stdout.split()]
    assert [limit - 10 < p < limit + 50 for p, limit in zip(peaks, (192, 192, 48, 0, 0), strict=True)] == [True] * 5, (
        peaks
    )
