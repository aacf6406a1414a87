import numpy as np
import pytest

from toyworld.facts import Count, Relation, Thing, holds
from toyworld.scene import (
    Object,
    Scene,
    clashes,
    displaced,
    extent,
    half_box,
    is_heldout,
    is_valid,
    jitter_of,
    legible,
    relation_between,
    sample_scene,
)
from toyworld.vocabulary import (
    BACKGROUNDS,
    CATEGORIES,
    COLORS,
    HELDOUT_CATEGORIES,
    HELDOUT_PAIRS,
    HELDOUT_TRIPLES,
    OPPOSITE,
    SHAPES,
    SIZES,
)

KINDS = (*CATEGORIES, "mixed")
PLACEMENTS = ("canonical", "loose", "free", 0.6)


def scenes(n: int = 25, **settings) -> list[Scene]:
    rng = np.random.default_rng(5)
    return [sample_scene(rng, **settings) for _ in range(n)]


@pytest.mark.parametrize("category", KINDS)
def test_the_same_seed_draws_the_same_scene(category):
    assert scenes(5, category=category) == scenes(5, category=category)
    assert len(set(scenes(5, category=category))) == 5


@pytest.mark.parametrize("category", KINDS)
@pytest.mark.parametrize("aspect", [1.0, 1.5, 2 / 3])
def test_everything_lies_inside_and_nothing_touches(category, aspect):
    width, height = extent(aspect)
    for placement in PLACEMENTS:
        for scene in scenes(8, category=category, placement=placement, aspect=aspect):
            items = [*scene.objects, *([scene.text] if scene.text else [])]
            boxes = [
                (i.x * width - hx, i.y * height - hy, i.x * width + hx, i.y * height + hy)
                for i in items for hx, hy in [half_box(i)]
            ]  # fmt: skip
            assert boxes
            assert all(x1 > 0 and y1 > 0 and x2 < width and y2 < height for x1, y1, x2, y2 in boxes)
            assert is_valid(scene)


def test_objects_that_touch_or_stick_out_are_not_valid():
    left, right = Object(shape="square", color="red", x=0.3), Object(shape="square", color="blue", x=0.62)
    assert is_valid(Scene(objects=(left,)))
    assert not is_valid(Scene(objects=(left, right)))
    assert not is_valid(Scene(objects=(Object(shape="star", color="red", x=0.1),)))


@pytest.mark.parametrize("category", KINDS)
def test_training_never_shows_a_held_out_combination(category):
    for placement in PLACEMENTS:
        assert not any(map(is_heldout, scenes(25, category=category, placement=placement)))


@pytest.mark.parametrize("category", HELDOUT_CATEGORIES)
def test_held_out_scenes_always_show_one(category):
    assert all(map(is_heldout, scenes(8, category=category, heldout=True)))


def test_about_a_tenth_is_held_out_and_it_does_not_matter_which_side_is_named_first():
    assert len(HELDOUT_PAIRS) == 5
    assert {c for c, _ in HELDOUT_PAIRS} <= set(COLORS) and {s for _, s in HELDOUT_PAIRS} <= set(SHAPES)
    assert len(HELDOUT_TRIPLES) == 14  # 7 of 72, each from both sides
    assert all((b, OPPOSITE[relation], a) in HELDOUT_TRIPLES for a, relation, b in HELDOUT_TRIPLES)


def test_every_object_can_be_seen_on_its_background():
    rgb = {name: np.array(value) for name, value in BACKGROUNDS.items()}
    for color in COLORS:
        for background in BACKGROUNDS:
            if not clashes(color, background):
                assert np.linalg.norm(rgb[color] - rgb[background]) > 100
    for scene in scenes(100):
        assert not any(clashes(o.color, scene.background) for o in scene.objects)
        assert scene.text is None or legible(scene.text.color, scene.background)


def test_a_category_shows_what_it_says():
    for scene in scenes(40, category="count"):
        first = scene.objects[0]
        assert holds(scene, Count(Thing(first.shape, first.color, first.fill, first.size), len(scene.objects)))
    for scene in scenes(40, category="position"):
        a, b = scene.objects
        relation = relation_between(a, b)
        assert relation and holds(scene, Relation(Thing(a.shape, a.color), relation, Thing(b.shape, b.color)))
    for scene in scenes(40, category="mixed"):  # "a red circle" means one look
        looks = {(o.shape, o.color, o.fill, o.size) for o in scene.objects}
        assert len(looks) == len({look[:2] for look in looks})


def test_crowded_scenes_are_not_rarer():
    for category, numbers in (("count", (2, 3, 4)), ("mixed", (1, 2, 3, 4))):
        found = [len(scene.objects) for scene in scenes(120, category=category)]
        assert min(found.count(n) for n in numbers) > 0.5 * 120 / len(numbers)


def test_sizes_never_overlap():
    for scene in scenes(200, category="color"):
        (o,) = scene.objects
        assert min(SIZES, key=lambda name: abs(SIZES[name] - o.r)) == o.size


def test_placement_widens_steadily_from_canonical_to_free():
    jitters = [jitter_of(spread) for spread in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert jitters == sorted(jitters)
    assert (jitters[0], jitters[-1]) == pytest.approx((jitter_of("canonical"), jitter_of("free")))
    assert not any(displaced(s) for s in scenes(40, category="single", placement="canonical"))
    spread = [np.std([s.objects[0].x for s in scenes(60, category="single", placement=p)]) for p in PLACEMENTS[:3]]
    assert spread == sorted(spread)


@pytest.mark.parametrize(
    "settings", [{"placement": "wild"}, {"placement": 1.5}, {"category": "dogs"}, {"aspect": 20.0},
                 {"category": "text", "heldout": True}]
)  # fmt: skip
def test_a_wrong_setting_is_named_with_what_to_use(settings):
    with pytest.raises(ValueError, match="use "):
        sample_scene(np.random.default_rng(0), **settings)
