"""The Studio: every task of a model as one page in the browser, over the server's own queue and files.

`page.mount(app, ...)` puts it into an application of `serve.app`; `openlance studio` and `openlance serve --studio` do.
What the page knows of a result is a `calls.Call`, which the queue does, the browser remembers and Python repeats.
"""
