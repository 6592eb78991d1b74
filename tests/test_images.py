"""Every odd file becomes an upright RGB image, or one clear line."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from boxwright.config import UserError
from boxwright.images import IMAGE_SUFFIXES, displayed, fit, image_size, open_image
from helpers.image_files import noise

RED = (200, 30, 40)


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def flat(mode: str) -> Image.Image:
    image = Image.new("RGB", (12, 8), RED)
    return image.quantize() if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGB"), ("a.jpg", "CMYK"), ("a.png", "P"), ("a.gif", "P"), ("a.png", "RGBA"), ("a.tif", "CMYK"),
     ("a.jpg", "YCbCr"), ("a.webp", "RGB"), ("a.bmp", "RGB")],
)  # fmt: skip
def test_every_colour_mode_keeps_its_colour(tmp_path: Path, name: str, mode: str) -> None:
    image = open_image(saved(tmp_path, flat(mode), name))
    assert image.mode == "RGB"
    assert image.size == (12, 8)
    np.testing.assert_allclose(np.asarray(image)[4, 6], RED, atol=6)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_is_the_same_in_all_channels(tmp_path: Path, mode: str) -> None:
    image = np.asarray(open_image(saved(tmp_path, Image.new("RGB", (12, 8), "white").convert(mode), "a.png")))
    assert image.shape == (8, 12, 3)
    assert (image == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        clear = Image.new("P", (5, 5), 0)
        clear.putpalette([10, 20, 30, 40, 50, 60])
        path = saved(tmp_path, clear, "a.png", transparency=0)
    else:
        path = saved(tmp_path, Image.new(mode, (5, 5), (10, 20, 30, 0) if mode == "RGBA" else (10, 0)), "a.png")
    assert (np.asarray(open_image(path)) == 255).all()


def test_half_transparent_is_mixed_with_white(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("RGBA", (5, 5), (0, 0, 0, 128)), "a.png")
    np.testing.assert_allclose(np.asarray(open_image(path)), 127, atol=1)


def test_sixteen_bit_grey_spans_the_whole_range(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    image = np.asarray(open_image(saved(tmp_path, Image.fromarray(values), "a.png")))
    assert image[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2"])
def test_fewer_bits_in_sixteen_are_as_bright_as_in_eight(tmp_path: Path, bits: int, name: str) -> None:
    levels_HW = np.linspace(0, 1, 48).reshape(6, 8)
    values_HW = (levels_HW * (2**bits - 1)).round().astype(np.uint16)
    image = np.asarray(open_image(saved(tmp_path, Image.fromarray(values_HW), name)))
    np.testing.assert_allclose(image[..., 1], levels_HW * 255, atol=1)


def test_a_dark_image_of_a_camera_keeps_its_range(tmp_path: Path) -> None:
    values_HW = np.array([[0, 1200, 2047]], np.uint16)  # half of 12 bits
    image = np.asarray(open_image(saved(tmp_path, Image.fromarray(values_HW), "a.png")))
    assert image[0, :, 0].tolist() == [0, 75, 127]


def deep_png(path: Path, pixels: list[tuple[int, ...]]) -> Path:
    """One row of pixels of 3 or 4 channels, 16 bits each, which Pillow can't write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + b"".join(struct.pack(f">{len(pixel)}H", *pixel) for pixel in pixels)
    header = struct.pack(">IIBBBBB", len(pixels), 1, 16, 2 if len(pixels[0]) == 3 else 6, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    )
    return path


def test_sixteen_bit_rgb_png(tmp_path: Path) -> None:
    path = deep_png(tmp_path / "a.png", [(65535, 32896, 0)])
    assert np.asarray(open_image(path))[0, 0].tolist() == [255, 128, 0]


def test_twelve_bit_colour_in_sixteen_is_no_black_picture(tmp_path: Path) -> None:
    path = deep_png(tmp_path / "a.png", [(4095, 2048, 0), (0, 0, 4095)])
    for image in (open_image(path), displayed(Image.open(path))):
        assert np.asarray(image)[0].tolist() == [[255, 136, 0], [0, 0, 255]]
    clear = deep_png(tmp_path / "b.png", [(4095, 2048, 0, 65535), (4095, 0, 0, 0)])
    assert np.asarray(open_image(clear))[0].tolist() == [[255, 136, 0], [255, 255, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 127.5, 255.0], [0, 128, 255]), ([-1.0, 0.0, 1.0], [0, 128, 255]),
     ([0.0, 65535.0, np.nan], [0, 255, 0]), ([7.0, 7.0, 7.0], [7, 7, 7]), ([-3.0, -3.0, -3.0], [0, 0, 0])],
)  # fmt: skip
def test_float_tiff(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    image = np.asarray(open_image(saved(tmp_path, Image.fromarray(np.array([values], np.float32)), "a.tif")))
    assert image[0, :, 0].tolist() == expected


def test_integer_tiff(tmp_path: Path) -> None:
    image = np.asarray(open_image(saved(tmp_path, Image.fromarray(np.array([[0, 1, 255]], np.int32)), "a.tif")))
    assert image[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, noise(48, 32), name, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert open_image(path).size == expected.size == image_size(path)
    np.testing.assert_array_equal(np.asarray(open_image(path)), np.asarray(expected))


HEIC = frozenset({".heic", ".heif", ".hif"})


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - HEIC))
def test_every_ending_is_read(tmp_path: Path, suffix: str) -> None:
    Image.init()
    kind = Image.registered_extensions().get(suffix, "QOI" if suffix == ".qoi" else "JPEG")
    if suffix in (".avif", ".avifs") and kind != "AVIF":
        pytest.skip("this Pillow has no AVIF")
    mode = {".pgm": "L", ".pbm": "1", ".pfm": "F"}.get(suffix, "RGB")
    image = Image.new("RGB", (32, 24), RED).convert(mode)
    path = tmp_path / f"a{suffix}"
    image.save(path, format="PPM" if kind == "PPM" else kind)
    read = open_image(path)
    assert (read.mode, read.size, image_size(path)) == ("RGB", (32, 24), (32, 24))
    if mode == "RGB":
        np.testing.assert_allclose(np.asarray(read)[12, 16], RED, atol=8)


