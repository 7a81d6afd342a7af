"""16 bits and floating point: read and written at full depth, with everything that stands beside the pixels."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from rddm_core import cli
from rddm_core.images import ImageError, LoadedImage, load_image, save_image

# Other hands than those that read and write here: libpng by imagecodecs, tifffile.
imagecodecs = pytest.importorskip("imagecodecs")
tifffile = pytest.importorskip("tifffile")

SIZE = (23, 31)
ORIENTATION, MAKE, EXIF, GPS, INTEROPERABILITY = 0x0112, 0x010F, 0x8769, 0x8825, 0xA005
LENS, LATITUDE_REF = 0xA434, 1


def values(channels: int, dtype: str = "u2", size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """[H, W, C]: every bit is used; floats in 0..1."""
    random = np.random.default_rng(seed)
    if dtype == "u2":
        return random.integers(0, 65536, (*size, channels), dtype=np.uint16)
    return random.random((*size, channels), np.float32).astype(dtype)


def write(path: Path, array: np.ndarray, **options: Any) -> Path:
    """By imagecodecs or tifffile, as the extension says."""
    channels = array.shape[2]
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(array.squeeze(2) if channels == 1 else array)))
        return path
    if channels in (2, 4):
        options = {"extrasamples": ["unassalpha"], **options}
    if options.get("planarconfig") == "separate":
        array = np.moveaxis(array, 2, 0)
    elif channels == 1:
        array = array.squeeze(2)
    tifffile.imwrite(path, array, **{"photometric": "rgb" if channels > 2 else "minisblack", **options})
    return path


def read(path: Path) -> np.ndarray:
    array = imagecodecs.png_decode(path.read_bytes()) if path.suffix == ".png" else tifffile.imread(path)
    return array.reshape(*array.shape[:2], -1)


def with_chunk(png: Path, kind: bytes, data: bytes) -> Path:
    """Put a chunk behind the header."""
    content = png.read_bytes()
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    png.write_bytes(content[:33] + chunk + content[33:])
    return png


def with_tags(tif: Path, **tags: Any) -> Path:
    """Change tags of the first page."""
    with tifffile.TiffFile(tif, mode="r+") as file:
        for name, value in tags.items():
            file.pages[0].tags[name].overwrite(value)
    return tif


def display_p3() -> bytes:
    """A wide-gamut profile: sRGB's, with the primaries of Display P3."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2919, 0.6922, 0.0419),
        b"bXYZ": (0.1572, 0.0666, 0.7841),
    }
    for i in range(struct.unpack_from(">I", profile, 128)[0]):
        name, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        if name in primaries:
            struct.pack_into(">3i", profile, offset + 8, *(round(x * 65536) for x in primaries[name]))
    return bytes(profile)


def exif_with(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "Camera", orientation
    exif[EXIF] = {LENS: "Lens 50mm", INTEROPERABILITY: {1: "R03"}}
    exif[GPS] = {LATITUDE_REF: "N"}
    return exif.tobytes()


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("source", ["png", "tif"])
@pytest.mark.parametrize("target", ["png", "tif"])
def test_all_16_bits_survive(tmp_path: Path, source: str, target: str, channels: int) -> None:
    array = values(channels)
    loaded = load_image(write(tmp_path / f"a.{source}", array))
    assert (loaded.bits, loaded.grey, loaded.alpha is not None) == (16, channels < 3, channels in (2, 4))
    assert loaded.pixels.dtype == torch.float32 and loaded.pixels.shape == (3, *SIZE)
    save_image(tmp_path / f"b.{target}", loaded.pixels, loaded)
    written = read(tmp_path / f"b.{target}")
    assert written.dtype == np.uint16 and np.array_equal(written, array)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_floating_point_survives(tmp_path: Path, channels: int, dtype: str) -> None:
    array = values(channels, dtype)
    loaded = load_image(write(tmp_path / "a.tif", array))
    assert (loaded.bits, loaded.grey) == (32, channels < 3)
    save_image(tmp_path / "b.tif", loaded.pixels, loaded)
    written = read(tmp_path / "b.tif")
    assert written.dtype == np.float32 and np.array_equal(written, array.astype(np.float32))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (301, 1000)])
