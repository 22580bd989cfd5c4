"""Each release on a small copy of its form, by its own rule as a loop; and other forms of its files."""

import csv
import json
import shutil
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.datasets import fine_grained as fg
from powerclip.evaluate.datasets.images import open_picture
from powerclip.evaluate.results import origin_of
from powerclip.tasks import HardNegatives
from tests.support.images import encoded
from tests.support.layouts import write_json
from tests.support.numbers import cosine, number_model, of_image, of_text


def photo(path, number, size=(4, 4)):
    """An image of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
    path.write_bytes(encoded(Image.fromarray(pixels)))
    return of_image(Image.open(path).convert("RGB"))


def run(tasks):
    return evaluate_tasks(*number_model(), tasks, batch_size=4)


def share(right):
    assert 0 < sum(right) < len(right), "the rule must have something to tell apart"
    return pytest.approx(sum(right) / len(right))


def test_sugarcrepe_pp_by_image_and_by_text_alone(tmp_path):
    itt, tot, number = {}, {}, 0
    for kind in fg.SUGARCREPE_PP:
        rows, itt[kind], tot[kind] = [], [], []
        for i in range(12):
            number += 1
            image = photo(tmp_path / "val2017" / f"{number}.png", number)
            texts = [f"{what} {number}" for what in ("first", "second", "wrong")]
            rows.append(
                {"id": i, "filename": f"{number}.png"}
                | dict(zip(("caption", "caption2", "negative_caption"), texts, strict=True))
            )
            p1, p2, n = map(of_text, texts)
            itt[kind].append(cosine(image, p1) > cosine(image, n) and cosine(image, p2) > cosine(image, n))
            tot[kind].append(cosine(p1, p2) > cosine(p1, n) and cosine(p1, p2) > cosine(p2, n))
        write_json(tmp_path / "data" / f"{kind}.json", rows)
    tasks = fg.read_sugarcrepe_pp(tmp_path, "sugarcrepe++")
    assert [origin_of(task, suite="s", data="d").n for task in tasks] == [60, 60]
    found = run(tasks)
    for task, expected in (("sugarcrepe++", itt), ("sugarcrepe++-text", tot)):
        assert found[task]["micro"] == share([value for right in expected.values() for value in right])
        for kind, right in expected.items():
            assert found[task][kind] == pytest.approx(sum(right) / len(right))
        macro = sum(sum(right) / len(right) for right in expected.values()) / 5
        assert found[task]["macro"] == pytest.approx(macro)
    write_json(tmp_path / "data" / "swap_att.json", {"0": rows[0]})  # SugarCrepe's form
    with pytest.raises(PowerclipError, match=r"swap_att\.json is an object of 1 rows .* expected a list of rows with"):
        fg.read_sugarcrepe_pp(tmp_path, "sugarcrepe++")


def whatsup(folder):
    """Two sets of four photos in each controlled part, and three images of COCO; returns who is right by photo."""
    right = {}
    for kind, places in (
        ("controlled_images", ("left_of", "right_of", "on", "under")),
        ("controlled_clevr", ("left_of", "right_of", "in-front_of", "behind")),
    ):
        rows = []
        for number in range(24):
            for place in places:
                name = f"thing-{number}_{place}_plate.jpeg"
                image = photo(folder / kind / name, len(right))
                others = [place, *(other for other in places if other != place)]
                captions = [f"A {kind} thing {number} {other} a plate" for other in others]
                rows.append({"image_path": f"data/{kind}/{name}", "caption_options": captions})
                scores = [cosine(image, of_text(caption)) for caption in captions]
                right[kind, number, place] = all(scores[0] > score for score in scores[1:])
        write_json(folder / f"{kind}_dataset.json", rows)
    return right


def test_whatsup_by_photo_pair_and_set(tmp_path):
    right = whatsup(tmp_path)
    for number in (139, 285):
        photo(tmp_path / "val2017" / f"{number:012}.jpg", 1000 + number)
    write_json(tmp_path / "coco_qa_one_obj.json", [[139, "a tv on the left", "a tv on the right"], [285, "a b", "c d"]])
    found = run(fg.read_whatsup(tmp_path, "whatsup"))
    assert set(found["whatsup"]) == {"micro", "macro", "controlled_images", "controlled_clevr", "coco_one"}
    for kind in ("controlled_images", "controlled_clevr"):
        own = {(number, place): value for (k, number, place), value in right.items() if k == kind}
        assert found["whatsup"][kind] == share(list(own.values()))
        up, down = [place for _, place in list(own)[2:4]]
        pairs = [own[n, a] and own[n, b] for n in range(24) for a, b in (("left_of", "right_of"), (up, down))]
        assert found["whatsup-pairs"][kind] == share(pairs)
        sets = [all(value for (n, _), value in own.items() if n == number) for number in range(24)]
        assert found["whatsup-sets"][kind] == pytest.approx(sum(sets) / 24)
    for name in fg.WHATSUP.values():
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(PowerclipError, match="lacks What'sUp's files; expected some of controlled_images_dataset"):
        fg.read_whatsup(tmp_path, "whatsup")


def test_groups_are_right_if_all_of_their_items_are(tmp_path):
    right = whatsup(tmp_path)
    (_, pairs, sets) = fg.read_whatsup(tmp_path, "whatsup")
    assert isinstance(sets, HardNegatives)
    assert [origin_of(task, suite="s", data="d").n for task in (pairs, sets)] == [96, 48]
    assert len(right) == len(sets.items) == 192


def quadruple_scores(rows):
    """Winoground's three scores of (image, image, caption, caption) vectors, by its authors' rule."""
    text, image = [], []
    for i0, i1, c0, c1 in rows:
        text.append(cosine(i0, c0) > cosine(i0, c1) and cosine(i1, c1) > cosine(i1, c0))
        image.append(cosine(i0, c0) > cosine(i1, c0) and cosine(i1, c1) > cosine(i0, c1))
    return {"text": text, "image": image, "group": [t and i for t, i in zip(text, image, strict=True)]}


ITEMS = 30


def vectors(folder, names, captions):
    """The vectors of an item's two images, which are written, and captions."""
    images = [photo(folder / name, crc32(f"{name} {captions}".encode())) for name in names]
    return (*images, *map(of_text, captions))


