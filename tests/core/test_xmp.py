"""What of an XMP packet goes on into the result, in every format, and what does not."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from PIL import Image

from rddm_core.images import LoadedImage, load_image, save_image
from rddm_core.xmp import MAX_BYTES, XmpError, about_the_photograph

PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" xmlns:GCamera="http://ns.google.com/photos/1.0/camera/"
 xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/" xmlns:Iptc4xmpCore="http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
 xmp:Rating="4" xmp:CreatorTool="Lightroom" tiff:Orientation="6" crs:Exposure2012="+1.5" dc:format="image/jpeg"
 photoshop:City="Gdańsk" photoshop:ColorMode="3" GCamera:MotionPhoto="1">
 <dc:title><rdf:Alt><rdf:li xml:lang="x-default">Boats &amp; gulls</rdf:li></rdf:Alt></dc:title>
 <dc:subject><rdf:Bag><rdf:li>harbour</rdf:li><rdf:li>鷗</rdf:li></rdf:Bag></dc:subject>
 <Iptc4xmpCore:CreatorContactInfo rdf:parseType="Resource"><Iptc4xmpCore:CiEmailWork>a@b.org</Iptc4xmpCore:CiEmailWork>
 </Iptc4xmpCore:CreatorContactInfo>
 <ext:PersonInImage xmlns:ext="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><rdf:Bag><rdf:li>Ada</rdf:li></rdf:Bag>
 </ext:PersonInImage><ext:ImageRegion xmlns:ext="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">a corner</ext:ImageRegion>
 <xmpMM:History><rdf:Seq><rdf:li dc:title="an edit"/></rdf:Seq></xmpMM:History>
 </rdf:Description></rdf:RDF></x:xmpmeta>
                  <?xpacket end="w"?>""".encode()
KEPT = ("Gdańsk", "Ada", "Boats &amp; gulls", "harbour", "鷗", "a@b.org", 'xmp:Rating="4"', 'xml:lang="x-default"')
LEFT = (
    *("Orientation", "a corner", "Exposure2012", "image/jpeg", "ColorMode", "MotionPhoto", "History"),
    *("an edit", "CreatorTool"),
)


def described(*, about: str = "") -> bytes:
    """A small packet."""
    rdf = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    return f'<rdf:RDF {rdf}><rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"{about}</rdf:RDF>'.encode()


def test_what_is_kept_and_what_is_left() -> None:
    kept = about_the_photograph(PACKET)
    assert kept is not None
    text = kept.decode()
    assert [part for part in KEPT if part not in text] == [] and [part for part in LEFT if part in text] == []
    assert text.startswith("<?xpacket begin=") and text.endswith('<?xpacket end="w"?>')
    assert about_the_photograph(kept) == kept, "read again, it says the same"
    assert re.findall(r"xmlns:ns\d", text) == [], "with the usual prefixes"
    assert about_the_photograph(PACKET + bytes(2000)) == kept, "padding does not matter"


@pytest.mark.parametrize(
    "packet",
    [
        described(about=' dc:format="image/png"/>'),
        described(about=' dc:format="image/png">text</rdf:Description>'),
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>',
        b"<a/>",
    ],
)
def test_nothing_about_the_photograph(packet: bytes) -> None:
    assert about_the_photograph(packet) is None


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b"", "no element"),
        (PACKET[:-200], "mismatched|unclosed|no element"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "entities"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"), "codec"),
        (PACKET.decode().encode("utf-16"), "codec"),
        (b"<a>" + b" " * MAX_BYTES + b"</a>", "more than 4 MB"),
        (described(about=f"><dc:title>{'<dc:a>' * 5000}{'</dc:a>' * 5000}</dc:title></rdf:Description>"), "recursion"),
    ],
)
def test_hostile_packets_are_refused(packet: bytes, message: str) -> None:
    with pytest.raises(XmpError, match=message):
        about_the_photograph(packet)


def jpeg(packet: bytes) -> bytes:
    """A JPEG with the packet in it, in its marker segment."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (90, 120, 30)).save(buffer, "JPEG")
    segment = b"http://ns.adobe.com/xap/1.0/\0" + packet
    return buffer.getvalue()[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + buffer.getvalue()[2:]


def in_file(path: Path) -> bytes:
    """The packet as Pillow finds it."""
    with Image.open(path) as image:
        image.load()
        packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    assert packet is not None
    return packet.encode() if isinstance(packet, str) else packet


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("exif", [True, False])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_it_goes_from_file_to_file(tmp_path: Path, name: str, exif: bool, bits: int) -> None:
    if bits == 16:
        pytest.importorskip("tifffile")
    (tmp_path / "source.jpg").write_bytes(jpeg(PACKET))
    source = load_image(tmp_path / "source.jpg")
    assert source.xmp == about_the_photograph(PACKET)
    artist = Image.Exif()
    artist[0x013B] = "Ansel"
    like = LoadedImage(source.pixels, exif=artist.tobytes() if exif else None, bits=bits, xmp=source.xmp)
    save_image(tmp_path / name, source.pixels, like)
    again = load_image(tmp_path / name)
    assert again.xmp == source.xmp and (again.exif is not None) == exif
    if again.bits == 8:
        assert in_file(tmp_path / name) == source.xmp
    ET.fromstring(again.xmp)
    if exif:
        with Image.open(tmp_path / name) as image:
            assert image.getexif()[0x013B] == "Ansel"


@pytest.mark.parametrize(
    ("packet", "name", "message"),
    [
        (described(about=f' dc:title="{"x" * 66000}"/>'), "a.jpg", "XMP data are too long for JPEG"),
        (PACKET, "a.bmp", "BMP holds no EXIF or XMP data"),
    ],
)
def test_what_a_format_cannot_hold_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, packet: bytes, name: str, message: str
) -> None:
    pixels = torch.rand(3, 4, 4)
    with caplog.at_level(logging.WARNING):
        save_image(tmp_path / name, pixels, LoadedImage(pixels, xmp=about_the_photograph(packet)))
    assert message in caplog.text and load_image(tmp_path / name).xmp is None


@pytest.mark.parametrize("damage", [lambda p: p[:300], lambda p: b"\xff\xfe" + p])
def test_damaged_xmp_costs_the_xmp_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(damage(PACKET)))
    with caplog.at_level(logging.WARNING):
        assert load_image(tmp_path / "a.jpg").xmp is None
    assert "a.jpg: its XMP data are damaged (" in caplog.text
