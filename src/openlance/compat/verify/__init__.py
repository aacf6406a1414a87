"""Our code against golden vectors: numbers that the released code produced with a tiny random model.

    openlance verify tests/golden

`files` reads a folder in the golden format, `checks` compares and collects, the other modules each know one kind of
file: `requests` (one generation or one answer), `halves` (the same in bfloat16), `training` (a packed batch with
gradients), `modules`, `preprocessing`.
"""
