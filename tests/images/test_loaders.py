"""Each loader gives the pixels of its library bit for bit, on plain and on odd files, small and large, together and alone."""

import io
import sys

import cv2
import keras
import numpy as np
import pytest
import skimage.color
import skimage.io
import skimage.transform
import tensorflow as tf
from keras.src.utils.image_dataset_utils import _load_image_tf
from PIL import Image

from batchverify.config import LOADER_RESIZES, ModelConfig
from batchverify.errors import PreflightError
from batchverify.images.decode import UndecodedImage, decode, decode_or_defer
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.images.loaders import _PILLOW_FILTERS, decide_loading, make_loader
from batchverify.model.preprocessing import Preprocessing
from batchverify.schema import ImageTraits
from tests.support.outcomes import succeeded

SIZES = [(24, 36), (150, 170)]  # Smaller and larger than the pictures; height and width.


def picture(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 4), np.uint8))
    return coarse.resize((93, 71), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, form: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    "jpeg": encoded(picture(), "JPEG", quality=85),
    "progressive": encoded(picture(), "JPEG", progressive=True),
    "no subsampling": encoded(picture(), "JPEG", subsampling=0),
    "grey jpeg": encoded(picture("L"), "JPEG"),
    "cmyk": encoded(picture("CMYK"), "JPEG"),
    "png": encoded(picture(), "PNG"),
    "alpha": encoded(picture("RGBA"), "PNG"),
    "grey": encoded(picture("L"), "PNG"),
    "grey alpha": encoded(picture("LA"), "PNG"),
    "palette": encoded(picture().quantize(40), "PNG"),
    "palette alpha": encoded(picture().quantize(40), "PNG", transparency=3),
    "bits": encoded(picture("1"), "PNG"),
    "16 bits": encoded(Image.fromarray(np.asarray(picture("L")).astype(np.uint16) * 200), "PNG"),
    "bmp": encoded(picture(), "BMP"),
    **{f"turned {number}": encoded(picture(), "JPEG", exif=turned(number)) for number in range(1, 9)},
}


def loaded(data: bytes, size: tuple[int, int], channels: int = 3, fit: str = "stretch", **options):
    loader = make_loader(decide_loading(ModelConfig(**options)))
    return decode(data, Layout(*size, channels, loader=loader, fit=fit))


def same(found, expected) -> None:
    np.testing.assert_array_equal(succeeded(found), expected.reshape(found.shape))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("method", LOADER_RESIZES["tf"])
def test_tf_gives_what_decode_image_and_resize_give(method, channels):
    name, _, antialias = method.partition("-")
    for label, data in FILES.items():
        if channels == 1 and label in ("cmyk", "bmp"):
            continue  # TensorFlow decodes neither to one channel.
        pixels = tf.io.decode_image(data, channels=channels, expand_animations=False)
        for size in SIZES:
            expected = tf.image.resize(pixels, size, method=name, antialias=bool(antialias)).numpy()
            same(loaded(data, size, channels, resize=method), expected)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("method", ["bilinear", "nearest", "area"])
def test_keras_dataset_gives_what_image_dataset_from_directory_gives(method, fit, tmp_path):
    for label, data in FILES.items():
        (tmp_path / label).write_bytes(data)
        for size in SIZES:
            expected = _load_image_tf(
                str(tmp_path / label), size, 3, method, "channels_last",
                crop_to_aspect_ratio=fit == "crop", pad_to_aspect_ratio=fit == "pad",
            )  # fmt: skip
            same(loaded(data, size, fit=fit, loader="keras-dataset", resize=method), expected.numpy())


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
@pytest.mark.parametrize("method", LOADER_RESIZES["keras-load-img"])
def test_keras_load_img_gives_what_load_img_gives(method, fit, channels):
    color = "rgb" if channels == 3 else "grayscale"
    for data in FILES.values():
        for size in SIZES:
            image = keras.utils.load_img(io.BytesIO(data), color, size, method, keep_aspect_ratio=fit == "crop")
            same(loaded(data, size, channels, fit, loader="keras-load-img", resize=method), keras.utils.img_to_array(image))


def test_keras_generator_gives_what_flow_from_directory_gives(tmp_path):
    (tmp_path / "class").mkdir()
    for label, data in FILES.items():
        (tmp_path / "class" / f"{label}.png").write_bytes(data)
    generator = keras.src.legacy.preprocessing.image.ImageDataGenerator()
    flow = generator.flow_from_directory(str(tmp_path), SIZES[0], batch_size=len(FILES), shuffle=False, class_mode=None)
    for name, expected in zip(flow.filenames, next(flow), strict=True):
        same(loaded((tmp_path / name).read_bytes(), SIZES[0], loader="keras-generator"), expected)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(("loader", "method"), [("pillow", "bicubic"), ("pillow", "lanczos"), ("torchvision", "bilinear")])
