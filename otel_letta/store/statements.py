"""The SQL of the store in PostgreSQL, in a schema of its own. Values are parameters, always."""

SCHEMA = "CREATE SCHEMA IF NOT EXISTS otel_letta"
TABLES = (
    "CREATE TABLE otel_letta.meta (version integer NOT NULL)",
    """CREATE TABLE otel_letta.entries (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, owner text NOT NULL, scope text NOT NULL,
        lane text NOT NULL, body text NOT NULL, created double precision NOT NULL, posted double precision, note text
    )""",
    "CREATE INDEX entries_of_lane ON otel_letta.entries (owner, lane, id)",
    """CREATE TABLE otel_letta.standings (
        key text PRIMARY KEY, owner text, scope text NOT NULL, lane text NOT NULL, body text NOT NULL,
        waiting boolean NOT NULL, owed boolean NOT NULL, updated timestamptz NOT NULL DEFAULT clock_timestamp()
    )""",
    "CREATE INDEX standings_of_owner ON otel_letta.standings (owner)",
    """CREATE TABLE otel_letta.owners (
        name text PRIMARY KEY, server_started timestamptz NOT NULL DEFAULT pg_postmaster_start_time()
    )""",
    """CREATE TABLE otel_letta.spool (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, kind text NOT NULL, body bytea NOT NULL,
        created double precision NOT NULL, owner text NOT NULL
    )""",
    "CREATE INDEX spool_of_owner ON otel_letta.spool (owner, id)",
)
TO_VERSION_2 = (
    "ALTER TABLE otel_letta.spool ADD COLUMN owner text NOT NULL DEFAULT ''",  # nobody's, for the first who comes
    "ALTER TABLE otel_letta.spool ALTER COLUMN owner DROP DEFAULT",
    "CREATE INDEX spool_of_owner ON otel_letta.spool (owner, id)",
    "UPDATE otel_letta.meta SET version = 2",
)
IS_MADE = "SELECT to_regclass('otel_letta.meta') IS NOT NULL"
GET_VERSION = "SELECT version FROM otel_letta.meta"
SET_VERSION = "INSERT INTO otel_letta.meta (version) VALUES (%s)"
_ENTRY = "id, scope, lane, body, created, posted, note, owner"
_STANDING = "key, scope, lane, body, waiting, owed, owner"
_IN_SCOPES = "(cardinality(%s::text[]) = 0 OR scope = ANY(%s))"

ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(%s)"
TAKE = "SELECT pg_try_advisory_lock(%s)"
TAKE_DEAD = "SELECT pg_try_advisory_xact_lock(%s)"
GIVE = "SELECT pg_advisory_unlock(%s)"
IS_LOCKED = """
    SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s AND objid::bigint = %s
    AND objsubid = 1 AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
END_SESSION = """
    SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s
    AND objid::bigint = %s AND objsubid = 1 AND granted AND pid <> pg_backend_pid()
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
ASYNCHRONOUS = "SET LOCAL synchronous_commit = off"
USED = "SELECT coalesce(sum(octet_length(body)), 0) FROM otel_letta.entries"

PUT_STANDING = """
    INSERT INTO otel_letta.standings (key, owner, scope, lane, body, waiting, owed) VALUES (%s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, scope = excluded.scope, lane = excluded.lane,
    body = excluded.body, waiting = excluded.waiting, owed = excluded.owed, updated = clock_timestamp()
"""
NOTIFIED = "UPDATE otel_letta.standings SET owed = false WHERE key = %s"
TAKE_NOTICE = "UPDATE otel_letta.standings SET owed = false WHERE key = %s AND owed"
OVER = "DELETE FROM otel_letta.standings WHERE key = ANY(%s)"
CLAIM = "DELETE FROM otel_letta.standings WHERE key = %s AND owner IS NULL"
NOBODYS = f"SELECT {_STANDING} FROM otel_letta.standings WHERE owner IS NULL AND {_IN_SCOPES} ORDER BY updated"  # noqa: S608
ALL_STANDINGS = f"SELECT {_STANDING} FROM otel_letta.standings ORDER BY updated"  # noqa: S608
EXPIRE_STANDINGS = "DELETE FROM otel_letta.standings WHERE owner IS NULL AND updated < to_timestamp(%s)"

