"""What outlives the process: rows in SQLite or PostgreSQL. Knows neither spans nor Letta, and no report from another.

`open_store` and `open_spool` choose the database by its address.
"""
