# pyright: basic
"""Crops and the order of data: pure functions, so that a resumed run sees what an uninterrupted one sees."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared.contracts.training.datasets import DatasetSpec
from shared.contracts.training.diffusion import check_diffusion
from trainer.data.buckets import BucketRule, Placement, place, rule_for
from trainer.data.discover import Picture, discover
from trainer.data.sampler import Plan, Sampler, SamplerState, Visit, plan_for
from trainer.failures import AttemptFailed
from trainer.report.events import Redactor, Reporter
from trainer.report.spool import Spool


def rule(**settings: Any) -> BucketRule:
    return BucketRule(**{"edge": 64, "edge_type": "pixel", "rounding": 2, "alignment": 8, **settings})


def placed(width: int, height: int, picture: str = "p", **settings: Any) -> Placement:
    placement = place(width, height, rule(**settings), picture)
    assert placement is not None
    return placement


def test_crop_styles_differ_only_in_their_offset() -> None:
    centred, corner = (placed(200, 100, aspect="square", style=style) for style in ("center", "corner"))
    assert (centred.size, centred.resized) == ((64, 64), (128, 64))
    assert (centred.offset, corner.offset) == ((32, 0), (0, 0))
    drawn = {placed(200, 100, f"p{index}", aspect="square", style="random").offset for index in range(20)}
    assert len(drawn) > 10
    assert all(0 <= left <= 64 and top == 0 for left, top in drawn)
    assert placed(200, 100, style="random") == placed(200, 100, style="random")
    assert placed(200, 100, style="random", aspect="square") != placed(
        200, 100, style="random", aspect="square", seed=2
    )


def test_the_closest_aspect_is_taken_and_a_random_one_is_drawn_from_the_list() -> None:
    aspects = (1.0, 0.5, 2.0)
    assert placed(190, 100, aspect="closest", aspects=aspects).size == (128, 64)
    assert placed(100, 110, aspect="closest", aspects=aspects).size == (64, 64)
    sizes = {placed(500, 500, f"p{index}", aspect="random", aspects=aspects).size for index in range(30)}
    assert sizes == {(64, 64), (64, 128), (128, 64)}


def test_an_aspect_that_would_enlarge_too_much_is_not_chosen() -> None:
    settings: dict[str, Any] = {"aspect": "closest", "aspects": (1.0, 2.0), "upscale": 0.2}
    assert placed(120, 60, **settings).size == (128, 64)
    assert placed(70, 60, **settings).size == (64, 64)
    assert place(32, 32, rule(**settings), "p") is None


@pytest.mark.parametrize(
    ("size", "resized"),
    [((1000, 500), (192, 96)), ((300, 150), (128, 64)), ((20, 10), (128, 64))],
)
def test_large_pictures_are_made_smaller_before_the_crop_and_others_cover_it(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    assert placed(*size, aspect="square", largest=200, downsampled=96).resized == resized


def test_megapixels_are_areas() -> None:
    found = placed(2000, 2000, edge=0.01, edge_type="area", aspect="square", largest=1.0, downsampled=0.04)
    assert (found.size, found.resized) == ((104, 104), (200, 200))


@pytest.fixture
def reporter(tmp_path: Path) -> Any:
    spool = Spool(tmp_path / "spool", "job", "attempt")
    opened = Reporter(spool, Redactor())
    opened.emit("hello")
    yield opened
    spool.close()


def test_each_repeat_of_a_random_crop_is_a_picture_of_its_own(tmp_path: Path, reporter: Any) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (90, 30), (index, 0, 0)).save(folder / f"p{index}.png")
    dataset = DatasetSpec(id="d", instance_data_dir=str(folder), crop=True, repeats=3, max_num_samples=2)
    spec = check_diffusion({"model_family": "flux", "model_type": "lora", "resolution": 32})
    found = discover(dataset, folder, rule_for(spec, dataset, 8), reporter)
    assert len(found) == 8
    assert len({picture.sha256 for picture in found}) == 2
    assert len({(picture.sha256, picture.placement) for picture in found}) > 5
    assert plan_for(spec, dataset).repeats == 0


def pictures_of(counts: dict[str, int]) -> list[Picture]:
    placement = Placement((32, 32), (32, 32), (0, 0))
    return [
        Picture(dataset, Path(f"{dataset}{index}.png"), f"{dataset}{index}", placement, ("a",))
        for dataset, count in counts.items()
        for index in range(count)
    ]


def datasets_of(pictures: list[Picture], batches: list[list[Visit]]) -> list[str]:
    return [pictures[batch[0].picture].dataset_id for batch in batches]


def test_each_dataset_has_its_own_batch_size() -> None:
    pictures = pictures_of({"a": 8, "b": 6})
    batches = Sampler(pictures, {"a": Plan(4), "b": Plan(2)}, 1, 0.0).batches_of(0)
    sizes = {(name, len(batch)) for name, batch in zip(datasets_of(pictures, batches), batches, strict=True)}
    assert sizes == {("a", 4), ("b", 2)}
    assert len(batches) == 5


def first_of_many(counts: dict[str, int], weights: dict[str, float], *, uniform: bool = False) -> float:
    """How often the first batch of an epoch is one of `a`."""
    pictures = pictures_of(counts)
    plans = {name: Plan(1, weight=weight) for name, weight in weights.items()}
    sampler = Sampler(pictures, plans, 1, 0.0, uniform=uniform)
    return sum(datasets_of(pictures, sampler.batches_of(epoch))[0] == "a" for epoch in range(400)) / 400


def test_probability_and_sampling_set_which_dataset_comes_early() -> None:
    assert first_of_many({"a": 5, "b": 5}, {"a": 1, "b": 1}) == pytest.approx(0.5, abs=0.1)
    assert first_of_many({"a": 5, "b": 5}, {"a": 9, "b": 1}) == pytest.approx(0.9, abs=0.1)
    assert first_of_many({"a": 2, "b": 18}, {"a": 1, "b": 1}) == pytest.approx(0.1, abs=0.1)
    assert first_of_many({"a": 2, "b": 18}, {"a": 1, "b": 1}, uniform=True) == pytest.approx(0.5, abs=0.1)


def test_a_dataset_comes_and_goes_by_epoch() -> None:
    pictures = pictures_of({"a": 4, "b": 4})
    sampler = Sampler(pictures, {"a": Plan(2, end_epoch=2), "b": Plan(2, start_epoch=2)}, 1, 0.0)
    seen = [set(datasets_of(pictures, sampler.batches_of(epoch))) for epoch in range(3)]
    assert seen == [{"a"}, {"a", "b"}, {"b"}]
    assert sampler.batches_in(3) == 8


def test_a_dataset_comes_and_goes_by_step_and_resumes_there() -> None:
    pictures = pictures_of({"a": 4, "b": 4})
    plans = {"a": Plan(2, end_step=3), "b": Plan(2, start_step=3)}

    def take(sampler: Sampler, count: int) -> list[str]:
        seen: list[str] = []
        for _ in range(count):
            sampler.begin_update()
            seen.extend(datasets_of(pictures, [sampler.next_batch()]))
        return seen

    whole, half = Sampler(pictures, plans, 1, 0.0), Sampler(pictures, plans, 1, 0.0)
    assert take(whole, 7) == ["a"] * 3 + ["b"] * 4
    take(half, 2)
    state = SamplerState(half.state.epoch, half.state.position, half.state.update)
    resumed = Sampler(pictures, plans, 1, 0.0)
    resumed.restore(state)
    assert take(resumed, 5) == ["a"] + ["b"] * 4
    assert resumed.state == whole.state
    over = Sampler(pictures[:4], {"a": Plan(2, end_step=1)}, 1, 0.0)
    with pytest.raises(AttemptFailed, match="no dataset is used"):
        take(over, 2)


def test_small_buckets_are_kept_or_filled_when_asked() -> None:
    pictures = pictures_of({"a": 3})
    kept = Sampler(pictures, {"a": Plan(8, keeps_small_buckets=True)}, 1, 0.0)
    assert [len(batch) for batch in kept.batches_of(0)] == [3]
    filled = Sampler(pictures, {"a": Plan(8, fills_small_buckets=True)}, 1, 0.0)
    assert [len(batch) for batch in filled.batches_of(0)] == [8]
    assert filled.notes == ["a/32x32 has 3 pictures for batches of 8: its pictures are repeated 2 times"]