@pytest.mark.parametrize(("name", "dtype"), [("a.png", "u2"), ("a.tif", "u2"), ("a.tif", "f4")])
def test_sizes_that_make_one_strip_or_several(tmp_path: Path, size: tuple[int, int], name: str, dtype: str) -> None:
    array = values(3, dtype, size)
    loaded = load_image(write(tmp_path / name, array))
    save_image(tmp_path / f"b{name}", loaded.pixels, loaded)
    assert np.array_equal(read(tmp_path / f"b{name}"), array)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw", "predictor": 2},
        {"compression": "deflate", "predictor": 2, "rowsperstrip": 5},
        {"compression": "adobe_deflate", "tile": (16, 16)},
        {"compression": "zstd"},
        {"compression": "packbits"},
        {"tile": (16, 32)},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "lzw", "rowsperstrip": 7},
        {"byteorder": ">"},
        {"bigtiff": True},
    ],
    ids=str,
)
def test_layouts_of_tiff(tmp_path: Path, options: dict[str, Any]) -> None:
    for channels, dtype in ((3, "u2"), (4, "u2"), (3, "f4"), (1, "f4")):
        chosen = dict(options)
        if dtype == "f4" and "predictor" in chosen:
            chosen["predictor"] = 3
        if channels == 1:
            chosen.pop("planarconfig", None)
        array = values(channels, dtype)
        loaded = load_image(write(tmp_path / "a.tif", array, **chosen))
        assert loaded.bits == (16 if dtype == "u2" else 32)
        save_image(tmp_path / "b.tif", loaded.pixels, loaded)
        assert np.array_equal(read(tmp_path / "b.tif"), array)


def test_the_one_kind_of_tiff_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values(3), bigtiff=True, byteorder=">")
    with pytest.raises(ImageError, match="is a BigTIFF with the high byte first.*save it as TIFF"):
        load_image(path)


def test_white_may_be_zero(tmp_path: Path) -> None:
    for channels in (1, 2):
        array = values(channels)
        loaded = load_image(write(tmp_path / "a.tif", array, photometric="miniswhite"))
        save_image(tmp_path / "b.png", loaded.pixels, loaded)
        array[:, :, 0] = 65535 - array[:, :, 0]
        assert loaded.grey and np.array_equal(read(tmp_path / "b.png"), array)


def test_12_bits_fill_the_range(tmp_path: Path) -> None:
    """Two values in three bytes; as plain 16-bit values they would be nearly black."""
    samples = [0, 4095, 2048, 1]
    packed = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in zip(samples[::2], samples[1::2], strict=True))
    write(tmp_path / "a.tif", np.zeros((1, 4, 1), np.uint16))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        offset = file.pages[0].dataoffsets[0]
    with_tags(tmp_path / "a.tif", BitsPerSample=12, StripByteCounts=len(packed))
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[offset : offset + len(packed)] = packed
    (tmp_path / "a.tif").write_bytes(content)
    loaded = load_image(tmp_path / "a.tif")
    assert loaded.bits == 16
    assert torch.allclose(loaded.pixels[0, 0], torch.tensor(samples) / 4095)


def test_colours_that_were_multiplied_by_alpha(tmp_path: Path) -> None:
    colours, alpha = values(3, "f4") * 0.9 + 0.1, values(1, "f4", seed=1)
    alpha[0, :4] = 0
    array = np.concatenate((colours * alpha, alpha), axis=2)
    loaded = load_image(write(tmp_path / "a.tif", array, extrasamples=["assocalpha"]))
    assert loaded.alpha is not None and np.array_equal(loaded.alpha[0].numpy(), alpha[:, :, 0])
    visible = torch.from_numpy(alpha[:, :, 0] > 0.001)
    difference = (loaded.pixels - torch.from_numpy(colours).permute(2, 0, 1)).abs()
    assert difference[:, visible].max() < 1e-3 and loaded.pixels.isfinite().all()


def test_colours_brighter_than_their_alpha_are_clipped(tmp_path: Path) -> None:
    array = np.full((2, 2, 4), 0.5, np.float32)
    array[:, :, 3] = 0.25
    assert load_image(write(tmp_path / "a.tif", array, extrasamples=["assocalpha"])).pixels.max() == 1


def test_a_channel_of_no_stated_meaning_is_no_transparency(tmp_path: Path) -> None:
    array = values(4)
    loaded = load_image(write(tmp_path / "a.tif", array, extrasamples=["unspecified"]))
    assert loaded.alpha is None
    assert np.array_equal((loaded.pixels.double() * 65535).round().permute(1, 2, 0).numpy(), array[:, :, :3])


