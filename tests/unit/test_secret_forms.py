"""What secrets look like in the texts of errors. Their beginnings are those of gitleaks' rules."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from otel_letta import secret_forms
from otel_letta.text import clean_error

SECRET = "hunter2hunter2"
KEY = "0hunter2ABCDEFGHIJKLMNOPQRSTUV123"


@pytest.mark.parametrize(
    "error",
    [
        f"Command 'psql --password {SECRET} -h db' returned 1",
        f"Command ['tool', '--api-key={SECRET}'] failed",
        f'tool --db-password "{SECRET} and more" failed',
        f"tool --client-secret {SECRET}",
        f"tool -password {SECRET}",
        f"tool --token {SECRET}",
        f"mysql -u root -p{SECRET} app: exit 1",
        f"mysqldump --host db -p'{SECRET}' app",
        f"mongosh --username bob -p {SECRET}",
        f"sshpass -p {SECRET} ssh host",
        f"redis-cli -h cache -a {SECRET} ping",
        f"docker login -u bob -p {SECRET} registry.example",
        f"curl -u bob:{SECRET} https://api.example",
        f"curl -ubob:{SECRET} https://api.example",
        f"curl --user 'bob:{SECRET}' https://api.example",
        f"http -a bob:{SECRET} api.example",
        f"get() failed with auth=('bob', '{SECRET}')",
        f'auth: ["bob", "{SECRET}"]',
        f"HTTPBasicAuth('bob', '{SECRET}')",
        f"http_auth=(b'bob', b'{SECRET}'), timeout=3",
        f"POST https://hooks.slack.com/services/T000/B000/{SECRET} gave 404",
        f"https://discord.com/api/webhooks/1234/{SECRET}",
        f"https://api.telegram.org/bot123456:{SECRET}/sendMessage timed out",
        f"https://acme.webhook.office.com/webhookb2/{SECRET}@x/IncomingWebhook/y",
        f"host=db user=bob password={SECRET} dbname=app",
        f"Server=db;Uid=bob;Pwd={SECRET};Database=app",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET}==;EndpointSuffix=x",
        f"Endpoint=sb://x/;SharedAccessKeyName=n;SharedAccessKey={SECRET}=",
        f"could not connect to bob:{SECRET}@db.internal:5432",
        f"dialing app:{SECRET}@cache/0",
        f"https://x.blob.core.windows.net/c?sv=1&sig={SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\\nMIIEow{SECRET}\\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN OPENSSH PRIVATE KEY----- b3BlbnNzaC1rZXk{SECRET} cut here",
        f"invalid key: MIIEpAIBAAKCAQEA{SECRET}ABCDEFGHIJ",
    ],
)
def test_a_form_in_use_is_redacted(error: str) -> None:
    cleaned = clean_error(error)
    assert "hunter2" not in cleaned
    assert "[redacted]" in cleaned or "?…" in cleaned


@pytest.mark.parametrize("beginning", [*secret_forms._BEGINNINGS, *secret_forms._SHORT_BEGINNINGS])
def test_a_key_is_known_by_its_beginning_even_if_it_was_cut(beginning: str) -> None:
    for key in (KEY, KEY[:16]):
        for error in (f"Incorrect key: {beginning}{key}", f"key '{beginning}{key}' is wrong"):
            assert "hunter2" not in clean_error(error), clean_error(error)


@pytest.mark.parametrize(
    "error",
    [
        "npm_config_cache is not set",
        "pypi-server is down",
        "API-version 2024-01-01 is not supported",
        "re_validate failed in step_2024",
        "ConnectionError: db:5432 refused",
        "at 12:30:15 the job stopped",
        "cannot parse 'a:b' at line 3",
        "mysql -p 3306 is not listening",
        "unknown option --tokenize",
        "usage: tool -u name: the user",
        "authenticate(user, mode) takes 1 argument",
        "ntfy is off",
        "git@github.com:org/repo.git: permission denied",
        "v1.0-beta of model-3 is gone",
        "File /srv/app/token_store/x.py is missing",
    ],
)
def test_ordinary_errors_are_told_whole(error: str) -> None:
    assert clean_error(error) == error


HOSTILE = ["-u a:", "mysql -", "auth=('", "a:b@", "--password ", "-----BEGIN A-----", "sk-ant-", "MIIE", "eyJ", "auth(",
           "hooks.slack.com/", "aaaa", "a.b-c_", "([", "'", '"', "key=", "1", " -p"]  # fmt: skip


def test_no_text_takes_long() -> None:
    """Not measured: one that ran away would take hours, and is ended."""
    code = "import sys; from otel_letta.text import clean_error; [clean_error(t * 3_000) for t in sys.argv[1:]]"
    pairs = [first + second for first in HOSTILE for second in HOSTILE]
    subprocess.run([sys.executable, "-c", code, *pairs], check=True, timeout=120)


def test_a_name_costs_no_table() -> None:
    code = (
        "import sys; from otel_letta.text import clean_error; clean_error('read_file');"
        "sys.exit('otel_letta.secret_forms' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_them_compiles_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor imports them, and hardly any program meets an error that they have to look through."""
    spec = importlib.util.spec_from_file_location("once_more", secret_forms.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(re, "compile", None)
    spec.loader.exec_module(module)
