"""One row a setting, and everything that is derived from it."""

from __future__ import annotations

import dataclasses
from typing import get_args, get_type_hints

import pytest

from otel_letta.settings import VARIABLES, Settings, SettingsOptions, Variable
from tests.support.settings import BY_NAME, PASSWORD, SHOWN, documented, resolve


class TestTable:
    def test_it_names_the_fields_of_settings_in_their_order(self) -> None:
        public = [field.name for field in dataclasses.fields(Settings) if not field.name.startswith("_")]
        assert public == list(BY_NAME)

    def test_names_are_unique_and_ours_carry_the_prefix(self) -> None:
        assert len({variable.env for variable in VARIABLES}) == len(VARIABLES)
        assert {v.env for v in VARIABLES if not v.env.startswith("OTEL_LETTA_")} == {
            "LETTA_BASE_URL",
            "LETTA_AGENT_ID",
            "LETTA_PASSWORD",
            "LETTA_API_KEY",
        }

    @pytest.mark.parametrize("variable", [v for v in VARIABLES if v.write(v.default)], ids=lambda v: v.env)
    def test_a_default_written_into_the_environment_means_the_same(self, variable: Variable) -> None:
        assert variable.parse(variable.write(variable.default)) == variable.default

    @pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: v.env)
    def test_each_line_can_be_printed(self, variable: Variable) -> None:
        for text in (variable.help, variable.allowed, variable.unit, variable.write(variable.default)):
            assert text.isprintable()
        assert variable.help.endswith((".", "}"))

    def test_only_the_two_secrets_are_secret(self) -> None:
        assert [variable.name for variable in VARIABLES if variable.secret] == ["password", "api_key"]

    def test_the_keywords_for_editors_are_its_names(self) -> None:
        assert list(SettingsOptions.__annotations__) == ["settings", "dotenv_path", *BY_NAME]

    @pytest.mark.parametrize("name", BY_NAME)
    def test_a_keyword_for_editors_may_be_what_its_setting_is(self, name: str) -> None:
        keyword, setting = get_type_hints(SettingsOptions)[name], get_type_hints(Settings)[name]
        allowed = set(get_args(keyword))
        assert type(None) in allowed
        for kind in get_args(setting) if type(None) in get_args(setting) else [setting]:
            assert kind in allowed or str(kind).startswith("tuple[")


class TestShowing:
    """Every row with another value than the default. A new one fails here until `SHOWN` has a value for it."""

    def test_there_is_a_value_for_every_row(self) -> None:
        assert list(SHOWN) == list(BY_NAME)

    @pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: v.env)
    def test_a_value_is_shown_with_its_unit(self, variable: Variable) -> None:
        raw, shown = SHOWN[variable.name]
        value = getattr(resolve({variable.env: raw}), variable.name)
        assert value != variable.default
        assert variable.show(value) == shown

    @pytest.mark.parametrize("variable", [v for v in VARIABLES if not v.secret], ids=lambda v: v.env)
    def test_what_is_written_into_the_environment_means_the_same(self, variable: Variable) -> None:
        value = variable.parse(SHOWN[variable.name][0])
        assert variable.parse(variable.write(value)) == value

    @pytest.mark.parametrize("variable", VARIABLES, ids=lambda v: v.env)
    def test_the_documentation_can_show_it_as_the_default(self, variable: Variable) -> None:
        value = getattr(resolve({variable.env: SHOWN[variable.name][0]}), variable.name)
        row = documented([variable._replace(default=value)], "allowed", "help")
        assert row == f"| `{variable.env}` | {SHOWN[variable.name][1]} | {variable.allowed} | {variable.help} |"
        assert PASSWORD not in row
