"""Settings: what is wrong is said with the line and the fix, and never with a secret in it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from meta_agent.cli.processes import gateway_config
from meta_agent.settings import ConfigurationError, Settings, load_settings

GOOD = """\
database: {pool_size: 7}
providers:
  - {name: lab, kind: openai_compatible, base_url: "http://127.0.0.1:9100/v1"}
  - name: openai
    kind: openai
    api_key: "${OPENAI_API_KEY}"
use_cases:
  - name: stories
    stable: {provider: lab, model: big}
gateway:
  port: 18080
"""
SECRET = "sk-very-secret-0123456789"  # what no message may repeat
ENVIRON = {"OPENAI_API_KEY": SECRET}


def load(tmp_path: Path, text: str = GOOD, **environ: str) -> Settings:
    source = tmp_path / "meta-agent.yaml"
    source.write_text(text)
    return load_settings(source, {**ENVIRON, **environ})


def refusal(tmp_path: Path, text: str = GOOD, **environ: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text, **environ)
    message = str(caught.value)
    assert SECRET not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def test_file_and_environment_are_read(tmp_path: Path) -> None:
    settings = load(tmp_path, META_AGENT__GATEWAY__PORT="1", META_AGENT__AGENT__PLANNER="rules")
    assert settings.gateway.port == 1, "the environment stands above the file"
    assert settings.gateway.host == "127.0.0.1"
    assert settings.agent.planner == "rules"
    assert settings.database.pool_size == 7
    key = settings.providers[1].api_key
    assert key is not None
    assert key.get_secret_value() == SECRET


def test_environment_adds_to_a_section_of_the_file_and_keeps_the_rest(tmp_path: Path) -> None:
    settings = load(tmp_path, META_AGENT__DATABASE__URL="postgresql://u:p%40ss@db.example:5433/meta")
    assert settings.database.pool_size == 7
    assert settings.database.url is not None
    assert "p%40ss" in settings.database.url.get_secret_value()


def test_lists_come_from_the_environment_as_json(tmp_path: Path) -> None:
    given = '[{"name": "two", "kind": "openai_compatible", "base_url": "http://x/v1"}]'
    settings = load(tmp_path, "log_level: info", META_AGENT__PROVIDERS=given)
    assert [each.name for each in settings.providers] == ["two"]
    message = refusal(tmp_path, META_AGENT__PROVIDERS=f"[{SECRET}")
    assert message == "environment META_AGENT__PROVIDERS: a list or mapping is written as JSON"


def test_the_products_other_variables_are_no_settings(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        META_AGENT_HOME=str(tmp_path / "home"),
        META_AGENT_CONFIG="elsewhere.yaml",
        META_AGENT_SECRET=SECRET,
        META_AGENT_KEY=SECRET,
        META_AGENT_URL="http://x",
        META_AGENT_TEST_DATABASE_URL="postgresql://x/y",
    )
    assert settings.home == tmp_path / "home"


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "known"),
    [
        ("database:", "databse: {}\ndatabase:", 1, "databse", "database"),
        ("{pool_size: 7}", "{pool_siez: 7}", 1, "database.pool_siez", "pool_size"),
        ("    kind: openai\n", "    kind: openai\n    apikey: x\n", 6, "providers.1.apikey", "api_key"),
        ("- name: stories", "- name: stories\n    budget: 5", 9, "use_cases.0.budget", "suite"),
        ("model: big}", "model: big, modle: x}", 9, "use_cases.0.stable.modle", "model"),
        ("  port: 18080", "  prot: 18080", 11, "gateway.prot", "port"),
    ],
)
def test_unknown_key_is_named_with_line_and_alternatives(
    tmp_path: Path, old: str, new: str, line: int, key: str, known: str
) -> None:
    message = refusal(tmp_path, GOOD.replace(old, new, 1))
    assert message.startswith(f"{tmp_path}/meta-agent.yaml:{line}: unknown key {key}; known here: ")
    assert known in message.partition("known here: ")[2].split(", ")


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("META_AGENT__GATEWAY__PROT", "environment META_AGENT__GATEWAY__PROT: unknown key gateway.prot"),
        ("META_AGENT__GATEWY__PORT", "environment META_AGENT__GATEWY__PORT: unknown key gatewy"),
        ("META_AGENT__PORT", "environment META_AGENT__PORT: unknown key port"),
    ],
)
def test_unknown_variable_is_an_error(tmp_path: Path, variable: str, expected: str) -> None:
    message = refusal(tmp_path, **{variable: "1"})
    assert message.startswith(f"{expected}; known here: ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("port: 18080", f"port: {SECRET}", ":11: gateway.port: Input should be a valid integer"),
        ("port: 18080", "port: 70000", ":11: gateway.port: Input should be less than or equal to 65535"),
        ("gateway:\n  port: 18080", f"gateway: {SECRET}", ":10: gateway holds keys and values; known here"),
        ("kind: openai\n", f"kind: {SECRET}\n", ":5: providers.1.kind: Input should be 'openai'"),
        ("name: openai\n", "name: Open AI\n", ":4: providers.1.name: String should match"),
        ('api_key: "${OPENAI_API_KEY}"', "api_key: [sk-very-secret-0123456789]", ":6: providers.1.api_key: "),
        ("{pool_size: 7}", f"{{url: 'mysql://u:{SECRET}@h/db'}}", ":1: database.url: write postgresql://"),
        ("{pool_size: 7}", f"{{url: 'postgresql://u:{SECRET}/x@h/db'}}", ":1: database.url: write"),
        ("{pool_size: 7}", f"{{url: 'postgresql://u:p@h:{SECRET}/db'}}", ":1: database.url: write"),
        ("name: openai\n", "name: lab\n", ":4: there are two entries for provider lab; names are unique"),
        ("provider: lab", "provider: lbb", ":9: use case stories is served by provider lbb, which is not"),
        (', base_url: "http://127.0.0.1:9100/v1"', "", ":3: provider lab of kind openai_compatible needs"),
        ("stable: {provider: lab, model: big}", "risk: low", ": use_cases.0.stable: Field required"),
        ("{pool_size: 7}", "{pool_size: 7}\ngateway: {}", ":11: the key gateway is written twice"),
        ("{pool_size: 7}", f"[{SECRET}", ": this is not YAML: expected"),
        ("{pool_size: 7}", f"*{SECRET}", ":1: this is not YAML; put text that begins with"),
        ("{pool_size: 7}", f'"{SECRET}', ": this is not YAML: "),
        ("{pool_size: 7}", f"!{SECRET}", ":1: this is not YAML; put text that begins with"),
    ],
)
def test_wrong_value_is_a_sentence_without_the_value(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert old in GOOD
    message = refusal(tmp_path, GOOD.replace(old, new, 1))
    assert expected in message
    assert "\n" not in message


def test_two_errors_are_two_lines(tmp_path: Path) -> None:
    message = refusal(tmp_path, GOOD.replace("port: 18080", "prot: 1\n  hots: x"))
    assert [line.split(": ")[0].rpartition(":")[2] for line in message.splitlines()] == ["11", "12"]


def test_wrong_value_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    message = refusal(tmp_path, META_AGENT__GATEWAY__PORT=SECRET)
    assert message.startswith("environment META_AGENT__GATEWAY__PORT: gateway.port: Input should be")
    message = refusal(tmp_path, META_AGENT__DATABASE__URL=f"postgres//u:{SECRET}@h/db")
    assert message.startswith("environment META_AGENT__DATABASE__URL: database.url: write postgresql://")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "5\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "keys and values at its top level" in refusal(tmp_path, text)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).gateway.port == 8080


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file; check --config"):
        load_settings(tmp_path / "absent.yaml", {})
    with pytest.raises(ConfigurationError, match="no such file; check --config"):
        load_settings(None, {"META_AGENT_CONFIG": str(tmp_path)})
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="not text in UTF-8"):
        load_settings(tmp_path / "bytes.yaml", {})


@pytest.mark.parametrize("environ", [{}, {"OPENAI_API_KEY": ""}])
def test_missing_secret_names_line_and_fix(tmp_path: Path, environ: dict[str, str]) -> None:
    source = tmp_path / "meta-agent.yaml"
    source.write_text("# ${OPENAI_API_KEY} is used below\n" + GOOD)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(source, environ)
    assert str(caught.value) == (
        f"{source}:7: the environment has no OPENAI_API_KEY; export it, or write the secret as "
        "${file:/path/to/it}"
    )


def test_secret_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    text = GOOD.replace("${OPENAI_API_KEY}", "${file:key}")
    key = load(tmp_path, text).providers[1].api_key
    assert key is not None
    assert key.get_secret_value() == SECRET, "relative to the settings file, without the line's end"
    (tmp_path / "key").write_text("\n")
    assert ":6: the secret in" in refusal(tmp_path, text)
    (tmp_path / "key").unlink()
    assert f":6: cannot read the secret in {tmp_path}/key: No such file" in refusal(tmp_path, text)


def test_secrets_do_not_show_in_settings(tmp_path: Path) -> None:
    settings = load(tmp_path, META_AGENT__DATABASE__URL=f"postgresql://u:{SECRET}@h/db")
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert SECRET not in shown


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("- name: stories", "- name: stories\n    suite: cases/suite.yaml")
    settings = load(tmp_path, f"policies: rules.yaml\nhome: ~/state\n{text}")
    assert settings.policies == tmp_path / "rules.yaml"
    assert settings.use_cases[0].suite == tmp_path / "cases" / "suite.yaml"
    assert settings.home == Path("~/state").expanduser()


@pytest.mark.parametrize(
    ("agent", "planner"),
    [("{}", "rules"), ("{model: lab/x}", "llm"), ("{model: lab/x, planner: rules}", "rules")],
)
def test_a_named_model_plans_unless_told_otherwise(tmp_path: Path, agent: str, planner: str) -> None:
    text = f'providers: [{{name: lab, kind: openai, api_key: "k"}}]\nagent: {agent}\n'
    (tmp_path / "a.yaml").write_text(text)
    assert load_settings(tmp_path / "a.yaml", {}).agent.chosen_planner == planner


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ("{planner: llm}", "planner llm needs agent.model"),
        ("{model: nonsense}", "provider/model"),
        ("{model: ghost/x}", "ghost, which is not configured"),
    ],
)
def test_a_planner_that_cannot_be_built_stops_the_start(tmp_path: Path, agent: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(f"agent: {agent}\n")
    with pytest.raises(ConfigurationError, match=message):
        load_settings(tmp_path / "a.yaml", {})


SERVED = """\
providers:
  - {name: lab, kind: ollama}
  - name: claude
    kind: anthropic
    api_key: "${OPENAI_API_KEY}"
    headers: {x-team: blue}
    total_timeout_seconds: 600
  - name: aws
    kind: litellm
    extra: {aws_region_name: eu-central-1, aws_secret_access_key: "${OPENAI_API_KEY}"}