def colorswap(folder):
    rows, items = [], []
    for i in range(ITEMS):
        names, captions = (f"images/img_{i}_1.png", f"images/img_{i}_2.png"), (f"a red {i}", f"a blue {i}")
        items.append(vectors(folder, names, captions))
        keys = ("image_1", "image_2", "caption_1", "caption_2")
        rows.append(dict(zip(keys, (*names, *captions), strict=True)) | {"id": i})
    write_json(folder / "test.json", rows)
    return items, [""] * ITEMS


def cola(folder):
    rows, items = [], []
    for i in range(ITEMS):
        names, captions = (f"VG_100K/{i}1.jpg", f"VG_100K_2/{i}2.jpg"), (f"left {i}", f"right {i}")
        items.append(vectors(folder, names, captions))
        urls = [f"https://example.org/vg_gqa_images/{name.split('/')[1]}" for name in names]
        rows.append([urls[0], captions[0], urls[1], captions[1]])
    write_json(folder / "data" / "COLA_multiobjects_matching_benchmark.json", rows)
    return items, [""] * ITEMS


def eqben(folder):
    rows, items, kinds = [], [], []
    for i in range(ITEMS):
        kind = ("eqbenag", "eqbenkubric_cnt")[i % 2]
        names, captions = (f"{kind}/{i}/0.png", f"{kind}/{i}/1.png"), (f"opens {i}", f"closes {i}")
        items.append(vectors(folder / "image_subset", names, captions))
        keys = ("image0", "image1", "caption0", "caption1")
        rows.append(dict(zip(keys, (*names, *captions), strict=True)))
        kinds.append(kind)
    write_json(folder / "eqben_subset_10percent_final.json", rows)
    return items, kinds


