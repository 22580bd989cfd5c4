import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import powerclip
from powerclip.alignment.reference import enumerate_pair
from powerclip.config import ScoringConfig
from powerclip.errors import PowerclipError
from powerclip.model import make_tokenizer, make_transforms, save
from powerclip.model.pooling import pool_leaves, pool_phrases, pool_regions
from powerclip.phrases import encode_caption
from powerclip.report import results_markdown, results_table, write_report
from powerclip.report.pictures import ground, picture
from powerclip.report.plots import curves, png, smooth
from powerclip.scenes import sample

RESULTS = {
    "clip": {"a": {"acc@1": 0.5, "acc@5": 0.9}, "b": {"macro": 0.25}},
    "powerclip": {"a": {"acc@1": 0.625, "acc@5": 0.9}},
}


def test_tables_mark_the_best_and_show_what_is_missing():
    assert results_markdown(RESULTS).splitlines() == [
        "| task | metric | clip | powerclip |",
        "| --- | --- | ---: | ---: |",
        "| a | acc@1 | 50.0 | **62.5** |",
        "| b | macro | 25.0 | - |",
    ]
    assert "acc@5" in results_markdown(RESULTS, short=False)
    assert results_table(RESULTS).row_count == 2


def test_smoothing_is_a_mean_over_a_window():
    values = np.arange(60.0) ** 2
    found = smooth(values)
    assert len(found) == 60
    assert found[30] == pytest.approx(values[29:32].mean())
    assert smooth(np.ones(7)) == pytest.approx(np.ones(7))


def test_curves_are_drawn_for_runs_that_log_different_things():
    lines = [{"step": s, "loss_clip": 1.0 / s, "samples_per_s": 5.0, "logit_scale": 14.0} for s in range(1, 30)]
    figure = curves({"clip": lines, "powerclip": [{**line, "loss_powerset": 0.3} for line in lines], "none": []})
    drawn = [len(axes.lines) for axes in figure.axes]
    assert drawn == [4, 2, 4, 4]
    assert Image.open(io.BytesIO(png(figure))).width > 800


def test_grounding_scores_are_those_of_enumeration():
    torch.manual_seed(0)
    model = powerclip.create_model("tiny").eval()
    scene = sample("test", 3, seed=0)
    image = Image.open(io.BytesIO(scene.image)).convert("RGB")
    masks = torch.rand(5, 64, generator=torch.Generator().manual_seed(0)) < 0.3
    found = ground(model, image, scene.caption, scene.tree, masks=masks)
    assert {(p.label, p.text) for p in found} == {
        (p.label, scene.caption[scene.tree.leaves[p.first][0] : scene.tree.leaves[p.last][1]])
        for p in scene.tree.phrases
    }
    with torch.inference_mode():
        patches = model.encode_patches(make_transforms(model)[1](image)[None])
        encoded = encode_caption(scene.caption, scene.tree, make_tokenizer(model), context_length=48)
        leaves = pool_leaves(model.encode_tokens(encoded.tokens[None]), encoded.leaf_of_token[None], leaves=48)
        phrases, _ = pool_phrases(*leaves, encoded.phrase_spans[None], norm=model.phrase_norm)
        s = pool_regions(patches, masks[None])[0][0] @ phrases[0].T
    scores = torch.tensor([phrase.score for phrase in found])
    torch.testing.assert_close(scores.mean(), enumerate_pair(s)[0], rtol=1e-5, atol=1e-5)
    for phrase in found:
        assert phrase.heat.shape == (8, 8)
        assert (phrase.heat.flatten()[~masks.any(dim=0)] == 0).all()
        assert (phrase.score > 0) == (phrase.regions > 0)
    assert len(picture(image, scene.caption, {"m": found}).axes) >= 2


def test_a_model_trained_on_tokens_or_single_regions_is_drawn_by_them():
    torch.manual_seed(0)
    model = powerclip.create_model("tiny", phrase_unit="token", scoring=ScoringConfig(subsets="single")).eval()
    scene = sample("test", 3, seed=0)
    image = Image.open(io.BytesIO(scene.image)).convert("RGB")
    masks = torch.rand(5, 64, generator=torch.Generator().manual_seed(0)) < 0.3
    found = ground(model, image, scene.caption, scene.tree, masks=masks)
    tokenizer = make_tokenizer(model)
    encoded = encode_caption(scene.caption, scene.tree, tokenizer, context_length=48)
    words = [tokenizer.decode([int(t)]).strip() for t in encoded.tokens[encoded.leaf_of_token >= 0]]
    assert [(phrase.label, phrase.text) for phrase in found] == [("token", word) for word in words]
    with torch.inference_mode():
        patches = model.encode_patches(make_transforms(model)[1](image)[None])
        tokens = model.encode_tokens(encoded.tokens[None])[0, encoded.leaf_of_token >= 0]
        s = torch.nn.functional.normalize(tokens, dim=-1) @ pool_regions(patches, masks[None])[0][0].T
    torch.testing.assert_close(torch.tensor([phrase.score for phrase in found]), s.amax(dim=1), rtol=0, atol=1e-5)
    assert all(phrase.regions == 1 for phrase in found)
    drawn = picture(image, scene.caption, {"m": found}).axes[1:]
    highest = sorted(found, key=lambda phrase: -phrase.score)[:6]
    assert {axes.get_title().split("\n")[0] for axes in drawn} == {phrase.text for phrase in highest}


def test_a_report_says_what_a_run_lacks(tmp_path):
    whole, bare = tmp_path / "whole", tmp_path / "<bare>"
    bare.mkdir()
    save(powerclip.create_model("tiny"), whole / "model")
    line = {"step": 1, "samples_seen": 8, "loss": 2.0, "loss_clip": 2.0, "samples_per_s": 3.0, "logit_scale": 14.0}
    (whole / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (whole / "evaluation.json").write_text(json.dumps({"tasks": RESULTS["clip"]}))
    (whole / "config.yaml").write_text("recipe: '<script>'\n")
    page = write_report({"whole": whole, "<bare>": bare}, tmp_path / "report.html").read_text()
    assert "Not evaluated: &lt;bare&gt;" in page
    assert "No readable config.yaml: &lt;bare&gt;" in page
    assert "<script>" not in page
    assert ">50.0<" in page
    assert page.count("data:image/png") == 7
    with pytest.raises(PowerclipError, match="there is no such folder; train it first"):
        write_report({"gone": tmp_path / "gone"}, tmp_path / "report.html")