def test_a_colour_that_is_transparent(tmp_path: Path) -> None:
    for channels, kind in ((3, ">HHH"), (1, ">H")):
        array = values(channels)
        array[0, 1] = 300  # and not 301, which has the same high byte
        array[0, 2] = 301
        path = with_chunk(write(tmp_path / "a.png", array), b"tRNS", struct.pack(kind, *[300] * channels))
        loaded = load_image(path)
        assert loaded.alpha is not None and loaded.bits == 16
        assert loaded.alpha[0, 0, 1:3].tolist() == [0, 1] and loaded.alpha.sum() == array.shape[0] * array.shape[1] - 1
        save_image(tmp_path / "b.png", loaded.pixels, loaded)
        assert np.array_equal(read(tmp_path / "b.png")[:, :, :channels], array)


def test_interlaced_png(tmp_path: Path) -> None:
    """Adam7, each of its seven pictures in lines without a filter."""
    array = values(3, size=(9, 11))
    lines = b""
    for y, x, down, across in (
        *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
        *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
    ):
        lines += b"".join(b"\0" + row.astype(">u2").tobytes() for row in array[y::down, x::across])
    content = write(tmp_path / "a.png", array).read_bytes()
    header = content[12:28] + b"\x01"
    content = content[:12] + header + struct.pack(">I", zlib.crc32(header))
    for kind, body in ((b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "a.png").write_bytes(content)
    loaded = load_image(tmp_path / "a.png")
    assert np.array_equal((loaded.pixels.double() * 65535).round().permute(1, 2, 0).numpy(), array)


# ---------------------------------------------------------------- beside the pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("name", "dtype"), [("a.png", "u2"), ("a.tif", "u2"), ("a.tif", "f4")])
def test_orientation(tmp_path: Path, name: str, dtype: str, orientation: int) -> None:
    array = values(4, dtype)
    path = write(tmp_path / name, array, extratags=[(ORIENTATION, 3, 1, orientation, True)])
    if path.suffix == ".png":
        with_chunk(path, b"eXIf", exif_with(orientation)[6:])
    turned = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: np.rot90(array, -1),
        7: array.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(array),
    }[orientation]
    loaded = load_image(path)
    save_image(tmp_path / f"b{name}", loaded.pixels, loaded)
    assert np.array_equal(read(tmp_path / f"b{name}"), turned)
    assert load_image(tmp_path / f"b{name}").pixels.shape == loaded.pixels.shape  # not turned twice


@pytest.mark.parametrize("first", ["png", "tif", "float.tif"])
@pytest.mark.parametrize("second", ["png", "tif", "jpg", "webp"])
def test_profile_exif_and_resolution(tmp_path: Path, first: str, second: str) -> None:
    profile = display_p3()
    assert ImageCms.getProfileName(ImageCms.ImageCmsProfile(io.BytesIO(profile)))  # it can be used
    like = LoadedImage(
        torch.zeros(3, 1, 1),
        icc=profile,
        exif=exif_with(1),
        bits=32 if "float" in first else 16,
        dpi=(300.0, 240.0),
    )
    pixels = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    save_image(tmp_path / f"a.{first}", pixels, like)
    loaded = load_image(tmp_path / f"a.{first}")
    assert loaded.bits == like.bits and (loaded.pixels - pixels).abs().max() < 1e-5
    save_image(tmp_path / f"b.{second}", loaded.pixels, loaded)
    again = load_image(tmp_path / f"b.{second}")
    for picture in (loaded, again):
        assert picture.icc == profile
        assert picture.exif is not None
        exif = Image.Exif()
        exif.load(picture.exif)
        assert exif[MAKE] == "Camera" and exif[ORIENTATION] == 1
        assert exif.get_ifd(EXIF)[LENS] == "Lens 50mm" and exif.get_ifd(GPS)[LATITUDE_REF] == "N"
        assert exif.get_ifd(INTEROPERABILITY)[1] == "R03"  # says Adobe RGB where there is no profile
    assert loaded.dpi == pytest.approx((300, 240), rel=1e-4)
    if second == "webp":
        assert again.exif is not None
        exif.load(again.exif)
        assert (float(exif[0x011A]), float(exif[0x011B]), exif[0x0128]) == pytest.approx((300, 240, 2), rel=1e-4)
    else:
        assert again.dpi == pytest.approx((300, 240), rel=1e-2)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "bmp"])
def test_resolution_of_8_bit_files(tmp_path: Path, extension: str) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / f"a.{extension}", dpi=(300, 240))
    loaded = load_image(tmp_path / f"a.{extension}")
    save_image(tmp_path / f"b.{extension}", loaded.pixels, loaded)
    with Image.open(tmp_path / f"b.{extension}") as written:
        assert written.info["dpi"] == pytest.approx((300, 240), rel=1e-3)