def mmvp(folder):
    lines, items, kinds = [["Question ID", "Type", "Statement"]], [], []
    for i in range(ITEMS):
        kind = ("Texts", "Quantity, Count")[i % 2]
        names = [f"MLLM_VLM Images/{kind}/{2 * i + number}.jpg" for number in (1, 2)]
        statements = (f"{i} cats", f'{i} "dogs"')
        items.append(vectors(folder, names, tuple(f"a photo of {statement}" for statement in statements)))
        lines += [[2 * i + number, kind, statement] for number, statement in zip((1, 2), statements, strict=True)]
        kinds.append(kind)
    with (folder / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return items, kinds


def in_cells(folder, columns, more):
    """Parquet files of the hub with columns of two images and two captions, and what else there is in a row."""
    from pyarrow import Table, parquet

    rows, items = [], []
    for i in range(ITEMS):
        names, captions = (f"{i}a.png", f"{i}b.png"), (f"a {i}", f"b {i}")
        items.append(vectors(folder / "images", names, captions))
        cells = [{"bytes": (folder / "images" / name).read_bytes(), "path": name} for name in names]
        rows.append(dict(zip(columns, (*cells, *captions), strict=True)) | more(i))
    (folder / "data").mkdir()
    for part in range(2):
        some = Table.from_pylist(rows[part * 20 : part * 20 + 20])
        parquet.write_table(some, folder / "data" / f"test-0000{part}.parquet", row_group_size=7)
    return items


def bivlc(folder):
    kinds = [("replace", "swap")[i % 2] for i in range(ITEMS)]
    columns = ("image", "negative_image", "caption", "negative_caption")
    return in_cells(folder, columns, lambda i: {"type": kinds[i], "subtype": "obj"}), kinds


def colorswap_of_the_hub(folder):
    columns = ("image_1", "image_2", "caption_1", "caption_2")
    items = in_cells(folder, columns, lambda i: {"id": i, "image_source": "midjourney"})
    shutil.copy(folder / "data" / "test-00000.parquet", folder / "data" / "train-00000.parquet")
    return items, [""] * ITEMS


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (colorswap, fg.read_colorswap),
        (cola, fg.read_cola),
        (eqben, fg.read_eqben),
        (mmvp, fg.read_mmvp),
        (bivlc, fg.read_bivlc),
        (colorswap_of_the_hub, fg.read_colorswap),
    ],
    ids=["colorswap", "cola", "eqben", "mmvp", "bivlc", "colorswap-parquet"],
)
def test_quadruples_by_the_rule_of_winoground(make, read, tmp_path):
    items, kinds = make(tmp_path)
    (task,) = read(tmp_path, "q")
    assert origin_of(task, suite="s", data="d").n == ITEMS
    found, expected = run([task])["q"], quadruple_scores(items)
    for name, right in expected.items():
        assert found[name] == pytest.approx(sum(right) / ITEMS)
    assert found["image"] == share(expected["image"])
    for kind in set(kinds) - {""}:
        own = [value for value, of in zip(expected["image"], kinds, strict=True) if of == kind]
        assert found[f"image-{kind}"] == pytest.approx(sum(own) / len(own))
    assert len(found) == 3 * (1 + len(set(kinds) - {""}))


