"""Images that libraries treat in different ways are counted, whether they are encoded or come from a store of embeddings."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from batchverify.cli.main import main
from batchverify.images.decode import decode_or_defer
from batchverify.images.layout import Layout
from batchverify.images.tensorflow_loader import TensorFlowLoader
from batchverify.schema import ImageTraits

TURNED = Image.Exif()
TURNED[0x0112] = 6
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 1


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 4), np.uint8)).convert(mode)


def encode(form: str, mode: str = "RGB", **settings) -> bytes:
    file = io.BytesIO()
    picture(mode).save(file, form, **settings)
    return file.getvalue()


def frames(form: str, **settings) -> bytes:
    return encode(form, save_all=True, append_images=[picture(seed=1), picture(seed=2)], **settings)


def png_with_late_exif() -> bytes:
    """A PNG file whose EXIF block stands behind its pixels, as some programs write it."""
    data = encode("PNG", exif=TURNED)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    return data[:start] + data[end:-12] + data[start:end] + data[-12:]


FILES = {
    "plain.jpg": (encode("JPEG"), ImageTraits.NONE),
    "plain.png": (encode("PNG"), ImageTraits.NONE),
    "upright.jpg": (encode("JPEG", exif=UPRIGHT), ImageTraits.NONE),
    "turned.jpg": (encode("JPEG", exif=TURNED), ImageTraits.TURNED),
    "turned.png": (encode("PNG", exif=TURNED), ImageTraits.TURNED),
    "turned-late.png": (png_with_late_exif(), ImageTraits.TURNED),
    "turned.webp": (encode("WEBP", exif=TURNED), ImageTraits.TURNED),
    "cut-out.png": (encode("PNG", "RGBA"), ImageTraits.TRANSPARENT),
    "cut-out.webp": (encode("WEBP", "RGBA"), ImageTraits.TRANSPARENT),
    "palette.png": (encode("PNG", "P", transparency=3), ImageTraits.TRANSPARENT),
    "both.png": (encode("PNG", "RGBA", exif=TURNED), ImageTraits.TURNED | ImageTraits.TRANSPARENT),
    "frames.gif": (frames("GIF"), ImageTraits.MULTI_FRAME),
    "frames.tif": (frames("TIFF"), ImageTraits.MULTI_FRAME),
    "frames.png": (frames("PNG"), ImageTraits.MULTI_FRAME),
    "frames.webp": (frames("WEBP"), ImageTraits.MULTI_FRAME),
    "frames.mpo": (frames("MPO"), ImageTraits.MULTI_FRAME),
    "one-frame.gif": (encode("GIF"), ImageTraits.NONE),
}


@pytest.mark.parametrize("defer", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_the_traits_of_a_file_are_found_whether_it_is_decoded_at_once_or_later(name, defer):
    data, traits = FILES[name]
    for orientation in ("ignore", "apply"):
        layout = Layout(16, 16, loader=TensorFlowLoader(orientation=orientation))
        assert decode_or_defer(data, layout, 10**6, defer).traits == traits


def test_a_broken_second_frame_costs_nothing():
    data = frames("GIF")
    cut = decode_or_defer(data[: data.index(b"\x00;")], Layout(16, 16), 10**6, defer=False)
    assert isinstance(cut.image, np.ndarray)


def test_they_are_counted_when_they_are_encoded_and_when_they_are_reused(tmp_path, small_model, capsys):
    for name, (data, _) in FILES.items():
        (tmp_path / name).write_bytes(data)
    manifest = tmp_path / "pairs.csv"
    manifest.write_text("left,right\n" + "".join(f"{name},plain.jpg\n" for name in FILES) + "none.png,plain.jpg\n")
    options = ["--manifest", str(manifest), "--model", small_model, "--embeddings", str(tmp_path / "store")]
    expected = {
        name: sum(trait in traits for _, traits in FILES.values())
        for name, trait in (
            ("turned", ImageTraits.TURNED),
            ("transparent", ImageTraits.TRANSPARENT),
            ("multi_frame", ImageTraits.MULTI_FRAME),
        )
    }
    for night, reused in (("first", 0), ("second", len(FILES))):
        output = tmp_path / night
        assert main([*options, "--output", str(output)]) == 0
        summary = json.loads((output / "_summary.json").read_text())
        assert summary["embeddings"]["reused"] == reused
        assert summary["image_traits"] == expected
        words = f"{expected['turned']} to be turned by EXIF (--orientation), {expected['transparent']} transparent (--alpha)"
        assert words in " ".join(capsys.readouterr().out.split())
        assert words in (output / "_report.html").read_text()


def test_a_run_of_plain_pictures_says_nothing_of_them(tmp_path, small_model, capsys):
    (tmp_path / "plain.jpg").write_bytes(FILES["plain.jpg"][0])
    (tmp_path / "pairs.csv").write_text("left,right\nplain.jpg,plain.jpg\n")
    output = tmp_path / "out"
    assert main(["--manifest", str(tmp_path / "pairs.csv"), "--model", small_model, "--output", str(output)]) == 0
    assert "Traits" not in capsys.readouterr().out and 'id="traits"' not in (output / "_report.html").read_text()
