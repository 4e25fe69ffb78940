"""Forms of secrets in the texts of errors: what command lines, clients and providers write them like.

A room of its own so that only a text that may hold one pays for it. Every pattern is one pass over at most a few
thousand characters: repetitions are bounded, and none can match the same text in two ways.

The beginnings of keys are those of the rules of gitleaks (https://github.com/gitleaks/gitleaks, config/gitleaks.toml,
commit b58d3f1 of 2026-07-22; MIT License, Copyright (c) 2019 Zachary Rice), and a few newer ones from their providers'
own pages. The lengths that those rules ask for are left out on purpose: in an error a key is often cut short.
"""

from __future__ import annotations

import re

from otel_letta.text import pattern

_BEGINNINGS = (
    # AI
    "sk-ant-",
    "sk-proj-",
    "sk-svcacct-",
    "sk-admin-",
    "sk-or-v1-",
    "sk-lf-",
    "pk-lf-",
    "sk-let-",
    "gsk_",
    "nvapi-",
    "pplx-",
    "tgp_v1_",
    "hf_",
    "api_org_",
    "lsv2_pt_",
    "lsv2_sk_",
    "pylf_v",
    "tvly-",
    "pcsk_",
    "bedrock-api-key-",
    # clouds and hosts
    "AIza",
    "ya29.",
    "GOCSPX-",
    "dop_v1_",
    "doo_v1_",
    "dor_v1_",
    "dp.pt.",
    "dt0c01.",
    "fo1_",
    "fm1r_",
    "fm1a_",
    "HRKU-AA",
    "sha256~",
    "pscale_tkn_",
    "pscale_oauth_",
    "pscale_pw_",
    "sbp_",
    "sb_secret_",
    # code
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "gldt-",
    "glft-",
    "glffct-",
    "glimt-",
    "glagent-",
    "gloas-",
    "glptt-",
    "glrt-",
    "glcbt-",
    "glsoat-",
    "GR1348941",
    "ATATT3x",
    "ATBB",
    "rubygems_",
    "CLOJARS_",
    "cmVmd",
    "sntrys_",
    "sntryu_",
    "pnu_",
    "lin_api_",
    "ntn_",
    "rdme_",
    "PMAK-",
    "atlasv1.",
    "hvs.",
    "hvb.",
    "ops_ey",
    "AGE-SECRET-KEY-1",
    # observability
    "glsa_",
    "eyJrIjoi",
    "logfire_",
    "pylf_",
    "NRAK-",
    "NRII-",
    # chats and mail
    "xapp-",
    "xoxa-",
    "xoxb-",
    "xoxe-",
    "xoxe.xox",
    "xoxo-",
    "xoxp-",
    "xoxr-",
    "xoxs-",
    "SG.",
    "xkeysib-",
    # money and shops
    "sk_live_",
    "sk_test_",
    "sk_prod_",
    "rk_live_",
    "rk_test_",
    "rk_prod_",
    "whsec_",
    "sq0atp-",
    "sq0csp-",
    "shpat_",
    "shpca_",
    "shppa_",
    "shpss_",
    "shippo_live_",
    "shippo_test_",
    "EZAK",
    "EZTK",
    "duffel_live_",
    "duffel_test_",
    "FLWSECK",
    "FLWPUBK",
    "fio-u-",
    "sm_aat_",
    "sm_pat_",
    "sm_sat_",
    # any
    "eyJ",
)
_SHORT_BEGINNINGS = (
    "fw_",
    "r8_",
    "v1.0-",
    "4b1d",
    "dapi",
    "vercel_",
    "rnd_",
    "npm_",
    "pypi-",
    "A3-",
    "API-",
    "ico-",
    "re_",
    "tk-us-",
    "pul-",
    "xai-",
    "e2b_",
    "sgp_",
    "glc_",
    "jina_",
    "fm2_",
    "p8e-",
    "ACCA",
    "EAAA",
    "EAAM",
    "EAAC",
    "ABSK",
    "LTAI",
    "AKCp",
    "ZXlK",
    "ASIA",
    "ABIA",
    "AKIA",
)
"""Beginnings that other words have as well: what follows has to look like a key."""
_HOOKS = (
    r"hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)",
    r"(?:[\w-]{1,40}\.)?discord(?:app)?\.com/api(?:/v\d{1,2})?/webhooks",
    r"api\.telegram\.org/(?:file/)?bot",
    r"[\w-]{1,60}\.webhook\.office\.com/webhookb2",
    r"outlook\.office\.com/webhook",
    r"chat\.googleapis\.com/v1/spaces",
    r"open\.(?:feishu|larksuite)\.(?:cn|com)/open-apis/bot/v2/hook",
    r"hooks\.zapier\.com/hooks/catch",
    r"hook\.[\w-]{1,20}\.make\.com",
    r"maker\.ifttt\.com/trigger/[\w-]{1,60}/with/key",
    r"ntfy\.sh",
    r"events\.pagerduty\.com/integration",
    r"[\w-]{1,60}\.ingest(?:\.\w{2})?\.sentry\.io/api",
)
"""Addresses whose path is the secret."""
_KEY = "|".join(sorted(map(re.escape, _BEGINNINGS), key=len, reverse=True))
_SHORT_KEY = "|".join(sorted(map(re.escape, _SHORT_BEGINNINGS), key=len, reverse=True))
_VALUE = r"""(?:"[^"]{0,512}"?|'[^']{0,512}'?|[^\s'",;)}\]|&]{1,512})"""
_NAMED = r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|credentials?|auth|bearer|api[_-]?key|private[_-]?key)"