def test_eqben_s_arrays_are_blue_green_red_and_images_must_be_in_their_folders(tmp_path):
    eqben(tmp_path)
    row = {"image0": "eqbenyoucook2/v/0.npy", "image1": "eqbenyoucook2/v/1.npy", "caption0": "a", "caption1": "b"}
    write_json(tmp_path / "eqben_subset_10percent_final.json", [row])
    folder = tmp_path / "image_subset" / "eqbenyoucook2" / "v"
    folder.mkdir(parents=True)
    for number in (0, 1):
        np.save(folder / f"{number}.npy", np.full((2, 2, 3), (1, 2, 3), np.uint8))
    ((item,),) = (task.items for task in fg.read_eqben(tmp_path, "eqben"))
    assert open_picture(item.images[0]).getpixel((0, 0)) == (3, 2, 1)
    np.save(folder / "1.npy", np.array([{}]))
    with pytest.raises(PowerclipError, match=r"1\.npy cannot be read \(not an image as an array\)"):
        open_picture(item.images[1])
    (folder / "0.npy").rename(tmp_path / "0.npy")  # elsewhere, images of other videos may have the name
    with pytest.raises(PowerclipError, match=r"1 of 2 images are not under .*0\.npy"):
        fg.read_eqben(tmp_path, "eqben")


def test_crepe_ranks_many_wrong_captions_of_a_box(tmp_path):
    right = {}
    columns = ["image_id", "x", "y", "width", "height", "caption"]
    files = {
        "prod/atom/prod_vg_hard_negs_atom_complexity_4.csv": ["hard_negs"],
        "prod/swap/prod_vg_hard_negs_swap_complexity_12.csv": ["hard_negs"],
        "syst/syst_vg_hard_negs_seen_compounds_in_cc12m.csv": [f"valid_hard_negs_{n}" for n in fg.CREPE_NEGATIVES],
    }
    for file, negatives in files.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [[*columns, *negatives]]
        for i in range(20):
            photo(tmp_path / "VG_100K" / f"{i}.jpg", i, (6, 8))
            box = of_image(Image.open(tmp_path / "VG_100K" / f"{i}.jpg").convert("RGB").crop((2, 1, 5, 5)))
            caption = f'the "{file}", {i}'
            lists = [[f"{column} {file}, it's {i} {k}" for k in range(2)] for column in negatives]
            lines.append([i, 2, 1, 3, 4, caption, *map(repr, lists)])
            for column, wrong in zip(negatives, lists, strict=True):
                best = all(cosine(box, of_text(caption)) > cosine(box, of_text(text)) for text in wrong)
                right.setdefault((file, column), []).append(best)
        with path.open("w", newline="") as out:
            csv.writer(out).writerows(lines)
    found = run(fg.read_crepe(tmp_path, "crepe"))
    assert set(found) == {"crepe-productivity", "crepe-systematicity-cc12m"}
    first, second, third = files
    assert found["crepe-productivity"]["atom-4"] == share(right[first, "hard_negs"])
    assert found["crepe-productivity"]["swap-12"] == share(right[second, "hard_negs"])
    for kind in fg.CREPE_NEGATIVES:
        expected = share(right[third, f"valid_hard_negs_{kind}"])
        assert found["crepe-systematicity-cc12m"][f"seen-{kind}"] == expected
    (tmp_path / first).write_text("image_id,caption,hard_negs,x,y,width,height\n1,a,[,1,1,1,1\n")
    with pytest.raises(PowerclipError, match=r"atom_complexity_4\.csv does not have its release's format"):
        fg.read_crepe(tmp_path, "crepe")


