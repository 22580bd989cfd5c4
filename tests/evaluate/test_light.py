import pytest
import torch

from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError
from powerclip.evaluate import as_metrics, evaluate_tasks, light_suite
from powerclip.evaluate.run import SCENES_SEED
from powerclip.scenes import evaluation_tasks, generate
from powerclip.tasks import Retrieval
from tests.support.colours import ColourModel, preprocess, tokenizer


def test_the_light_suite_is_small_and_shows_no_image_of_the_real_one():
    light, real = light_suite(image_size=64, size=3), evaluation_tasks(seed=SCENES_SEED, size=3)
    assert [task.name for task in light] == [task.name for task in real]
    for a, b in zip(light, real, strict=True):
        if isinstance(a, Retrieval):
            assert len(a.images) == 3
            seen = {image.tobytes() for image in b.images}
            assert all(image.tobytes() not in seen for image in a.images)


def test_other_suites_are_those_of_the_evaluation(tmp_path):
    write_shards(generate("test", count=5, seed=0), tmp_path)
    tasks = light_suite(["pairs", "scenes"], tmp_path, image_size=64, size=2)
    assert [task.name for task in tasks][-1] == "retrieval"
    assert len(tasks) == 8
    with pytest.raises(PowerclipError, match="unknown suite 'zoo'"):
        light_suite("zoo", image_size=64)
    with pytest.raises(ValueError, match="size is 0"):
        light_suite(image_size=64, size=0)


def test_a_training_goes_on_as_if_it_had_not_been_watched():
    model = ColourModel().train()
    state = torch.get_rng_state()
    results = evaluate_tasks(model, preprocess, tokenizer, light_suite(image_size=64, size=2), batch_size=2)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    flat = as_metrics(results)
    assert flat["eval/scenes-object/acc@1"] == results["scenes-object"]["acc@1"]
    assert len(flat) == sum(map(len, results.values()))