_FORMS = tuple(
    pattern(source)  # compiling them all takes as long as a third of what httpx's import does
    for source in (
        # --password X, --db-password=X, --api-key "X"
        rf"(?i)(?P<keep>(?<![\w-])--?(?:[a-z0-9]{{1,20}}[_-]){{0,4}}{_NAMED}(?:[_-](?:file|env|stdin))?(?:\s*=\s*|\s+))"
        rf"(?!\[redacted\]|-){_VALUE}",
        # curl -u user:X, wget --user=…, http -a user:X
        rf"(?P<keep>(?<![\w-])(?:-u|-a|--user|--proxy-user|-U)(?:\s*=\s*|\s*)(?:[\"'])?[\w.@+-]{{0,64}}:){_VALUE}",
        # mysql -pX, sshpass -pX, docker login -p X. A port is what has only digits.
        r"(?P<keep>\b(?:mysql\w{0,12}|mariadb\w{0,12}|mongo\w{0,12}|sshpass|sqlcmd|docker login|podman login|redis-cli"
        r"|rabbitmqadmin|ldap\w{1,10}|smbclient|7z)\b[^|;&\n]{0,400}?\s-(?:p|P|a|w)\s?)"
        rf"(?!\[redacted\]|-|\d{{1,5}}(?:\s|$)){_VALUE}",
        # auth=('user', 'X'), auth: ["user", "X"], BasicAuth('user', 'X')
        r"(?i)(?P<keep>(?:\bcredentials|\b\w{0,20}auth)\s{0,3}[=:]?\s{0,3}[(\[]\s{0,3}[bru]?)"
        r"(?:\"[^\"]{0,256}\"?|'[^']{0,256}'?|[^,()\[\]]{1,256})"
        r"\s{0,3},\s{0,3}[bru]?(?:\"[^\"]{0,512}\"?|'[^']{0,512}'?|[^()\[\]]{1,512})",
        # The keys of Azure's connection strings; its passwords are names with values.
        r"(?i)(?P<keep>\b(?:account|shared\w{0,12}|primary|secondary|storage|master|host)key\s{0,3}=\s{0,3})"
        r"[^\s;'\",]{1,512}",
        r"(?i)(?P<keep>\b(?:sig|signature|x-amz-signature|x-goog-signature)=)[^\s&;'\",]{1,512}",
        # connection strings without a scheme: user:X@host
        r"(?P<keep>(?<![\w/:.@-])[\w.+-]{1,64}:)[^\s:@/'\"]{3,256}(?=@[\w.-]{1,253}(?::\d|/|\s|$))",
        rf"(?i)(?P<keep>\b(?:{'|'.join(_HOOKS)})/?)[^\s'\"<>)]{{1,512}}",
        # The body of a key, whole or cut, with its lines or without.
        r"(?s)(?P<keep>-----BEGIN [A-Z0-9 ]{0,40}-----).{0,8000}?(?:-----END [A-Z0-9 ]{0,40}-----|$)",
        r"(?P<keep>)\b(?:MII[BCEJ]|b3BlbnNzaC1rZXk|LS0tLS1CRUdJTi)[A-Za-z0-9+/=\\]{24,}",
        rf"(?P<keep>)(?<![A-Za-z0-9])(?:{_KEY})(?=[-\w.~+/=]{{0,200}}[0-9])[-\w.~+/=]{{12,}}",
        rf"(?P<keep>)(?<![A-Za-z0-9])(?:{_SHORT_KEY})(?=[A-Za-z]{{0,100}}[0-9])[A-Za-z0-9]{{4,}}_?[A-Za-z0-9]{{8,}}",
    )
)


def redacted(line: str) -> str:
    """Return a line without what looks like a secret; what names it stays."""
    for form in _FORMS:
        line = form.sub(_replacement, line)
    return line


def _replacement(match: re.Match[str]) -> str:
    return f"{match['keep']}[redacted]"