def test_heic_without_its_plugin_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "a.jpg"  # phones and chats rename them
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    for read in (open_image, image_size):
        with pytest.raises(UserError, match=r"HEIC needs pillow-heif, .* python -m pip install pillow-heif"):
            read(path)


def test_heic(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    path = saved(tmp_path, Image.new("RGB", (64, 48), RED), "a.heic")
    np.testing.assert_allclose(np.asarray(open_image(path))[20, 20], RED, atol=8)


def test_image_size_decodes_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, noise(300, 200), "a.png")
    path.write_bytes(path.read_bytes()[:300])
    assert image_size(path) == (300, 200)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.tif", "a.bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, name: str, share: float) -> None:
    path = saved(tmp_path, noise(200, 150), name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"cannot be read as an image: .+\.$") as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"hello", "not an image"), (None, "missing")])
def test_what_is_no_image(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    for read in (open_image, image_size):
        with pytest.raises(UserError, match=reason):
            read(path)


def test_a_panorama_passes_and_the_guard_of_pillow_is_left_as_it_was(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("L", (20_000, 9_500), 99), "wide.png")  # 190 megapixels: Pillow alone refuses
    limit = Image.MAX_IMAGE_PIXELS
    assert image_size(path) == (20_000, 9_500)
    canvas_SS3, size = fit(open_image(path, 64), 64)
    assert size == (30, 64)
    assert (canvas_SS3[:30] == 99).all()
    assert limit == Image.MAX_IMAGE_PIXELS


def test_an_image_over_the_limit_is_refused_unless_its_jpeg_can_be_reduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boxwright.images.MAX_PIXELS", 100 * 100)
    png, jpeg = (saved(tmp_path, Image.new("RGB", (400, 300)), name) for name in ("a.png", "a.jpg"))
    with pytest.raises(UserError, match="400 x 300"):
        open_image(png, 32)
    assert open_image(jpeg, 32).size == (100, 75)


def test_reduced_decoding_changes_little(tmp_path: Path) -> None:
    path = saved(tmp_path, noise(1024, 700), "a.jpg", quality=95)
    assert open_image(path, 128).size == (256, 175)
    assert open_image(path, 300).size == (1024, 700)
    (full, size), (reduced, reduced_size) = fit(open_image(path), 128), fit(open_image(path, 128), 128)
    assert size == reduced_size
    assert np.abs(full.astype(int) - reduced).mean() < 1


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), side=st.integers(1, 200))
def test_fit_touches_the_canvas_and_keeps_the_aspect(width: int, height: int, side: int) -> None:
    canvas_SS3, (new_height, new_width) = fit(Image.new("RGB", (width, height), "white"), side)
    assert canvas_SS3.shape == (side, side, 3)
    assert canvas_SS3.dtype == np.uint8
    assert max(new_height, new_width) == side
    assert min(new_height, new_width) >= 1
    scale = side / max(width, height)
    assert abs(new_width - max(1, width * scale)) <= 0.5
    assert abs(new_height - max(1, height * scale)) <= 0.5
    assert (canvas_SS3[:new_height, :new_width] == 255).all()
    assert canvas_SS3.sum() == 3 * 255 * new_height * new_width


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_fit_of_a_line_and_a_pixel(size: tuple[int, int]) -> None:
    canvas_SS3, (height, width) = fit(Image.new("RGB", size, RED), 32)
    assert (canvas_SS3[:height, :width] == RED).all()
    assert height >= 1
    assert width >= 1


def test_an_untouched_image_is_not_resampled() -> None:
    image = noise(32, 20)
    np.testing.assert_array_equal(fit(image, 32)[0][:20], np.asarray(image))


def test_open_image_from_many_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    paths = [saved(tmp_path, noise(30, 20, seed), f"{seed}.jpg") for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = [np.asarray(image) for image in pool.map(open_image, paths * 4)]
    for path, image in zip(paths * 4, together, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(path.read_bytes()))), image)