def test_spec_in_both_directions(tmp_path):
    right = {"i2t": [], "t2i": []}
    for kind in fg.SPEC:
        ways = {"image2text": [], "text2image": []}
        for i in range(10):
            images = [
                photo(tmp_path / kind / "images" / f"{i}{k}.png", crc32(f"{kind} {i} {k}".encode())) for k in range(3)
            ]
            texts = [f"{kind} {i} {k}" for k in range(3)]
            label = i % 3
            ways["image2text"].append({"query": f"images/{i}{label}.png", "keys": texts, "label": label})
            scores = [cosine(images[label], of_text(text)) for text in texts]
            right["i2t"].append(scores.index(max(scores)) == label)
            keys = [f"images/{i}{k}.png" for k in range(3)]
            ways["text2image"].append({"query": texts[label], "keys": keys, "label": label})
            scores = [cosine(image, of_text(texts[label])) for image in images]
            right["t2i"].append(scores.index(max(scores)) == label)
        for name, rows in ways.items():
            write_json(tmp_path / kind / f"{name}.json", rows)
    tasks = fg.read_spec(tmp_path, "spec")
    found = run(tasks)
    for way in ("i2t", "t2i"):
        assert found[f"spec-{way}"]["micro"] == share(right[way])
        for number, kind in enumerate(fg.SPEC):
            own = right[way][number * 10 : number * 10 + 10]
            assert found[f"spec-{way}"][kind] == pytest.approx(sum(own) / 10)
    rows[0]["label"] = 3
    write_json(tmp_path / kind / "text2image.json", rows)
    with pytest.raises(
        PowerclipError, match=r"row 0 of .*relative_spatial/text2image\.json has the label 3 and 3 keys"
    ):
        fg.read_spec(tmp_path, "spec")


def test_vl_checklist_leaves_out_what_has_no_image(tmp_path):
    files = {
        "Attribute/vaw/action": 8,
        "Attribute/vg/action": 6,
        "Relation/vg/spatial": 10,
        "Object/Size/swig_place": 0,
    }
    right, number = {}, 0
    for file, count in files.items():
        rows = []
        for i in range(count):
            number += 1
            image = photo(tmp_path / "vg" / f"VG_100K_{1 + i % 2}" / f"{number}.jpg", number)
            texts = [f"{what} {number}" for what in ("right", "wrong")]
            rows.append([f"VG_100K_{1 + i % 2}/{number}.jpg", {"POS": [texts[0], "other"], "NEG": texts[1]}])
            scores = [cosine(image, of_text(text)) for text in texts]
            right.setdefault(file, []).append(scores[0] > scores[1])
        write_json(tmp_path / "data" / f"{file}.json", rows)
    write_json(tmp_path / "corpus.json", {"large": {}})
    for gone in (1, 15):
        next((tmp_path / "vg").rglob(f"{gone}.jpg")).unlink()
    photo(tmp_path / "vg" / "other" / "1.jpg", 0)  # of the same name in another folder
    del right["Attribute/vaw/action"][0], right["Relation/vg/spatial"][0]
    with pytest.warns(UserWarning, match="vl: 2 of 24 items lack an image under"):
        tasks = fg.read_vl_checklist(tmp_path, "vl")
    assert [task.name for task in tasks] == ["vl-attribute", "vl-relation"]
    found = run(tasks)
    a, b, c = (sum(values) / len(values) for values in right.values())
    assert found["vl-attribute"]["vaw-action"] == pytest.approx(a)
    assert found["vl-attribute"]["vg-action"] == pytest.approx(b)
    assert found["vl-attribute"]["macro"] == pytest.approx((a + b) / 2)
    assert found["vl-relation"]["micro"] == pytest.approx(c)
    assert 0 < a + b + c < 3
    shutil.rmtree(tmp_path / "vg")
    with pytest.raises(PowerclipError, match="holds no item of vl with its images; add them"):
        fg.read_vl_checklist(tmp_path, "vl")
    (tmp_path / "data" / "Object" / "Size" / "swig_place.json").write_bytes(b'["caf\xe9"]')
    with pytest.raises(PowerclipError, match=r"swig_place\.json is not UTF-8 .*; save it as UTF-8"):
        fg.read_vl_checklist(tmp_path, "vl")


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_svo_probes_chooses_between_two_images(tmp_path):
    rows, right = [], {"subj": [], "verb": [], "obj": []}
    for i in range(30):
        kind = ("subj", "verb", "obj")[i % 3]
        pos, neg = (photo(tmp_path / "images" / f"{number}.jpg", number) for number in (2 * i, 2 * i + 1))
        sentence = f"A person runs, {i} times."
        row = {"sentence": sentence, "pos_triplet": "person,run,", "pos_image_id": 2 * i, "neg_image_id": 2 * i + 1}
        rows.append(row | {f"{other}_neg": other == kind for other in right})
        right[kind].append(cosine(of_text(sentence), pos) > cosine(of_text(sentence), neg))
    write_csv(tmp_path / "svo_probes.csv", rows)
    (tmp_path / "images" / "1.jpg").unlink()
    del right["subj"][0]
    with pytest.warns(UserWarning, match="svo: 1 of 30 items lack an image"):
        found = run(fg.read_svo_probes(tmp_path, "svo"))["svo"]
    assert found["micro"] == share([value for values in right.values() for value in values])
    for kind, values in right.items():
        assert found[kind] == pytest.approx(sum(values) / len(values))


