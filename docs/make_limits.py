"""Makes the pictures of docs/limits.md anew: what the shipped weights do well, and where they fail.

    RDDM_DATA=COLLECTION python docs/make_limits.py

Photographs of `split=val` that may be passed on (docs/limits.md names author and licence of each), and drawings of our
own, are spoilt here and deblurred as `python -m rddm_core deblur` does by default. Writes docs/typical.jpg and
docs/limits.jpg. The figures in them are the PSNR of the whole picture against the original, before and after.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from rddm_core.checkpoint import default_checkpoint_path, load_checkpoint  # noqa: E402
from rddm_core.files import atomic_target  # noqa: E402
from rddm_core.images import load_image  # noqa: E402
from rddm_core.metrics import psnr_8bit  # noqa: E402
from rddm_core.networks.model import RDDM  # noqa: E402
from rddm_core.optics import Aperture, linear_to_srgb, render_defocus, srgb_to_linear  # noqa: E402
from rddm_core.pipeline import deblur  # noqa: E402

WINDOW = (192, 144)
SHOWN = (288, 216)
"""Width and height of the detail that is shown, in pixels of the photograph and of the sheet."""
LABEL = 24
QUALITY = 80
COLUMNS = ("input", "defocus map (white: out of focus)", "deblurred", "original")


@dataclass(frozen=True)
class Case:
    """One row of a sheet: how the original [3, H, W] is spoilt, and the left top corner (x, y) of the detail shown."""

    label: str
    original: Callable[[], Tensor]
    spoil: Callable[[Tensor], Tensor]
    corner: tuple[int, int]


def main() -> None:
    """Write both sheets."""
    model = load_checkpoint(default_checkpoint_path())
    for name, cases in (("typical", TYPICAL), ("limits", LIMITS)):
        rows = [row(model, number, case) for number, case in enumerate(cases, 1)]
        path = DOCS / f"{name}.jpg"
        with atomic_target(path) as partial:
            sheet(rows).save(partial, "JPEG", quality=QUALITY, optimize=True)
        print(f"{path.relative_to(DOCS.parent)}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


def row(model: RDDM, number: int, case: Case) -> Image.Image:
    """The details of one case side by side, under a line with its figures."""
    original = case.original()
    spoilt = case.spoil(original)
    result = deblur(model, spoilt[None])
    shown = (spoilt, result.defocus_map[0].expand(3, -1, -1), result.image[0], original)
    before, after = psnr_8bit(spoilt, original), psnr_8bit(result.image[0], original)
    label = f"{number}  {case.label}: {before:.1f} dB, deblurred {after:.1f} dB"
    print(label, flush=True)
    strip = Image.new("RGB", (SHOWN[0] * len(shown), LABEL + SHOWN[1]), "white")
    write(strip, (4, 3), label)
    for i, picture in enumerate(shown):
        detail = to_image(picture).crop((*case.corner, case.corner[0] + WINDOW[0], case.corner[1] + WINDOW[1]))
        strip.paste(detail.resize(SHOWN, Image.Resampling.BICUBIC), (i * SHOWN[0], LABEL))
    return strip


def sheet(rows: Sequence[Image.Image]) -> Image.Image:
    """Rows below each other, under the names of the columns."""
    page = Image.new("RGB", (rows[0].width, LABEL + sum(r.height for r in rows)), "white")
    for i, name in enumerate(COLUMNS):
        write(page, (i * SHOWN[0] + 4, 3), name)
    for i, strip in enumerate(rows):
        page.paste(strip, (0, LABEL + i * strip.height))
    return page


def write(image: Image.Image, place: tuple[int, int], text: str) -> None:
    """Black text in Pillow's own font."""
    ImageDraw.Draw(image).text(place, text, fill="black", font=ImageFont.load_default(size=15))


def to_image(picture: Tensor) -> Image.Image:
    """[3, H, W] in 0..1 as 8-bit RGB."""
    return Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


# ---------------------------------------------------------------- originals


