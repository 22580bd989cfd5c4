import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from powerclip.data.images import decode_image
from powerclip.data.shards import SamplePlace, index_shard
from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.images import FileImage, ShardImage, TableImage, open_picture
from powerclip.evaluate.datasets.release import Release
from powerclip.model import create_model, make_transforms
from tests.support.arrow_memory import peak_bytes
from tests.support.images import encoded, one_colour
from tests.support.tars import write_tar


def turned():
    """Red above blue, to be shown turned by a quarter."""
    exif = Image.Exif()
    exif[0x112] = 6
    image = Image.new("RGB", (8, 16), "blue")
    image.paste("red", (0, 0, 8, 8))
    return encoded(image, "PNG", exif=exif)


def transparent():
    return one_colour((255, 0, 0, 0), mode="RGBA")


def grey_of_16_bits():
    return encoded(Image.fromarray(np.full((4, 4), 300, np.uint16)))


def palette_with_transparency():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 255, 0, 0, 0, 255])
    return encoded(image, "PNG", transparency=1)


IMAGES = [turned, transparent, grey_of_16_bits, palette_with_transparency]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("data", [image() for image in IMAGES], ids=[image.__name__ for image in IMAGES])
def test_a_public_image_is_what_pil_makes_of_it_or_as_in_training(data, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    write_tar(tmp_path / "0.tar", [("k.png", data)])
    (entry,) = index_shard(tmp_path / "0.tar")
    pil = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    training = np.asarray(decode_image(data))
    assert not np.array_equal(pil, training)
    for opener in (FileImage(tmp_path / "a.png"), ShardImage.of(entry)):
        np.testing.assert_array_equal(np.asarray(opener()), pil)
        np.testing.assert_array_equal(np.asarray(open_picture(opener)), pil)
        np.testing.assert_array_equal(np.asarray(open_picture(opener, "training")), training)
    np.testing.assert_array_equal(np.asarray(open_picture(ShardImage.of(entry, pixels="training"))), training)


def test_the_model_s_transform_does_not_turn_it_after_all(tmp_path):
    (tmp_path / "a.png").write_bytes(turned())
    transform = make_transforms(create_model("tiny"))[1]
    plain = Image.fromarray(np.asarray(Image.open(io.BytesIO(turned())).convert("RGB")))
    assert transform(FileImage(tmp_path / "a.png")()).equal(transform(plain))


def test_large_images_warn_and_are_read(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(one_colour(size=(9, 8)))
    monkeypatch.setattr("powerclip.evaluate.datasets.images.MAX_PIXELS", 64)
    with pytest.warns(UserWarning, match=r"a\.png has 9 x 8 pixels"):
        assert FileImage(tmp_path / "a.png")().size == (9, 8)
    (tmp_path / "b.png").write_bytes(one_colour(0, size=(8001, 8000), mode="1"))
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"b\.png has 8001 x 8000 pixels"):
        assert FileImage(tmp_path / "b.png")().size == (8001, 8000)


def test_cells_of_a_table_that_inflate_thousands_of_times_are_not_read(tmp_path):
    table = pa.table({"image": [bytes(70 * 2**20), one_colour()], "text": ["a" * 70 * 2**20, "b"]})
    for name, part in (("large", table), ("usual", table.slice(1))):
        parquet.write_table(part, tmp_path / f"{name}.parquet", compression="zstd", use_dictionary=False)
    assert open_picture(TableImage(tmp_path / "usual.parquet", 0, 0, "image")).size == (8, 8)
    with peak_bytes() as peak:
        with pytest.raises(PowerclipError, match=r"row 1 .*large.parquet cannot be read \(row group 0 inflates to 734"):
            open_picture(TableImage(tmp_path / "large.parquet", 0, 1, "image"))
        with pytest.raises(PowerclipError, match=r"large.parquet cannot be read \(row group 0 inflates to 734"):
            Release(tmp_path).parquet(["text"], ["image"])
    assert peak[0] < 2**20


def test_the_image_of_a_sample_may_have_any_extension_of_images(tmp_path):
    def of(*extensions):
        return ShardImage.of(SamplePlace(shard=tmp_path / "0.tar", key="k", members=dict.fromkeys(extensions, (0, 1))))

    assert of("cls", "jfif").extension == "jfif"
    assert of("bmp", "png").extension == "png"
    with pytest.raises(PowerclipError, match=r"sample k of .*0\.tar has no image, only cls, svg; expected KEY\.jpg\|"):
        of("svg", "cls")
