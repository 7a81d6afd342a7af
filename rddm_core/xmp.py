"""What an XMP packet says about the photograph: title, caption, keywords, author, rights, place, rating.

That is kept, in a new packet. The rest would be wrong of a new file: the settings of a raw converter and the history of
edits were applied to the old pixels, and entries about orientation, previews, depth maps, gain maps or a film clip
describe parts of the old file.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

MAX_BYTES = 4_000_000
"""A longer packet is not read."""
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_META = "adobe:ns:meta/"
_HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
_TAIL = '<?xpacket end="w"?>'

# Prefix: namespace, and the names in it that are kept, or None for all.
_KEPT: dict[str, tuple[str, frozenset[str] | None]] = {
    "dc": (
        "http://purl.org/dc/elements/1.1/",
        frozenset("title description creator contributor publisher rights subject date coverage source".split()),
    ),
    "xmp": ("http://ns.adobe.com/xap/1.0/", frozenset("Rating Label CreateDate".split())),
    "xmpRights": ("http://ns.adobe.com/xap/1.0/rights/", None),
    "photoshop": (
        "http://ns.adobe.com/photoshop/1.0/",
        frozenset(
            "AuthorsPosition CaptionWriter Category City Country Credit DateCreated Headline Instructions Source State "
            "SupplementalCategories TransmissionReference Urgency".split()
        ),
    ),
    "Iptc4xmpCore": ("http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", None),
    "Iptc4xmpExt": (  # without ImageRegion, whose coordinates are those of the old file
        "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
        frozenset(
            "AddlModelInfo ArtworkOrObject DigImageGUID DigitalSourceType Event EventId Genre LocationCreated "
            "LocationShown ModelAge OrganisationInImageCode OrganisationInImageName PersonInImage "
            "PersonInImageWDetails".split()
        ),
    ),
    "plus": ("http://ns.useplus.org/ldf/xmp/1.0/", None),
    "cc": ("http://creativecommons.org/ns#", None),
    "lr": ("http://ns.adobe.com/lightroom/1.0/", frozenset(["hierarchicalSubject"])),
    "digiKam": ("http://www.digikam.org/ns/1.0/", frozenset(["TagsList"])),
}
_NAMES = dict(_KEPT.values())

for _prefix, (_namespace, _) in _KEPT.items():  # the usual prefixes, which some readers look for
    ET.register_namespace(_prefix, _namespace)
ET.register_namespace("rdf", _RDF)
ET.register_namespace("x", _META)


class XmpError(ValueError):
    """A packet that cannot be read; the message says why."""


def about_the_photograph(packet: bytes) -> bytes | None:
    """A packet with what `packet` says about the photograph, or None if that is nothing.

    Raises XmpError for a packet that is too long, damaged, or declares entities, which XMP does not allow and which
    could grow without bound.
    """
    if len(packet) > MAX_BYTES:
        raise XmpError(f"it has more than {MAX_BYTES / 1e6:.0f} MB")
    try:
        text = packet.decode("utf-8").strip("\0 \t\r\n\ufeff")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise XmpError("it declares entities")
        root = ET.fromstring(text)
        meta = ET.Element(f"{{{_META}}}xmpmeta")
        kept = ET.SubElement(meta, f"{{{_RDF}}}RDF")
        given = root if root.tag == kept.tag else root.find(kept.tag)
        for description in () if given is None else given.findall(f"{{{_RDF}}}Description"):
            _keep(description, kept)
        return f"{_HEAD}{ET.tostring(meta, encoding='unicode')}{_TAIL}".encode() if len(kept) else None
    except XmpError:
        raise
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise XmpError(str(error) or type(error).__name__) from error


def _keep(description: ET.Element, into: ET.Element) -> None:
    """Add a description with what is kept of this one."""
    attributes = {name: value for name, value in description.items() if _is_kept(name)}
    children = [child for child in description if _is_kept(child.tag)]
    if attributes or children:
        new = ET.SubElement(into, description.tag, {f"{{{_RDF}}}about": "", **attributes})
        new.extend(children)


def _is_kept(name: str) -> bool:
    """Of `{namespace}name`."""
    namespace, _, local = name.removeprefix("{").partition("}")
    names = _NAMES.get(namespace, frozenset())
    return names is None or local in names
