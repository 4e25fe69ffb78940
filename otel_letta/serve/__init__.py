"""The receiver: OTLP from any program, in any language, becomes reports for Letta agents. Run by ``otel-letta serve``.

``http`` and ``rpc`` are the two ways in, and both end in ``intake``: decode, keep in the spool, hand to the pipeline.
"""
