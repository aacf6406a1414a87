"""A server that speaks OpenAI's API: `app.create_app` puts it together, `openlance serve` runs it.

One queue (`worker`), one thread that owns the model or replicas of Ray's (`cluster`), jobs in SQLite and files by uuid
(`store`). Routes (`images`, `videos`, `chat`) turn a body (`bodies`) and its media (`media`) into items of the queue,
and results into answers.
"""
