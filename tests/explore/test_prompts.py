import base64
import html
import io
import json
import re

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import powerclip
from powerclip.errors import PowerclipError
from powerclip.evaluate.encode import Encoder
from powerclip.explore.prompts import OPACITY, heat_maps
from powerclip.explore.subject import Subject
from powerclip.model import make_tokenizer, make_transforms
from tests.support.colours import ColourModel, preprocess, tokenizer
from tests.support.models import write_tiny


@pytest.fixture(scope="module", params=["unit", "image"])
def subject(request, tmp_path_factory):
    torch.manual_seed(0)
    model = powerclip.create_model(write_tiny(tmp_path_factory.mktemp("model")), region_norm=request.param).eval()
    encoder = Encoder(model, make_transforms(model)[1], make_tokenizer(model), device="cpu", batch_size=8)
    return Subject(name="tiny", encoder=encoder, aligned=True, pairs=[])


def test_maps_are_of_the_model_s_own_regions_on_one_scale(subject):
    image = Image.new("RGB", (64, 64), "white")
    image.paste("red", (0, 0, 32, 32))
    prompts = ["a red thing", "nothing at all <b>"]
    document = html.unescape(
        re.search(r'srcdoc="([^"]*)"', heat_maps(subject, image, "\n".join([*prompts, prompts[0], ""])))[1]
    )
    with torch.inference_mode():
        patches = subject.dense.encode_patches(subject.encoder.preprocess(image)[None])[0]
        texts = subject.dense.encode_text(subject.encoder.tokenizer(prompts))
        of_mean = subject.dense.region_norm == "image"
        lengths = patches.mean(dim=0).norm().expand(len(patches)) if of_mean else patches.norm(dim=1)
        similarities = torch.nn.functional.normalize(texts, dim=-1) @ (patches / lengths[:, None]).T
    low, high = similarities.min().item(), similarities.max().item()
    assert ("a value is a cosine" in document) != of_mean
    assert f'aria-label="colours from {low:.3f} to {high:.3f}"' in document
    for of_prompt in similarities:
        assert f"patches {of_prompt.min().item():.3f} to {of_prompt.max().item():.3f}" in document
    assert document.count("<figure>") == 3
    assert "<b>" not in document.split("nothing at all ")[1][:5]
    data = json.loads(re.search(r'id="data">(.*?)</script>', document)[1])
    for source, of_prompt in zip(data["images"][2:], similarities, strict=True):
        drawn = (
            Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
            .convert("RGB")
            .resize((4, 4), Image.Resampling.BOX)
        )
        shares = ((of_prompt - low) / (high - low)).reshape(4, 4).numpy()
        seen = np.asarray(image.resize((4, 4), Image.Resampling.BOX), dtype=float)
        expected = (1 - OPACITY) * seen + OPACITY * 255 * matplotlib.colormaps["viridis"](shares)[..., :3]
        assert np.abs(np.asarray(drawn) - expected).max() < 12  # compressed


def test_where_a_prompt_is_cut_is_said(subject):
    for prompt, said in (("a red ball " * 4, False), ("a red ball " * 90, True)):
        assert ("cut here: " in heat_maps(subject, Image.new("RGB", (8, 8)), prompt)) == said


def test_what_is_missing_is_named(subject):
    with pytest.raises(ValueError, match="no prompt was given"):
        heat_maps(subject, Image.new("RGB", (8, 8)), " \n ")
    with pytest.raises(ValueError, match="51 prompts were given; at most 50 are drawn"):
        heat_maps(subject, Image.new("RGB", (8, 8)), "\n".join(map(str, range(51))))
    encoder = Encoder(ColourModel().eval(), preprocess, tokenizer, device="cpu", batch_size=2)
    flat = Subject(name="RN50", encoder=encoder, aligned=False, pairs=[])
    with pytest.raises(PowerclipError, match="RN50 has no embeddings of patches"):
        heat_maps(flat, Image.new("RGB", (8, 8)), "x")