ADD = """
    INSERT INTO otel_letta.entries (owner, scope, lane, body, created, posted) VALUES (%s, %s, %s, %s, %s, %s)
    RETURNING id
"""
SETTLED = "DELETE FROM otel_letta.entries WHERE id = ANY(%s) AND owner = %s"
MOVED = "UPDATE otel_letta.entries SET scope = %s, lane = %s WHERE id = %s AND owner = %s"
NOTES = """
    UPDATE otel_letta.entries SET note = %s, posted = CASE WHEN %s THEN posted END WHERE id = %s AND owner = %s
"""
POSTED = "UPDATE otel_letta.entries SET posted = %s WHERE id = ANY(%s) AND owner = %s RETURNING id"
KNOWN = "SELECT id FROM otel_letta.entries WHERE id = ANY(%s) AND owner = %s"
WAITING = f"""
    SELECT {_ENTRY} FROM otel_letta.entries WHERE owner = %s AND lane = %s AND id > %s ORDER BY id LIMIT %s
"""  # noqa: S608
LANES = "SELECT lane, count(*) FROM otel_letta.entries WHERE owner = %s GROUP BY lane ORDER BY min(id)"
EXPIRE = f"DELETE FROM otel_letta.entries WHERE owner = %s AND created < %s RETURNING {_ENTRY}"  # noqa: S608
ALL_ENTRIES = f"SELECT {_ENTRY} FROM otel_letta.entries WHERE id > %s ORDER BY id LIMIT %s"  # noqa: S608
OWNERS_OF = "SELECT id, owner FROM otel_letta.entries WHERE id = ANY(%s)"
REMOVE = "DELETE FROM otel_letta.entries WHERE id = ANY(%s)"

SPOOL_ADD = "INSERT INTO otel_letta.spool (owner, kind, body, created) VALUES (%s, %s, %s, %s) RETURNING id"
SPOOL_REST = "SELECT id, kind, body, created FROM otel_letta.spool WHERE owner = %s AND id > %s ORDER BY id LIMIT %s"
SPOOL_SETTLE = "DELETE FROM otel_letta.spool WHERE owner = %s AND id = ANY(%s)"
SPOOL_EXPIRE = "DELETE FROM otel_letta.spool WHERE owner = %s AND created < %s"
SPOOL_SIZE = "SELECT count(*), coalesce(sum(octet_length(body)), 0) FROM otel_letta.spool WHERE owner = %s"
SPOOL_OWNERS = "SELECT DISTINCT owner FROM otel_letta.spool WHERE owner <> %s"
SPOOL_ADOPT = "UPDATE otel_letta.spool SET owner = %s WHERE owner = %s RETURNING id"

OWNERS = f"""
    SELECT owner FROM otel_letta.entries WHERE {_IN_SCOPES}
    UNION SELECT owner FROM otel_letta.standings WHERE owner IS NOT NULL AND {_IN_SCOPES}
"""  # noqa: S608
BE_BORN = """
    INSERT INTO otel_letta.owners (name) VALUES (%s)
    ON CONFLICT (name) DO UPDATE SET server_started = pg_postmaster_start_time()
"""
BURY = """
    DELETE FROM otel_letta.owners AS gone WHERE name = %s
    AND NOT EXISTS (SELECT 1 FROM otel_letta.entries WHERE owner = gone.name)
    AND NOT EXISTS (SELECT 1 FROM otel_letta.standings WHERE owner = gone.name)
    AND NOT EXISTS (SELECT 1 FROM otel_letta.spool WHERE owner = gone.name)
"""
OUTLIVED = """
    SELECT server_started = pg_postmaster_start_time(),
    extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::double precision
    FROM otel_letta.owners WHERE name = %s
"""
ADOPT = f"""
    INSERT INTO otel_letta.entries (owner, scope, lane, body, created, posted, note)
    SELECT %s, scope, lane, body, created, posted, note FROM otel_letta.entries
    WHERE owner = %s AND {_IN_SCOPES} ORDER BY id
"""  # noqa: S608
ADOPTED = f"DELETE FROM otel_letta.entries WHERE owner = %s AND {_IN_SCOPES}"  # noqa: S608
LEAVE_WAITING = f"UPDATE otel_letta.standings SET owner = NULL WHERE owner = %s AND waiting AND {_IN_SCOPES}"  # noqa: S608
LOST = f"SELECT {_STANDING} FROM otel_letta.standings WHERE owner = %s AND {_IN_SCOPES} ORDER BY updated"  # noqa: S608