def test_pillow_gives_what_convert_and_resize_give(loader, method, channels):
    for data in FILES.values():
        for height, width in SIZES:
            image = Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")
            expected = np.asarray(image.resize((width, height), _PILLOW_FILTERS[method]))
            options = {} if (loader, method) != ("pillow", "lanczos") else {"resize": method}
            same(loaded(data, (height, width), channels, loader=loader, **options), expected)


OPENCV = {
    "bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA,
    "lanczos4": cv2.INTER_LANCZOS4,
}  # fmt: skip


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("method", LOADER_RESIZES["opencv"])
def test_opencv_gives_what_imread_and_resize_give(method, channels):
    for data in FILES.values():
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        for height, width in SIZES:
            expected = cv2.resize(pixels, (width, height), interpolation=OPENCV[method])
            expected = expected[..., ::-1] if channels == 3 else expected
            same(loaded(data, (height, width), channels, loader="opencv", resize=method), expected)


def test_opencv_means_bgr_unless_another_order_is_asked_for():
    assert decide_loading(ModelConfig(loader="opencv")).color == "bgr"
    assert decide_loading(ModelConfig()).color == "rgb"


@pytest.mark.parametrize(("method", "order"), [("bilinear", 1), ("nearest", 0), ("bicubic", 3)])
def test_skimage_gives_what_imread_and_resize_give(method, order):
    for label, data in FILES.items():
        if label in ("cmyk", "bits"):
            continue  # scikit-image gives four channels, and truth values.
        pixels = skimage.io.imread(io.BytesIO(data))
        pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 2 else pixels
        pixels = skimage.color.gray2rgb(pixels) if pixels.ndim == 2 else pixels[..., :3]
        for size in SIZES:
            expected = skimage.transform.resize(pixels, size, order=order).astype(np.float32)
            same(loaded(data, size, loader="skimage", resize=method), expected)
            grey = skimage.transform.resize(skimage.color.rgb2gray(pixels), size, order=order).astype(np.float32)
            if label not in ("grey", "grey jpeg", "grey alpha", "16 bits"):
                same(loaded(data, size, 1, loader="skimage", resize=method), grey)


# One rule changed


@pytest.mark.parametrize("loader", ["tf", "keras-load-img", "pillow", "opencv", "skimage", "batchverify"])
def test_orientation_turns_every_loaders_pixels_upright_or_leaves_them(loader):
    upright = loaded(FILES["turned 1"], (71, 93), loader=loader, resize="nearest").astype(float)
    for number in range(1, 9):
        data = FILES[f"turned {number}"]
        size = (71, 93) if number < 5 else (93, 71)
        applied = loaded(data, size, loader=loader, resize="nearest", orientation="apply").astype(float)
        ignored = loaded(data, (71, 93), loader=loader, resize="nearest", orientation="ignore").astype(float)
        same(ignored, upright)
        back = Image.fromarray(np.arange(71 * 93, dtype=np.int32).reshape(71, 93))
        file = io.BytesIO()
        back.save(file, "TIFF", tiffinfo={274: number})
        places = np.asarray(keras_upright(Image.open(file)))
        same(applied, upright.reshape(-1, 3)[places].reshape(applied.shape))


@pytest.mark.parametrize("loader", ["tf", "keras-dataset", "opencv", "skimage", "batchverify"])
def test_orientation_turns_tiff_files_upright_or_leaves_them(loader):
    stored = loaded(encoded(picture(), "TIFF"), (71, 93), loader=loader, resize="nearest")
    for number in range(1, 9):
        tiff, png = (encoded(picture(), form, exif=turned(number)) for form in ("TIFF", "PNG"))
        size = (71, 93) if number < 5 else (93, 71)
        same(loaded(tiff, (71, 93), loader=loader, resize="nearest", orientation="ignore"), succeeded(stored))
        found = loaded(tiff, size, loader=loader, resize="nearest", orientation="apply")
        same(found, succeeded(loaded(png, size, loader="batchverify", resize="nearest")))
        layout = Layout(8, 8, loader=make_loader(decide_loading(ModelConfig(loader=loader))))
        expected_traits = ImageTraits.TURNED if number > 1 else ImageTraits.NONE
        assert decode_or_defer(tiff, layout, 10**6, defer=False).traits is expected_traits


@pytest.mark.parametrize("loader", ["pillow", "keras-load-img"])
def test_libraries_that_read_with_pillow_get_tiff_files_upright_as_it_gives_them(loader):
    for number in range(1, 9):
        data, size = encoded(picture(), "TIFF", exif=turned(number)), (71, 93) if number < 5 else (93, 71)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        for orientation in (None, "apply"):
            same(loaded(data, size, loader=loader, resize="nearest", orientation=orientation), expected)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("loader", ["tf", "keras-dataset", "batchverify"])
