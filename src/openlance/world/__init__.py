"""A procedural world: scenes as data, their pictures, sentences and questions about them, and what these claim.

    scene = sample_scene(np.random.default_rng(0), placement="free", category="position")
    pixels = render(scene, 64, 64)
    prompt, facts = caption(scene, np.random.default_rng(1))

The judge of pixels is `openlance.world.judge`.
"""

from openlance.world.facts import Background, Count, Fact, Lettering, Region, Relation, Thing, holds
from openlance.world.questions import QUESTIONS, Question, ask, askable, sample_question, score
from openlance.world.render import pixel_box, render
from openlance.world.scene import Object, Scene, Text, is_heldout, sample_scene
from openlance.world.vocabulary import CATEGORIES
from openlance.world.words import caption, describe, parse, tells_scene

__all__ = [
    "CATEGORIES", "QUESTIONS", "Background", "Count", "Fact", "Lettering", "Object", "Question", "Region", "Relation",
    "Scene", "Text", "Thing", "ask", "askable", "caption", "describe", "holds", "is_heldout", "parse", "pixel_box",
    "render", "sample_question", "sample_scene", "score", "tells_scene",
]  # fmt: skip
