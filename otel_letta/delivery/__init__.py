"""From reports to a Letta agent: what to send when, in which order, and what to do when it fails.

Knows threads and time, but neither spans nor HTTP: it speaks to a `Transport`.
"""
