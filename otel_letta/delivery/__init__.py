"""From reports to a Letta agent: when to send which report, in which order, and what a failure means.

Knows threads and time, but neither spans nor HTTP: it speaks to a `Transport`.
"""