def photo(name: str) -> Callable[[], Tensor]:
    """A photograph of the collection."""

    def read() -> Tensor:
        root = os.environ.get("RDDM_DATA")
        if not root:
            raise SystemExit("say where the image collection is: RDDM_DATA=/path/to/it")
        return load_image(Path(root) / "sharp" / f"{name}.jpg").pixels

    return read


def star(size: int = 512, spokes: int = 36) -> Tensor:
    """A Siemens star: spokes that grow finer towards the centre."""
    axis = torch.arange(size) - (size - 1) / 2
    distance = torch.hypot(axis[:, None], axis[None])
    wave = torch.sin(torch.atan2(axis[:, None], axis[None]) * spokes) * distance * 2 / spokes  # smooth at its edges
    value = torch.where(distance < 0.47 * size, 0.5 + 0.4 * (wave * 2).clamp(-1, 1), 0.5)
    return value.expand(3, -1, -1).contiguous()


def lights(width: int = 640, height: int = 480) -> Tensor:
    """Points of coloured light before a dark background."""
    generator = torch.Generator().manual_seed(5)
    picture = torch.linspace(0.03, 0.12, height)[None, :, None].expand(3, -1, width).clone()
    for _ in range(90):
        x, y = (int(torch.randint(12, n - 12, (1,), generator=generator)) for n in (width, height))
        colour = 0.75 + 0.25 * torch.rand(3, generator=generator)
        picture[:, y : y + 3, x : x + 3] = colour[:, None, None]
    return picture


# ---------------------------------------------------------------- what spoils them


def disc(radius: float, **lens: float) -> Callable[[Tensor], Tensor]:
    """The whole picture out of focus by a disc of `radius` pixels."""
    return lambda x: render_defocus(x, torch.full(x.shape[-2:], radius), **lens)  # type: ignore[arg-type]


def noisy(x: Tensor, deviation: float = 0.05) -> Tensor:
    """Gaussian noise."""
    return (x + deviation * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Saved as a JPEG and read again."""
    buffer = io.BytesIO()
    to_image(x).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255


def moved(x: Tensor, pixels: int) -> Tensor:
    """The camera moved sideways by an odd number of pixels: a mean over a line, in linear light."""
    padded = F.pad(srgb_to_linear(x)[None], (pixels // 2, pixels // 2, 0, 0), mode="replicate")
    return linear_to_srgb(F.avg_pool2d(padded, (1, pixels), stride=1)[0].clamp(0, 1))


def cat_eyes(x: Tensor) -> Tensor:
    """Out of focus by 7 pixels, lights far brighter than white, spots cut by the rim of the lens."""
    lens = Aperture(vignette=0.5, vignette_angle=0.6, rim=0.8)
    return render_defocus(x, torch.full(x.shape[-2:], 7.0), lens, highlight_gain=12.0)


SIGN = photo("popos_kait-herzog-8242")
TYPICAL = (
    Case("sign, disc of 2.5 pixels", SIGN, disc(2.5), (186, 396)),
    Case("flowers, disc of 3 pixels", photo("cq100_tulip_field"), disc(3.0), (350, 230)),
)
LIMITS = (
    Case("letters, disc of 6 pixels", SIGN, disc(6.0), (186, 396)),
    Case("disc of 16 pixels", photo("cq100_floating_market"), disc(16.0), (340, 300)),
    Case("moved sideways by 15 pixels", photo("cq100_motocross"), lambda x: moved(x, 15), (170, 220)),
    Case("disc of 3 pixels, strong noise", photo("cq100_buggy"), lambda x: noisy(disc(3.0)(x)), (40, 250)),
    Case(
        "disc of 3 pixels, JPEG of quality 12",
        photo("cq100_rescue_helicopter"),
        lambda x: jpeg(disc(3.0)(x), 12),
        (320, 190),
    ),
    Case("fine pattern, disc of 6 pixels", star, disc(6.0), (160, 184)),
    Case("lights, disc of 7 pixels", lights, cat_eyes, (200, 180)),
)

if __name__ == "__main__":
    main()