def test_negbench_asks_for_one_of_four_captions_and_retrieves(tmp_path):
    rows, right, vectors = [], {"positive": [], "negative": [], "hybrid": []}, []
    for i in range(30):
        image, kind = photo(tmp_path / "val2017" / f"{i:012}.jpg", i), list(right)[i % 3]
        captions = [f"a dog, {i}, but no cat {choice}" for choice in range(4)]
        row = {"image_path": f"data/coco/images/val2017/{i:012}.jpg", "correct_answer": i % 4}
        rows.append(row | {f"caption_{c}": text for c, text in enumerate(captions)} | {"correct_answer_template": kind})
        scores = [cosine(image, of_text(text)) for text in captions]
        right[kind].append(max(scores) == scores[i % 4])
        vectors.append((image, captions[:2]))
    write_csv(tmp_path / fg.NEGBENCH["coco"], rows)
    pairs = [{"filepath": row["image_path"], "captions": str(of)} for row, (_, of) in zip(rows, vectors, strict=True)]
    write_csv(tmp_path / fg.NEGBENCH["coco-negated-retrieval"], pairs)
    found = run(fg.read_negbench(tmp_path, "neg"))
    assert list(found) == ["neg-coco", "neg-coco-negated-retrieval"]
    assert found["neg-coco"]["micro"] == share([value for values in right.values() for value in values])
    for kind, values in right.items():
        assert found["neg-coco"][kind] == pytest.approx(sum(values) / len(values))
    ranks = []
    for i, (own, captions) in enumerate(vectors):
        for text in captions:
            scores = [cosine(image, of_text(text)) for image, _ in vectors]
            ranks.append(sum(score > cosine(own, of_text(text)) for score in scores))
            assert scores[i] == cosine(own, of_text(text))
    assert found["neg-coco-negated-retrieval"]["t2i_R@5"] == share([rank < 5 for rank in ranks])