def test_resolution_turns_with_the_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg", dpi=(300, 240), exif=exif.tobytes())
    assert load_image(tmp_path / "a.jpg").dpi == pytest.approx((240, 300), rel=1e-3)


def test_resolution_in_centimetres_is_told_in_inches(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values(3), resolution=(100, 80), resolutionunit="CENTIMETER")
    assert load_image(path).dpi == pytest.approx((254, 203.2))


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"bigtiff": True}], ids=str)
def test_exif_of_every_kind_of_tiff(tmp_path: Path, options: dict[str, Any]) -> None:
    """But the one that cannot be read."""
    tags = [(MAKE, 2, None, "Camera", True), (ORIENTATION, 3, 1, 6, True)]
    loaded = load_image(write(tmp_path / "a.tif", values(3), extratags=tags, **options))
    assert loaded.exif is not None and loaded.pixels.shape == (3, *reversed(SIZE))
    exif = Image.Exif()
    exif.load(loaded.exif)
    assert exif[MAKE] == "Camera"


def test_png_colours_that_no_profile_describes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_image(with_chunk(write(tmp_path / "a.png", values(3)), b"gAMA", struct.pack(">I", 45455)))
    assert not caplog.text
    load_image(with_chunk(write(tmp_path / "linear.png", values(3)), b"gAMA", struct.pack(">I", 100000)))
    assert "linear.png: its gAMA and cHRM chunks are left out" in caplog.text