gateway:
  workers: 2
  drain_seconds: 30
  telemetry: {endpoint: "http://collector:4318/", headers: {authorization: "${OPENAI_API_KEY}"}}
use_cases:
  - name: chat
    stable: {provider: claude, model: x}
    gateway:
      limits: {requests_per_minute: 60, usd_per_day: 0.5, over_budget: downgrade}
      waiting: {retries: 2, hedge_after_seconds: 1.5}
      capture: redacted
      retention_days: 30
      shadow: {usd_per_day: 1}
      fallbacks: [{provider: aws, model: y, parameters: {temperature: 0}}]
      downgrade: {provider: lab, model: z}
"""


def test_how_a_use_case_is_served_is_read(tmp_path: Path) -> None:
    settings = load(tmp_path, SERVED)
    serving = settings.use_cases[0].gateway
    assert serving.limits.usd_per_day == Decimal("0.5")
    assert [each.model for each in serving.targets] == ["y", "z"]
    assert (serving.capture, serving.retention_days, serving.waiting.retries) == ("redacted", 30, 2)
    assert settings.gateway.workers == 2
    assert settings.gateway.telemetry is not None
    assert settings.gateway.telemetry.endpoint == "http://collector:4318"
    claude = settings.provider("claude")
    assert claude is not None
    assert claude.url == ""
    for shown in (repr(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert SECRET not in shown


def test_a_gateway_is_told_what_the_settings_say(tmp_path: Path) -> None:
    settings = load(tmp_path, SERVED, META_AGENT_HOME=str(tmp_path / "home"))
    told = gateway_config(settings, "postgresql://h/db")
    assert told.providers["claude"].api_key == SECRET
    assert told.providers["claude"].headers == {"x-team": "blue"}
    assert told.providers["claude"].answer_seconds == 600
    assert told.providers["lab"].answer_seconds == 120
    assert told.providers["aws"].extra["aws_region_name"] == "eu-central-1"
    assert told.drain_seconds == 30
    assert told.telemetry is not None
    assert told.telemetry.headers == {"authorization": SECRET}
    assert told.pseudonym_key == gateway_config(settings, "postgresql://h/db").pseudonym_key
    assert SECRET not in repr(told)
    other = settings.model_copy(update={"home": tmp_path / "other"})
    assert told.pseudonym_key != gateway_config(other, "").pseudonym_key


def test_a_collector_may_come_from_the_environment(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        META_AGENT__GATEWAY__TELEMETRY__ENDPOINT="https://collector",
        META_AGENT__GATEWAY__TELEMETRY__HEADERS=f'{{"authorization": "{SECRET}"}}',
    )
    assert settings.gateway.telemetry is not None
    assert settings.gateway.telemetry.headers.get_secret_value() == {"authorization": SECRET}
    message = refusal(
        tmp_path,
        META_AGENT__GATEWAY__TELEMETRY__ENDPOINT="https://collector",
        META_AGENT__GATEWAY__TELEMETRY__HEADERS=SECRET,
    )
    assert "gateway.telemetry.headers: a mapping is written as JSON" in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("retries: 2", "retires: 2", ":20: unknown key use_cases.0.gateway.waiting.retires; known here: fir"),
        ("requests_per_minute: 60", "rpm: 60", ":19: unknown key use_cases.0.gateway.limits.rpm; known here"),
        ("provider: aws, model: y", "provder: aws, model: y", ":24: unknown key use_cases.0.gateway.fallb"),
        ("usd_per_day: 1}", "usd: 1}", ":23: unknown key use_cases.0.gateway.shadow.usd; known here: conc"),
        ("endpoint: ", "url: ", ":14: gateway.telemetry.endpoint: Field required"),
        ("kind: ollama", "knd: ollama", ":2: providers.0.kind: Field required"),
        ("capture: redacted", f"capture: {SECRET}", ":21: use_cases.0.gateway.capture: Input should be 'no"),
        ("requests_per_minute: 60", "requests_per_minute: 0", ":19: use_cases.0.gateway.limits.requests_p"),
        ("usd_per_day: 0.5", "usd_per_day: .nan", ":19: use_cases.0.gateway.limits.usd_per_day: "),
        ("retention_days: 30", "retention_days: 0", ":22: use_cases.0.gateway.retention_days: Input should"),
        ("hedge_after_seconds: 1.5", "total_seconds: .inf", ":20: use_cases.0.gateway.waiting.total_secon"),
        ("over_budget: downgrade", f"over_budget: {SECRET}", ":19: use_cases.0.gateway.limits.over_budget"),
        ("      downgrade: {provider: lab, model: z}\n", "", ":18: use_cases.0.gateway: over_budget: downgr"),
        ("[{provider: aws, model: y, parameters: {temperature: 0}}]", "[]", "hedge_after_seconds needs fall"),
        ("provider: aws", "provider: asw", ":24: use case chat is served by provider asw, which is not con"),
        ("provider: lab, model: z", "provider: lob, model: z", ":25: use case chat is served by provider l"),
        ("{name: lab, kind: ollama}", "{name: lab, kind: ollama, extra: {a: b}}", ":2: provider lab of kind"),
        ("kind: ollama", "kind: ollama, ca_file: no.pem", ":2: the ca_file of provider lab is not there"),
        ("kind: ollama", "kind: ollama, base_url: 'h:8000/v1'", ":2: providers.0.base_url: write http://h"),
        ("x-team: blue", f'"x team": "{SECRET}"', "the name of a header holds letters, digits and hyphens"),
        ("x-team: blue", f'x-team: "{SECRET}\\n"', ":6: providers.1.headers.x-team: the value of a header i"),
        ("collector:4318/", "collector:4318/v1/traces", ":14: gateway.telemetry.endpoint: write the coll"),
        ("workers: 2", "workers: 0", ":12: gateway.workers: Input should be greater than or equal to 1"),
        ("drain_seconds: 30", "drain_seconds: soon", ":13: gateway.drain_seconds: Input should be a valid"),
    ],
)
def test_a_wrong_word_about_serving_is_a_sentence(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in SERVED
    message = refusal(tmp_path, SERVED.replace(old, new, 1))
    assert expected in message


def test_authorities_of_a_private_server_are_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    settings = load(tmp_path, SERVED.replace("kind: ollama", "kind: ollama, ca_file: ca.pem"))
    assert settings.providers[0].ca_file == tmp_path / "ca.pem"


def test_the_planner_is_no_use_cases_stable(tmp_path: Path) -> None:
    text = "providers: [{name: lab, kind: ollama}]\nagent: {model: lab/x}\n"
    text += "use_cases: [{name: chat, stable: {provider: lab, model: x}}]\n"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match="never answers an application"):
        load_settings(tmp_path / "a.yaml", {})
