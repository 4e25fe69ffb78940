"""Looks into a wheel: python .ci/contents.py WHEEL."""

import email
import re
import sys
import zipfile

wheel = zipfile.ZipFile(sys.argv[1])
names = set(wheel.namelist())
assert "otel_letta/py.typed" in names, sorted(names)
assert "otel_letta/cli/run/first_on_path/sitecustomize.py" in names, sorted(names)
assert "otel_letta/letta/uploads/task_tools.py" in names, sorted(names)
assert "otel_letta/cli/setup/skill/SKILL.md" in names, sorted(names)
assert "openhands/runtime/plugins/agent_skills/letta_reporter.py" in names, sorted(names)
inits = [name for name in names if name.startswith("openhands/") and name.endswith("__init__.py")]
assert not inits, inits
strangers = {name.split("/")[0] for name in names} - {"otel_letta", "openhands"}
assert all(name.endswith(".dist-info") for name in strangers), strangers

(metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
page = email.message_from_bytes(wheel.read(metadata))
urls = page.get_all("Project-URL") or []
(home,) = [url.partition(", ")[2] for url in urls if url.startswith("Homepage")]
links = re.findall(r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', page.get_payload())
assert len(links) > 20, links
for link in (first or second for first, second in links):
    assert link.startswith("https://"), link
    assert link.startswith((home, "https://docs.letta.com", home.replace("github.com", "raw.githubusercontent.com"))), (
        link
    )
print(f"{len(links)} links, all absolute; version {page['Version']}")