@pytest.mark.parametrize(
    ("file", "content", "read", "message"),
    [
        ("test.json", [{"caption_1": "a"}], fg.read_colorswap, r"test\.json is a list of 1 rows such as: caption_1"),
        ("COLA_multiobjects_matching_benchmark.json", [["a"]], fg.read_cola, "does not have its release's format"),
        (
            "COLA_multiobjects_matching_benchmark.json",
            [["a.jpg", 1, "b.jpg", "b"]],
            fg.read_cola,
            "benchmark.json does not have .*a text or a list of texts expected",
        ),
        ("COLA_multiobjects_matching_benchmark.json", {"labels": []}, fg.read_cola, "list expected, dict of 1 found"),
        ("eqben.json", {"a": 1}, fg.read_eqben, r"eqben\.json does not have its release's format"),
        ("other.json", [], fg.read_eqben, "holds 0 annotations; expected one, eqben_subset"),
        ("Questions.csv", [], fg.read_mmvp, r"Questions\.csv does not have its release's format"),
        ("a.parquet", [], fg.read_bivlc, r"a\.parquet cannot be read"),
        ("b.json", [], fg.read_bivlc, "holds no row of a Parquet file"),
        ("train.parquet", [], fg.read_colorswap, "holds no row of a Parquet file named test; download"),
        (
            "Object/a.json",
            [["a.jpg", {"POS": []}]],
            fg.read_vl_checklist,
            r"a\.json does not have its release's format",
        ),
        ("svo_probes.csv", [], fg.read_svo_probes, r"svo_probes\.csv does not have its release's format"),
        ("b.json", [], fg.read_negbench, "lacks NegBench's files; expected some of COCO_val_mcq"),
        ("COCO_val_retrieval.csv", [], fg.read_negbench, r"COCO_val_retrieval\.csv"),
        ("b.json", [], fg.read_crepe, "lacks CREPE's files"),
        ("image2text.json", [], fg.read_spec, r"lacks absolute_size/image2text\.json"),
        ("swap_att.json", [], fg.read_sugarcrepe_pp, r"lacks replace_att\.json"),
    ],
)
def test_other_forms_are_one_line_with_the_file_s_name(file, content, read, message, tmp_path):
    write_json(tmp_path / file, content)
    with pytest.raises(PowerclipError, match=message) as raised:
        read(tmp_path, "name")
    assert "\n" not in str(raised.value)


def test_a_caption_where_several_are_to_choose_from_is_not_taken_apart(tmp_path):
    photo(tmp_path / "mug_left_of_plate.jpeg", 0)
    row = {"image_path": "mug_left_of_plate.jpeg", "caption_options": "a mug"}
    write_json(tmp_path / "controlled_images_dataset.json", [row])
    with pytest.raises(PowerclipError, match=r"dataset\.json does not have its release's format .*not enough values"):
        fg.read_whatsup(tmp_path, "whatsup")


def test_whatsup_s_incomplete_pairs_and_sets_are_left_out(tmp_path):
    whatsup(tmp_path)
    file = tmp_path / "controlled_images_dataset.json"
    rows = json.loads(file.read_text())
    write_json(
        file, [*rows[1:5], rows[6], rows[6], *rows[8:]]
    )  # of the first without left, of the second without right
    with pytest.warns(UserWarning, match="are left out") as warned:
        _, pairs, sets = fg.read_whatsup(tmp_path, "w")
    assert {str(one.message) for one in warned} == {
        "w: 3 of 96 pairs do not have 2 photos and are left out",
        "w: 2 of 48 sets do not have 4 photos and are left out",
    }
    assert (len(pairs.items), len(sets.items)) == (192 - 6, 192 - 8)
    write_json(file, rows[:1])
    (tmp_path / "controlled_clevr_dataset.json").unlink()
    with pytest.warns(UserWarning, match="1 of 1"):
        assert [task.name for task in fg.read_whatsup(tmp_path, "w")] == ["w"]


def crepe_file(folder, name, **change):
    photo(folder / "VG_100K" / "1.jpg", 1)
    row = {"image_id": 1, "x": 0, "y": 0, "width": 2, "height": 2, "caption": "a", "hard_negs": ["b"]}
    write_csv(folder / name, [row, row | change])


def test_crepe_s_files_count_once_and_items_need_a_wrong_caption(tmp_path):
    name = "prod_vg_hard_negs_atom_complexity_4.csv"
    crepe_file(tmp_path, name, hard_negs=[])
    with pytest.warns(UserWarning, match="c-productivity: 1 of 2 items have no wrong answer and are left out"):
        ((item,),) = (task.items for task in fg.read_crepe(tmp_path, "c"))
    assert item.negatives == ["b"]
    for box in ({"width": 0}, {"height": -1}, {"x": "inf"}, {"y": "nan"}):
        crepe_file(tmp_path, name, **box)
        with pytest.raises(PowerclipError, match=rf"{name} does not have its release's format"):
            fg.read_crepe(tmp_path, "c")
    crepe_file(tmp_path, name)
    for other in ("prod_vg_hard_negs_atom_complexity_4 (1).csv", "prod_vg_hard_negs_atom.csv"):
        crepe_file(tmp_path, other)
        with pytest.raises(PowerclipError, match="which is not a name of CREPE's files; rename or remove it"):
            fg.read_crepe(tmp_path, "c")
        (tmp_path / other).unlink()


