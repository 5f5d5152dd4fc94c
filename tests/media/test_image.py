"""Pictures come out upright, small, RGB and without a word about who took them where."""

import io

import numpy as np
import pytest
from PIL import Image

from omni_app.errors import MediaRejected
from tests.media import makers

GPS, ORIENTATION, MAKE = 0x8825, 0x0112, 0x010F
pytestmark = pytest.mark.anyio


def _shown(part) -> Image.Image:
    image = Image.open(part.path)
    image.load()
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
async def test_each_kind_becomes_a_jpeg(take, kind: str) -> None:
    part = await take(makers.picture(makers.field(80, 60), kind), "wrong.mp3")
    image = _shown(part)
    assert (part.kind, part.mime, part.width, part.height) == ("image", "image/jpeg", 80, 60)
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (80, 60))
    assert np.allclose(image.getpixel((40, 30)), (200, 30, 30), atol=4)


async def test_large_pictures_shrink_to_2048(take) -> None:
    part = await take(makers.picture(makers.field(5000, 1000), "JPEG"))
    assert (part.width, part.height) == (2048, 410)


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_pictures_come_out_upright(take, orientation: int) -> None:
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("red", (0, 0, 32, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the opposite of what a viewer does
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    part = await take(makers.picture(stored, "JPEG", exif=exif, quality=95))
    image = _shown(part)
    assert image.size == (64, 32)
    assert np.allclose(image.getpixel((8, 4)), (254, 0, 0), atol=8)
    assert np.allclose(image.getpixel((56, 28)), (255, 255, 255), atol=8)


async def test_nothing_tells_where_a_picture_was_taken(take) -> None:
    exif = Image.Exif()
    exif[MAKE] = "SecretCamera"
    exif[GPS] = {1: "N", 2: (52.0, 31.0, 12.0)}
    raw = makers.picture(makers.field(), "JPEG", exif=exif, comment=b"SecretComment", icc_profile=b"SecretProfile")
    assert raw.count(b"Secret") == 3
    part = await take(raw)
    assert b"Secret" not in part.path.read_bytes()
    image = _shown(part)
    assert not image.getexif()
    assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


async def test_damaged_exif_is_no_reason_to_refuse(take) -> None:
    part = await take(makers.picture(makers.field(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert part.kind == "image"


@pytest.mark.parametrize(("ink", "ground"), [((0, 0, 0), (255, 255, 255)), ((255, 255, 255), (0, 0, 0))])
async def test_see_through_pictures_get_a_ground_that_shows_them(take, ink, ground) -> None:
    image = Image.new("RGBA", (60, 40), (9, 9, 9, 0))
    image.paste((*ink, 255), (20, 10, 40, 30))
    shown = _shown(await take(makers.picture(image, "PNG")))
    assert np.allclose(shown.getpixel((30, 20)), ink, atol=6)
    assert np.allclose(shown.getpixel((3, 3)), ground, atol=6)


async def test_sixteen_bit_pictures_keep_their_range(take) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64, dtype=np.uint16), (16, 1))
    grey = np.asarray(_shown(await take(makers.picture(Image.fromarray(ramp), "PNG"))).convert("L"))[8]
    assert grey[0] < 10
    assert grey[-1] > 245
    assert 110 < grey[32] < 145


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGBA"])
async def test_every_mode_is_read(take, mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    part = await take(makers.picture(makers.noise().convert(mode), kind))
    assert _shown(part).mode == "RGB"


async def test_of_an_animation_the_first_picture_is_used_and_said_so(take) -> None:
    out = io.BytesIO()
    red, blue = makers.field(color="red"), makers.field(color="blue")
    red.save(out, "GIF", save_all=True, append_images=[blue])
    part = await take(out.getvalue())
    assert np.allclose(_shown(part).getpixel((5, 5)), (254, 0, 0), atol=4)
    assert "first picture" in part.note


async def test_a_picture_at_the_limit_is_taken_and_one_above_is_not(take, limits) -> None:
    await take(makers.picture(Image.new("1", (10_000, 5_000)), "PNG"))
    with pytest.raises(MediaRejected, match=r"10000 x 5001 = 50 megapixels; pictures may have at most 50"):
        await take(makers.picture(Image.new("1", (10_000, 5_001)), "PNG"))
