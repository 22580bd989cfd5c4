import pytest
import torch

from colours import ColourModel, preprocess, tokenizer
from powerclip.data.scenes import evaluation_tasks, generate
from powerclip.data.shards import write_shards
from powerclip.evaluate import as_metrics, evaluate_tasks, light_suite
from powerclip.evaluate.run import SCENES_SEED
from powerclip.types import Retrieval


def test_the_light_suite_is_small_and_shows_no_image_of_the_real_one():
    light, real = light_suite(image_size=64, size=3), evaluation_tasks(seed=SCENES_SEED, size=3)
    assert [task.name for task in light] == [task.name for task in real]
    for a, b in zip(light, real, strict=True):
        if isinstance(a, Retrieval):
            assert len(a.images) == 3
            seen = {image.tobytes() for image in b.images}
            assert all(image.tobytes() not in seen for image in a.images)


def test_it_can_be_the_first_pairs_of_held_out_shards(tmp_path):
    write_shards(generate("test", count=5, seed=0), tmp_path)
    (task,) = light_suite(image_size=64, size=2, data=tmp_path)
    assert len(task.images) == 2
    with pytest.raises(ValueError, match="size is 0"):
        light_suite(image_size=64, size=0)


def test_a_training_goes_on_as_if_it_had_not_been_watched():
    model = ColourModel().train()
    state = torch.get_rng_state()
    results = evaluate_tasks(model, preprocess, tokenizer, light_suite(image_size=64, size=2), batch_size=2)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    flat = as_metrics(results)
    assert flat["evaluation/scenes-object/acc@1"] == results["scenes-object"]["acc@1"]
    assert len(flat) == sum(map(len, results.values()))
