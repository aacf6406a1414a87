"""A procedural world for openlance: scenes as data, their pictures and clips, sentences, questions and edits.

    scene = toyworld.scene.sample_scene(np.random.default_rng(0), placement="free", category="position")
    pixels = toyworld.render.render(scene, 64, 64)
    prompt, facts = toyworld.words.caption(scene, np.random.default_rng(1))

It is a plugin: entry points add its source of training data (`world`), its recipe (`nano`), its benchmarks (`world`,
`quality`) and the command `demo`. Nothing in openlance imports it.
"""
