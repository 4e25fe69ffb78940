"""Programs that report by events of their own instead of by spans; each is a folder.

An integration reads its program's events, keeps the tasks that are under way in a `Source` (see
`otel_letta.pipeline.source`), and hands the events over by `Handle.call`. Nothing below this room knows of it.
"""
