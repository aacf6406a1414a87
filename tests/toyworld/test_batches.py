"""What a batch of the world holds, and that it depends on nothing but its arguments."""

from dataclasses import replace
from functools import partial

import numpy as np

from openlance.sequence.segment import Kind, Role
from toyworld.batches import WorldMixture, placed, world_batch
from toyworld.facts import Region
from toyworld.scene import displaced
from toyworld.subjects import sample_subject

MIXED = WorldMixture(drawn=3, asked=2, edited=24, subjects=24)


def content(samples):
    return [[(s.kind, s.role, s.value if isinstance(s.value, str) else s.value.pixels.tobytes()) for s in sample]
            for sample in samples]  # fmt: skip


def test_a_batch_is_a_function_of_seed_and_step():
    once, again = (content(world_batch(MIXED, 3, 5).samples) for _ in range(2))
    assert once == again != content(world_batch(MIXED, 3, 6).samples)


def test_edits_and_subjects_come_behind_and_change_nothing_before():
    plain = content(world_batch(replace(MIXED, edited=0, subjects=0), 3, 5).samples)
    mixed = content(world_batch(MIXED, 3, 5).samples)
    assert mixed[: len(plain)] == plain and len(mixed) == len(plain) + 48


def test_every_picture_to_look_at_has_labels():
    batch = world_batch(MIXED, 0, 0)
    added = batch.samples[-48:]
    roles = [{s.role for s in sample} for sample in added]
    assert all(sample[-1].kind is Kind.LATENTS for sample in added)
    assert {Role.SOURCE, Role.PROMPT, Role.TARGET} in roles and {Role.REFERENCE, Role.PROMPT, Role.TARGET} in roles
    seen = {s.value.key for sample in batch.samples for s in sample if s.kind is Kind.PATCHES}
    assert seen <= set(batch.labels) and all(isinstance(v, np.ndarray) for v in batch.labels.values())


def test_only_things_whose_place_is_said_stand_far_from_their_usual_one():
    rng = np.random.default_rng(0)
    found = [placed(rng, (0.0, 0.0), partial(sample_subject, rng, n=1)) for _ in range(80)]
    told = [any(isinstance(fact, Region) for fact in one.facts) for one in found]
    far = [displaced(one.scene, by=0.1) for one in found]
    assert any(said and moved for said, moved in zip(told, far)) and not all(told)
    assert not any(moved for said, moved in zip(told, far) if not said)
