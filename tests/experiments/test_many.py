"""The driver of many runs at a time, and its batches, on a CPU and at the size of seconds."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from powerclip.model import create_model, make_transforms
from powerclip.scenes import evaluation_tasks, generate

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import in_memory
import many
import studies


@pytest.fixture(scope="module")
def samples():
    return in_memory.Samples.of(generate("train", count=40, seed=0), studies.STUDIES["scenes-long"].configs["clip"])


def shape():
    model = create_model("tiny-conv")
    return in_memory.Shape(
        image_size=model.image_size, grid_size=model.grid_size, mean=torch.zeros(3), std=torch.ones(3)
    )


def test_crops_keep_nine_tenths_and_masks_follow(samples):
    config = studies.STUDIES["scenes-long"].configs["gold-alone-softmax"]
    rows, generator = torch.arange(40), torch.Generator().manual_seed(0)
    batch = samples.batch(rows, config, model=shape(), generator=generator)
    assert batch.images.shape == (40, 3, 48, 48)
    whole = torch.nn.functional.interpolate(samples.images / 255, size=(48, 48), mode="bilinear", antialias=True)
    assert (batch.images - whole).abs().mean() < 0.05  # close to the complete image, and not equal to it
    assert not torch.allclose(batch.images, whole, atol=0.02)
    present = batch.region_masks.any(dim=2)
    assert torch.equal(present.sum(dim=1), samples.objects.flatten(2).any(dim=2).sum(dim=1))
    objects = samples.objects.float()  # crops move no patch's content further than to the next
    near = torch.nn.functional.adaptive_max_pool2d(objects, 6)
    near = torch.nn.functional.max_pool2d(near, 3, stride=1, padding=1).flatten(2).bool()
    assert not (batch.region_masks[:, : near.shape[1]] & ~near).any()


def test_batches_are_a_function_of_the_seed(samples):
    config = studies.STUDIES["scenes-long"].configs["unit"]
    batches = [
        samples.batch(torch.arange(8), config, model=shape(), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(batches[0].images, batches[1].images)
    assert torch.equal(batches[0].region_masks, batches[1].region_masks)
    assert not torch.equal(batches[0].images, batches[2].images)
    assert batches[0].region_masks.shape == (8, 10, 36)
    assert batches[0].tokens.shape[1] % 8 == 0


def test_a_result_has_the_tasks_of_the_tables_and_those_of_validation(samples, tmp_path):
    """In this process: a run of ``many.main`` is a fork, which must not come after a backward pass."""
    config = replace(studies.STUDIES["scenes-long"].configs["unit"], steps=2, batch_size=8, log_every_steps=1, seed=1)
    tasks = {
        test: [t for t in evaluation_tasks(seed=int(test), size=3, image_size=48) if "quadruples" not in t.name]
        for test in (False, True)
    }
    images = {id(x): x for given in tasks.values() for task in given for x in many.images_of(task)}
    transform = make_transforms(create_model("tiny-conv"))[1]
    pictures = {key: transform(image) for key, image in images.items()}
    kept = many.result_of(config, samples, tasks, tmp_path / "run", pictures)
    assert kept["config"]["seed"] == 1
    assert kept["curves"]["step"] == [1, 2]
    assert kept["counts"].keys() == kept["validation"].keys()
    assert kept["tasks"].keys() == kept["counts"].keys() | {"scenes-hard-negatives-powerset"}
    assert kept["tasks"]["scenes-object"]["acc@1"] * 3 == pytest.approx(
        round(kept["tasks"]["scenes-object"]["acc@1"] * 3)
    )