def test_16_bits_of_a_tiff_file_are_scaled_as_those_of_a_png_file(loader, channels):
    grey = Image.fromarray(np.asarray(picture("L")).astype(np.uint16) * 200)
    found, expected = (loaded(encoded(grey, form), (71, 93), channels, loader=loader) for form in ("TIFF", "PNG"))
    same(found, succeeded(expected))


def test_a_broken_block_of_exif_does_not_keep_skimage_from_the_pixels():
    broken = encoded(picture(), "PNG", exif=b"no directory")
    same(loaded(broken, SIZES[0], loader="skimage"), succeeded(loaded(FILES["png"], SIZES[0], loader="skimage")))


def test_the_first_frame_of_an_animated_png_file_is_all_that_skimage_decodes():
    frames = [picture(), Image.new("RGB", (93, 71), "red")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    same(loaded(data, SIZES[0], loader="skimage"), succeeded(loaded(FILES["png"], SIZES[0], loader="skimage")))


def keras_upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


@pytest.mark.parametrize("loader", ["tf", "keras-load-img", "pillow", "opencv", "skimage", "batchverify"])
@pytest.mark.parametrize(("alpha", "background"), [("white", 255), ("black", 0)])
def test_alpha_lays_transparency_on_a_background(loader, alpha, background):
    image = picture()
    image.putalpha(0)
    found = succeeded(loaded(encoded(image, "PNG"), SIZES[0], loader=loader, alpha=alpha))
    assert (found == background / (255 if loader == "skimage" else 1)).all()


@pytest.mark.parametrize("loader", ["tf", "keras-load-img", "pillow", "opencv", "skimage"])
def test_transparency_is_dropped_unless_something_else_is_asked_for(loader):
    image = picture()
    image.putalpha(0)
    same(
        loaded(encoded(image, "PNG"), SIZES[0], loader=loader), succeeded(loaded(FILES["png"], SIZES[0], loader=loader))
    )  # fmt: skip


# Together and alone


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("method", LOADER_RESIZES["tf"])
def test_files_decoded_together_are_as_each_decoded_alone(method, fit, channels):
    loading = decide_loading(ModelConfig(resize=method))
    preprocessing = Preprocessing(32, 40, channels, "0..255", "grey" if channels == 1 else "rgb", loading, fit, "")
    layout, files = preprocessing.layout(), list(FILES.values())
    waiting = [decode_or_defer(data, layout, 10**6, defer=True).image for data in files]
    together = [one for one in waiting if isinstance(one, UndecodedImage)]
    assert len(together) == len(files) - (1 if channels == 3 else 2)  # Pillow decodes BMP, and CMYK for one channel.
    decoder = preprocessing.batch_decoder(10**6)
    assert decoder is not None
    for file, found in zip(together, decoder(together), strict=True):
        same(found, succeeded(decode(file.data, layout)))


def test_many_decoders_in_one_process_make_no_warning_of_tensorflow(caplog, monkeypatch):
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    preprocessing = Preprocessing(32, 40, 3, "0..255", "rgb", decide_loading(ModelConfig()), "stretch", "")
    file = decode_or_defer(FILES["jpeg"], preprocessing.layout(), 10**6, defer=True).image
    assert isinstance(file, UndecodedImage)
    for _ in range(7):
        decoder = preprocessing.batch_decoder(10**6)
        assert decoder is not None
        for _ in range(2):
            decoder([file])
    assert "retracing" not in caplog.text


def test_damaged_files_decoded_together_are_as_each_decoded_alone():
    preprocessing = Preprocessing(32, 40, 3, "0..255", "rgb", decide_loading(ModelConfig()), "stretch", "")
    layout, rng, decoder = preprocessing.layout(), np.random.default_rng(4), preprocessing.batch_decoder(10**6)
    kinds = [FILES["jpeg"], FILES["progressive"], FILES["png"]]
    failures = 0
    assert decoder is not None
    for number in range(300):
        data = bytearray(kinds[number % 3])
        place = int(rng.integers(len(data) // 3, len(data)))
        data[place : place + 3] = rng.integers(0, 256, int(rng.integers(4)), np.uint8).tobytes()
        file = decode_or_defer(bytes(data[: place if number % 5 == 0 else None]), layout, 10**6, defer=True).image
        if isinstance(file, UndecodedImage):
            (found,), alone = decoder([file]), decode(file.data, layout)
            failures += isinstance(alone, ImageFailure)
            if isinstance(alone, ImageFailure):
                assert found == alone
            else:
                same(found, alone)
    assert failures > 30


# What cannot be


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(PreflightError, match=r"pip install 'batchverify\[opencv\]'"):
        decide_loading(ModelConfig(loader="opencv"))


@pytest.mark.parametrize(("loader", "resize"), [("tf", "lanczos4"), ("opencv", "bilinear-antialias"), (None, "hamming")])
def test_a_method_that_the_loader_does_not_have_is_refused(loader, resize):
    with pytest.raises(PreflightError, match="does not have; give one of"):
        decide_loading(ModelConfig(loader=loader, resize=resize))
