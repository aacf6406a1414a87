"""Batches of clips are functions of seed and step, of the tasks' own templates, and never show what is held out."""

import numpy as np

from openlance.sequence.segment import Kind
from toyworld.clip_batches import ClipMixture, clip_batch, clip_labels
from toyworld.motion import sample_clip

NOTHING = ClipMixture(drawn=0, animated=0, bridged=0, edited=0, subjects=0, asked=0)


def only(seed=0, step=0, **counts):
    return clip_batch(ClipMixture(**{**vars(NOTHING), **counts}), seed, step)


def shape(sample):
    return [(s.kind.name, s.role.name, s.value.frames if hasattr(s.value, "frames") else 0) for s in sample]


def test_a_batch_is_a_function_of_seed_and_step():
    def fingerprint(batch):
        return [(s.value if isinstance(s.value, str) else s.value.pixels.sum()) for x in batch.samples for s in x]

    counts = {"drawn": 1, "animated": 1, "edited": 1, "subjects": 1, "asked": 1}
    first = fingerprint(only(**counts))
    assert first == fingerprint(only(**counts)) != fingerprint(only(step=1, **counts))


def test_every_task_has_its_template():
    prompt, clip = ("TEXT", "PROMPT", 0), ("LATENTS", "TARGET", 9)
    assert shape(only(drawn=1).samples[0]) == [prompt, clip]
    animated = only(animated=1).samples[0]
    assert shape(animated) == [prompt, clip] and (animated[1].given.pixels == animated[1].value.pixels[:1]).all()
    assert shape(only(bridged=1).samples[0]) == [("LATENTS", "LAST", 1), prompt, clip]
    source = [("PATCHES", "SOURCE", 9), ("LATENTS", "SOURCE", 9)]
    assert shape(only(edited=1).samples[0]) == [*source, prompt, clip]
    given = {tuple(shape(s)[:-2]) for s in only(subjects=8).samples}
    reference = (("PATCHES", "REFERENCE", 1), ("LATENTS", "REFERENCE", 1))
    assert given == {reference, reference * 2}
    asked = only(asked=1).samples[0]
    assert shape(asked) == [("PATCHES", "REFERENCE", 9), prompt, ("TEXT", "TARGET", 0)] and asked[-1].value


def test_labels_follow_the_cells_of_the_tower():
    batch = only(asked=1, frames={5: 1.0})
    clip = batch.samples[0][0].value
    (labels,) = batch.labels.values()
    assert list(batch.labels) == [clip.key] and labels.shape == (3, 3 * 16, 16)


def test_labels_of_a_later_frame_show_where_things_are_by_then():
    rng = np.random.default_rng(0)
    clip = next(c for c in (sample_clip(rng, frames=5) for _ in range(50)) if c.motions[0].kind == "down")
    labels = clip_labels(clip, 64, 64)[0].reshape(3, 16, 16)
    rows = [np.nonzero(part)[0].mean() for part in labels]
    assert rows[0] < rows[1] < rows[2] or len(clip.motions) > 1


def test_frames_and_sizes_come_by_weight():
    samples = only(drawn=12, frames={5: 1.0, 9: 1.0}, sizes={(64, 64): 1.0, (64, 96): 1.0}).samples
    assert len({s[-1].size for s in samples}) == 4 and all(s[-1].size == s[-1].value.pixels.shape[:3] for s in samples)


def test_what_the_tower_sees_of_an_edit_or_a_subject_is_labelled_too():
    for counts in ({"edited": 2, "frames": {5: 1.0}}, {"subjects": 2, "frames": {5: 1.0}}):
        batch = only(**counts)
        seen = {s.value.key for sample in batch.samples for s in sample if s.kind is Kind.PATCHES}
        assert seen == set(batch.labels)
