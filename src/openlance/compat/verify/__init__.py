"""Our code against golden vectors: numbers that the released code produced with a tiny random model.

    openlance verify tests/golden

`files` reads a folder in the golden format, `checks` compares by tables of quantities and collects rows, `parts` is the
model under test. The other modules each know one kind of file: `requests` (an image, a video or an answer, in float32
and in half precision; `case` works out what the tables ask for), `training` (a packed batch with gradients), `modules`,
`preprocessing`.
"""