def test_primaries_other_than_those_of_srgb_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those of Display P3, at the gamma of sRGB."""
    path = with_chunk(write(tmp_path / "p3.png", values(3)), b"gAMA", struct.pack(">I", 45455))
    load_image(with_chunk(path, b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)))
    assert "p3.png: its gAMA and cHRM chunks are left out" in caplog.text


# ---------------------------------------------------------------- formats that hold less


@pytest.mark.parametrize(
    ("bits", "extension", "message"),
    [
        (16, "jpg", "16 bits per channel, but JPEG holds 8 bits.*PNG or TIFF"),
        (16, "webp", "16 bits per channel, but WEBP holds 8 bits.*PNG or TIFF"),
        (16, "bmp", "16 bits per channel, but BMP holds 8 bits.*PNG or TIFF"),
        (32, "jpg", "floating-point values, but JPEG holds 8 bits.*TIFF"),
        (32, "png", "floating-point values, but PNG holds 16 bits.*TIFF"),
    ],
)
def test_depth_is_not_lost_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bits: int, extension: str, message: str
) -> None:
    pixels = torch.rand(3, 6, 6)
    save_image(tmp_path / f"a.{extension}", pixels, LoadedImage(pixels, bits=bits))
    (record,) = caplog.records
    assert f"a.{extension}" in record.getMessage()
    assert re.search(message, record.getMessage())
    if extension == "png":
        assert read(tmp_path / "a.png").dtype == np.uint16


def test_floating_point_out_of_range(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    array = values(3, "f4")
    array[0, 0], array[0, 1] = -0.05, 1.08
    loaded = load_image(write(tmp_path / "a.tif", array))
    assert loaded.pixels.min() == 0 and loaded.pixels.max() == 1
    assert "a.tif: its values reach from -0.05 to 1.08 and are clipped" in caplog.text
    for value, message in ((37.0, "from .* to 37: it looks like HDR"), (-0.2, "HDR"), (np.nan, "NaN"), (np.inf, "NaN")):
        array[2, 3, 1] = value
        with pytest.raises(ImageError, match=rf"a\.tif .*{message}"):
            load_image(write(tmp_path / "a.tif", array))
        array[2, 3, 1] = 0


def test_transparency_out_of_range(tmp_path: Path) -> None:
    array = values(4, "f4")
    array[2, 3, 3] = 1.05
    alpha = load_image(write(tmp_path / "a.tif", array)).alpha
    assert alpha is not None and alpha.max() == 1
    for value, message in ((2.0, "HDR"), (np.nan, "NaN")):
        array[2, 3, 3] = value
        with pytest.raises(ImageError, match=rf"a\.tif .*{message}"):
            load_image(write(tmp_path / "a.tif", array))


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        ("u4", {}, "more than 16 bits"),
        ("i2", {}, "signed values"),
        ("f8", {}, "64-bit floating-point"),
        ("u2", {"photometric": "separated", "extrasamples": []}, "neither grey nor RGB"),
        ("u2", {"photometric": "cielab"}, "neither grey nor RGB"),
        ("u2", {"compression": "lzma"}, "compressed in a rare way"),
    ],
)
def test_pixels_of_other_kinds(tmp_path: Path, dtype: str, options: dict[str, Any], message: str) -> None:
    array = np.zeros((4, 5, 4 if "extrasamples" in options else 3), dtype)
    with pytest.raises(ImageError, match=rf"a\.tif .*{message}.*: (convert|save) it"):
        load_image(write(tmp_path / "a.tif", array, **options))


@pytest.mark.parametrize("library", ["tifffile", "imagecodecs"])
def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    options = {"compression": "lzw"} if library == "imagecodecs" else {}
    write(tmp_path / "a.tif", values(3), **options)
    for name in ("grey.png", "colour.png", "grey.tif"):
        write(tmp_path / name, values(1 if "grey" in name else 3))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImageError, match=rf"a\.tif has .* needs {library}: pip install tifffile imagecodecs"):
        load_image(tmp_path / "a.tif")
    for name in ("grey.png", "colour.png", "grey.tif"):  # these need no library
        loaded = load_image(tmp_path / name)
        assert loaded.bits == 16
        save_image(tmp_path / f"new {name}", loaded.pixels, loaded)


# ---------------------------------------------------------------- damage


def test_sizes_are_checked_before_decoding(tmp_path: Path) -> None:
    for name in ("a.tif", "a.png"):
        path = write(tmp_path / name, values(3))
        with pytest.raises(ImageError, match="31x23 pixels, more than 0 megapixels"):
            load_image(path, max_pixels=23 * 31 - 1)
        assert load_image(path, max_pixels=23 * 31).bits == 16


def test_claims_that_the_file_does_not_keep(tmp_path: Path) -> None:
    for tags, message in (
        ({"ImageWidth": 30000, "ImageLength": 30000}, "megapixels"),
        ({"ImageWidth": 3000, "ImageLength": 3000}, "damaged"),
        ({"StripByteCounts": 2**31}, "damaged.*ends too early"),
        ({"StripOffsets": 2**31}, "damaged.*ends too early"),
        ({"StripOffsets": 0}, "damaged.*missing"),
        ({"SamplesPerPixel": 1}, "damaged"),
        ({"ImageLength": 0}, "damaged"),
    ):
        path = with_tags(write(tmp_path / "a.tif", values(3)), **tags)
        with pytest.raises(ImageError, match=rf"a\.tif .*{message}"):
            load_image(path)
    tiled = with_tags(write(tmp_path / "a.tif", values(3), tile=(16, 16)), TileWidth=60000, TileLength=60000)
    with pytest.raises(ImageError, match="damaged"):
        load_image(tiled)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    data=st.data(),
    kind=st.sampled_from([("a.png", "u2", {}), ("a.tif", "u2", {"compression": "lzw", "predictor": 2})])
    | st.sampled_from([("a.tif", "f4", {"compression": "deflate", "predictor": 3, "tile": (16, 16)})]),
)
def test_damaged_files_give_a_picture_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: tuple[str, str, dict[str, Any]]
) -> None:
    name, dtype, options = kind
    path = write(tmp_path_factory.mktemp("damage") / name, values(4, dtype, (19, 17)), **options)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        end = data.draw(st.sampled_from([min(400, len(content)), len(content)]))  # tags stand in front
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(1, len(content)))])
    try:
        loaded = load_image(path, max_pixels=10_000)
    except ImageError as error:
        assert path.name in str(error)
    else:
        assert loaded.pixels.shape[0] == 3 and bool(torch.isfinite(loaded.pixels).all())


# ---------------------------------------------------------------- the whole way


@pytest.mark.parametrize(
    ("name", "channels", "dtype"),
    [
        ("a.png", 3, "u2"),
        ("a.png", 4, "u2"),
        ("a.png", 1, "u2"),
        ("a.tif", 3, "u2"),
        ("a.tif", 3, "f4"),
        ("a.tif", 1, "f4"),
    ],
)
def test_strength_0_returns_the_same_pixels(
    tmp_path: Path, tiny_checkpoint: Path, name: str, channels: int, dtype: str
) -> None:
    array = values(channels, dtype)
    source, target = write(tmp_path / name, array), tmp_path / "out" / name
    assert (
        cli.main(["deblur", str(source), "-o", f"{tmp_path}/out/", "--strength", "0", "--model", str(tiny_checkpoint)])
        == 0
    )
    written = read(target)
    assert written.dtype == array.dtype and np.array_equal(written, array)