def test_second_copies_of_files_are_refused(tmp_path):
    bivlc(tmp_path)
    shutil.copy(tmp_path / "data" / "test-00000.parquet", tmp_path / "copy.parquet")
    with pytest.raises(PowerclipError, match=r"copy\.parquet and .* have the same content; keep one of them"):
        fg.read_bivlc(tmp_path, "b")
    for name in ("action", "action (1)"):
        write_json(tmp_path / "Attribute" / f"{name}.json", [["a.jpg", {"POS": "a", "NEG": "b"}]])
    with pytest.raises(PowerclipError, match=r"action.*\.json have the same content; keep one of them"):
        fg.read_vl_checklist(tmp_path, "v")


def test_mmvp_s_rows_are_pairs_of_one_type(tmp_path):
    mmvp(tmp_path)
    lines = (tmp_path / "Questions.csv").read_text().splitlines(keepends=True)
    (tmp_path / "Questions.csv").write_text("".join([lines[0], *lines[2:-1]]))
    with pytest.raises(PowerclipError, match=r"Questions\.csv does not have .*questions 2k - 1 and 2k of one type"):
        fg.read_mmvp(tmp_path, "m")


@pytest.mark.parametrize("cell", ["true", "1", ""])
def test_svo_probes_says_what_differs_by_true_and_false(cell, tmp_path):
    for number in (1, 2):
        photo(tmp_path / f"{number}.jpg", number)
    row = {"sentence": "a", "pos_image_id": 1, "neg_image_id": 2, "subj_neg": cell, "verb_neg": False, "obj_neg": False}
    write_csv(tmp_path / "svo_probes.csv", [row])
    with pytest.raises(PowerclipError, match=rf"svo_probes\.csv does not have .*KeyError: '{cell}'"):
        fg.read_svo_probes(tmp_path, "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct_answer": -1}, "KeyError: -1.0"),
        ({"correct_answer": 1.7}, "KeyError: 1.7"),
        ({"correct_answer": "nan"}, "KeyError: nan"),
        ({"correct_answer_template": "micro"}, "n-coco has the kind 'micro', which is a metric's name"),
    ],
)
def test_negbench_s_right_answer_is_one_of_four(change, message, tmp_path):
    photo(tmp_path / "1.jpg", 1)
    row = {"image_path": "1.jpg", "correct_answer": "2.0", "correct_answer_template": "hybrid"}
    row |= {f"caption_{i}": str(i) for i in range(4)}
    write_csv(tmp_path / fg.NEGBENCH["coco"], [row])
    ((item,),) = (task.items for task in fg.read_negbench(tmp_path, "n"))
    assert (item.positive, list(item.negatives)) == ("2", ["0", "1", "3"])
    write_csv(tmp_path / fg.NEGBENCH["coco"], [row | change])
    with pytest.raises(PowerclipError, match=message):
        fg.read_negbench(tmp_path, "n")


@pytest.mark.parametrize("row", [{"label": 1.0}, {"keys": ["a", 2]}, {"keys": ["a"], "label": 0}])
def test_spec_s_rows_choose_between_texts_by_a_whole_number(row, tmp_path):
    for kind in fg.SPEC:
        photo(tmp_path / kind / "a.png", 1)
        write_json(tmp_path / kind / "image2text.json", [{"query": "a.png", "keys": ["a", "b"], "label": 1} | row])
    with pytest.raises(PowerclipError, match=r"image2text\.json|no item of spec-i2t has a wrong answer"):
        fg.read_spec(tmp_path, "spec")
