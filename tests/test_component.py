"""Assets in YAML: the same arguments, under the same names."""

import inspect
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pytest
import yaml
from dagster.components.core.component_tree import ComponentTreeException
from dagster.components.testing import create_defs_folder_sandbox
from dagster_duckdb import DuckDBResource
from pydantic import BaseModel

from dagster_claude_batch import (
    ClaudeBatchComponent,
    ClaudeBatchResource,
    Document,
    Image,
    Text,
    build_claude_batch_asset,
    build_claude_batch_failures_spec,
    claude_batch_definitions,
    claude_batch_sensor,
)
from dagster_claude_batch.batch_asset import batch_asset
from dagster_claude_batch.component.asset import IN_YAML, ClaudeBatchAsset
from dagster_claude_batch.declaration import Declaration
from dagster_claude_batch.errors import InvalidOutputError

# Dagster's own, where it reads the type of a component.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
    pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.BetaWarning"),
]

PLAIN: dict[str, Any] = {
    "model": "claude-opus-5-1",
    "max_tokens": 50,
    "system": "Rate what you read.",
    "cache": "1h",
    "chunk_size": 7,
    "rows_per_request": 3,
    "deduplicate": False,
    "max_attempts": 1,
    "max_failure_rate": 0.5,
    "max_cost_usd": 2.5,
    "max_wait_hours": 3,
    "prices": {"input": "0.05", "output": 0.25},
    "pilot": 2,
}
"""Arguments that are written alike in YAML and Python."""

SMALL: dict[str, Any] = {"key": "small", "source": "texts", "row_key": "id", "prompt": "{{ text }}"}


class Sentiment(BaseModel):
    label: Literal["good", "bad"]
    score: float


def asked(row: dict[str, Any]) -> str:
    return f"Rate {row['text']}"


def loaded(*assets: dict[str, Any]) -> AbstractContextManager[dg.Definitions]:
    """The definitions that a `defs.yaml` with these assets makes."""
    return loaded_files({"assets": list(assets)})


@contextmanager
def loaded_files(*files: dict[str, Any], python: str = "") -> Iterator[dg.Definitions]:
    """The same of several files, by their attributes, and of one in Python."""
    with create_defs_folder_sandbox() as sandbox:
        for attributes in files:
            sandbox.scaffold_component(
                component_cls=ClaudeBatchComponent,
                defs_yaml_contents={
                    "type": "dagster_claude_batch.ClaudeBatchComponent",
                    "attributes": attributes,
                },
            )
        (sandbox.defs_folder_path / "resources.py").write_text(RESOURCES)
        if python:
            (sandbox.defs_folder_path / "declared.py").write_text(python)
        with sandbox.build_all_defs() as defs:
            yield defs


RESOURCES = """
import dagster as dg
from dagster_claude_batch import ClaudeBatchResource
from dagster_duckdb import DuckDBResource

defs = dg.Definitions(resources={
    name: resource
    for name, resource in {
        "duckdb": DuckDBResource(database="w.duckdb"),
        "claude_batch": ClaudeBatchResource(api_key="none"),
        "other_claude": ClaudeBatchResource(api_key="none"),
    }.items()
})
"""


def declared(**more: Any) -> Declaration:
    """What a small asset declares with further arguments."""
    with loaded(SMALL | more) as defs:
        return declaration_of(defs, "small")


def declaration_of(defs: dg.Definitions, key: str) -> Declaration:
    found = batch_asset(defs.resolve_assets_def(dg.AssetKey.from_user_string(key)))
    assert found is not None
    return found.declaration


def in_python(**more: Any) -> Declaration:
    """The same, declared in Python."""
    found = batch_asset(build_claude_batch_asset(**(SMALL | more)))
    assert found is not None
    return found.declaration


def test_all_arguments_of_the_factory_have_the_same_names_in_yaml() -> None:
    schema = ClaudeBatchAsset.model()  # type: ignore[attr-defined]  # of Dagster's
    in_yaml = {name: field.is_required() for name, field in schema.model_fields.items()}
    factory = inspect.signature(build_claude_batch_asset).parameters.values()

    assert list(in_yaml) == [each.name for each in factory]
    assert in_yaml == {each.name: each.default is each.empty for each in factory}
    assert all(field.description for field in schema.model_fields.values())


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({}, {}),
        ({"row_key": ["id", "page"]}, {"row_key": ["id", "page"]}),
        ({"include": "n"}, {"include": "n"}),
        ({"system": "You read {{ language }}."}, {"system": "You read {{ language }}."}),
        (
            {"prompt": ["See", {"image": "it", "resize": True}, {"text": "of {{ id }}"}]},
            {"prompt": ["See", Image("it", resize=True), Text("of {{ id }}")]},
        ),
        (
            {"prompt": [{"document": "it", "citations": True, "title": "{{ id }}"}, "Sum up."]},
            {"prompt": [Document("it", citations=True, title="{{ id }}"), "Sum up."]},
        ),
        ({"prompt": {"function": f"{__name__}:asked"}}, {"prompt": asked}),
        ({"output": f"{__name__}:Sentiment"}, {"output": Sentiment}),
        ({"output": f"{__name__}.Sentiment"}, {"output": Sentiment}),
        (
            {"output": {"label": {"enum": ["good", "bad"]}, "score": "number"}},
            {"output": Sentiment},
        ),
        (
            {"params": {"stop_sequences": ["{{ 'EN' ~ 'D' }}"], "temperature": "{{ 1 / 2 }}"}},
            {"params": {"stop_sequences": ["END"], "temperature": 0.5}},
        ),
        (
            {"source": {"asset": "raw/texts"}, "include": ["n"], "table": "t.answers"},
            {"source": dg.AssetKey(["raw", "texts"]), "include": ["n"], "table": "t.answers"},
        ),
        (
            {"source": None, "query": "SELECT * FROM texts"},
            {"source": None, "query": "SELECT * FROM texts"},
        ),
        (
            PLAIN,
            PLAIN,
        ),
    ],
)
def test_yaml_declares_what_python_declares(written: dict[str, Any], meant: dict[str, Any]) -> None:
    given, expected = declared(**written), in_python(**meant)

    for each in fields(Declaration):
        if each.name not in {"output", "shape"}:
            assert getattr(given, each.name) == getattr(expected, each.name), each.name
    assert given.output.columns == expected.output.columns
    assert given.shape.digest() == expected.shape.digest()
    assert given.shape.columns == expected.shape.columns
    assert given.shape.params == expected.shape.params


EAGER = (
    "{{ automation_condition.eager() }}"
    if dg.__version__.startswith("1.12.")
    else "{{ dg.AutomationCondition.eager() }}"
)
"""Templates of Dagster 1.12 know less."""


def forms() -> dict[str, dict[str, Any]]:
    """What editors and `dg docs` are told of each thing that can be written."""
    schema = ClaudeBatchComponent.get_model_cls().model_json_schema()
    return {"ClaudeBatchComponent": schema, **schema["$defs"]}


def test_editors_are_told_what_each_field_means() -> None:
    nameless = [
        f"{name}.{field}"
        for name, form in forms().items()
        for field, told in form["properties"].items()
        if not told.get("description")
    ]

    assert nameless == []
    assert [
        name
        for name, form in forms().items()
        if name != "ClaudeBatchAssetModel" and not form.get("description")
    ] == []


ELSEWHERE = ("my_project", "package.module")


def shown_to_editors() -> Iterator[Any]:
    """Each example that editors and the reference show: the argument, and what is written."""
    for form in forms().values():
        argument = form["title"].partition(":")[0]
        for example in form.get("examples", ()):
            written = {"prompt": ["What is it?", example], "output": {"column": example}}
            yield argument, written.get(argument, example)
    for argument, said in IN_YAML.items():
        for text in re.findall(r"`([{\[][^`…]*)`", said):
            if not text.startswith("{{"):
                yield argument, yaml.safe_load(text)
            elif ("{{ dg." in text) != dg.__version__.startswith("1.12."):  # of this Dagster
                yield argument, text


@pytest.mark.parametrize(
    ("argument", "written"),
    [each for each in shown_to_editors() if not any(name in str(each) for name in ELSEWHERE)],
    ids=str,
)
def test_every_example_that_editors_show_can_be_declared(argument: str, written: Any) -> None:
    more = {argument: written}
    if argument == "partitions_def":
        names = written.get("dimensions", ())
        more["partition_expr"] = dict.fromkeys(names, "part") or "part"

    with loaded(SMALL | more) as defs:
        assert defs.resolve_assets_def("small")


def test_a_template_of_ones_own_makes_what_yaml_has_no_words_for() -> None:
    policies = """
import datetime
import dagster as dg

@dg.template_var
def each_morning():
    return dg.FreshnessPolicy.cron("0 9 * * *", datetime.timedelta(hours=2))
"""
    written = SMALL | {"freshness_policy": "{{ each_morning }}"}
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            component_cls=ClaudeBatchComponent,
            defs_yaml_contents={
                "type": "dagster_claude_batch.ClaudeBatchComponent",
                "template_vars_module": ".template_vars",
                "attributes": {"assets": [written]},
            },
        )
        (folder / "template_vars.py").write_text(policies)
        (sandbox.defs_folder_path / "resources.py").write_text(RESOURCES)
        with sandbox.build_all_defs() as defs:
            (spec,) = defs.resolve_assets_def("small").specs

    assert spec.freshness_policy == dg.FreshnessPolicy.cron("0 9 * * *", timedelta(hours=2))


def test_what_dagster_is_told_comes_from_yaml_too() -> None:
    written = {
        "partitions_def": {"type": "daily", "start_date": "2026-01-01", "timezone": "Europe/Rome"},
        "partition_expr": "day",
        "backfill_policy": {"type": "single_run"},
        "automation_condition": EAGER,
        "deps": ["raw/others"],
        "description": "What {{ 'the templates' }} say.",
        "group_name": "texts",
        "owners": ["team:texts"],
        "tags": {"tier": "gold"},
        "kinds": ["claude"],
        "code_version": "3",
        "metadata": {"price": 3},
        "pool": "warehouse",
        "op_tags": {"queue": "slow"},
        "retry_policy": {"max_retries": 2, "delay": 5},
    }
    with loaded(SMALL | written) as defs:
        asset = defs.resolve_assets_def("small")
        (spec,) = asset.specs

    assert spec.partitions_def == dg.DailyPartitionsDefinition("2026-01-01", timezone="Europe/Rome")
    assert asset.backfill_policy == dg.BackfillPolicy.single_run()
    assert spec.automation_condition == dg.AutomationCondition.eager()
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey(["raw", "others"])]
    assert spec.description == "What the templates say."
    assert (spec.group_name, spec.owners, spec.code_version) == ("texts", ["team:texts"], "3")
    assert spec.tags["tier"] == "gold"
    assert spec.kinds == {"claude"}
    assert spec.metadata["price"] == 3
    assert asset.op.pool == "warehouse"
    assert asset.op.tags["queue"] == "slow"
    assert asset.op.retry_policy == dg.RetryPolicy(max_retries=2, delay=5)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (
            {"type": "static", "partition_keys": ["a", "b"]},
            dg.StaticPartitionsDefinition(["a", "b"]),
        ),
        ({"type": "dynamic", "name": "days"}, dg.DynamicPartitionsDefinition(name="days")),
        (
            {"type": "monthly", "start_date": "2026-01-01", "day_offset": 3},
            dg.MonthlyPartitionsDefinition("2026-01-01", day_offset=3),
        ),
        (
            {
                "type": "time_window",
                "start_date": "2026-01-01",
                "fmt": "%Y-%m-%d",
                "cron_schedule": "0 0 * * 1",
            },
            dg.TimeWindowPartitionsDefinition(
                start="2026-01-01", fmt="%Y-%m-%d", cron_schedule="0 0 * * 1"
            ),
        ),
        (
            {"type": "static", "partition_keys": [2024, 2025]},
            dg.StaticPartitionsDefinition(["2024", "2025"]),
        ),
    ],
)
def test_partitions_of_each_kind(written: object, meant: dg.PartitionsDefinition[Any]) -> None:
    with loaded(SMALL | {"partitions_def": written, "partition_expr": "part"}) as defs:
        assert defs.resolve_assets_def("small").partitions_def == meant


def test_partitions_of_several_dimensions() -> None:
    dimensions = {
        "day": {"type": "daily", "start_date": "2026-01-01"},
        "city": {"type": "static", "partition_keys": ["rome"]},
    }
    written = {
        "partitions_def": {"type": "multi", "dimensions": dimensions},
        "partition_expr": {"day": "day", "city": "city"},
    }
    with loaded(SMALL | written) as defs:
        found = defs.resolve_assets_def("small").partitions_def

    assert found == dg.MultiPartitionsDefinition(
        {
            "day": dg.DailyPartitionsDefinition("2026-01-01"),
            "city": dg.StaticPartitionsDefinition(["rome"]),
        }
    )


def test_fields_of_an_answer_are_columns_of_their_types() -> None:
    output = {
        "label": {"enum": ["good", "bad"], "description": "All in all."},
        "score": {"type": "number", "ge": 0, "le": 1},
        "names": {"type": "string", "list": True},
        "day": {"type": "date", "optional": True},
        "count": "integer",
    }
    found = declared(output=output).output

    assert {column.name: column.type for column in found.columns} == {
        "label": "VARCHAR",
        "score": "DOUBLE",
        "names": "VARCHAR[]",
        "day": "DATE",
        "count": "BIGINT",
    }
    descriptions = {column.name: column.description for column in found.columns}
    assert descriptions["label"] == "All in all."
    text = '{"label": "good", "score": 2, "names": [], "day": null, "count": 1}'
    with pytest.raises(InvalidOutputError, match="score"):
        found.validate(text)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"nope": 1}, "nope"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"output": "nowhere:Model"}, "nowhere:Model"),
        ({"output": {"label": {"type": "string", "enum": ["a"]}}}, "exactly one"),
        ({"output": {"label": "text"}}, "label"),
        ({"output": {"name": {"type": "string", "le": 5}}}, "`le`"),
        ({"output": {"count": {"type": "integer", "ge": 0.5}}}, "whole numbers"),
        ({"output": {"label": {"enum": []}}}, "label"),
        ({"max_cost_usd": "{{ env.NOT_SET_ANYWHERE }}"}, "max_cost_usd"),
        ({"automation_condition": "eager"}, "automation_condition"),
        ({"retry_policy": "twice"}, "{max_retries: 2}"),
        ({"partitions_def": "daily"}, "{type: daily"),
        (
            {"partitions_def": {"type": "daily", "start_date": "2026-01-01", "day_offset": 1}},
            "day_offset",
        ),
        ({"partitions_def": {"type": "yearly"}}, "partitions_def"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_wrong_is_named(written: dict[str, Any], said: str) -> None:
    with pytest.raises(ComponentTreeException) as raised, loaded(SMALL | written):
        pass

    assert said in str(raised.value.__cause__)


def test_one_upstream_asset_needs_no_list() -> None:
    with loaded(SMALL | {"deps": "raw/others"}) as defs:
        (spec,) = defs.resolve_assets_def("small").specs

    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey(["raw", "others"])]


# --- with their sensors ---------------------------------------------------------------------


def test_several_assets_of_one_file_share_the_sensor() -> None:
    other = SMALL | {"key": "other", "claude_resource": "other_claude"}
    with loaded(SMALL, SMALL | {"key": "second"}, other) as defs:
        names = sorted(sensor.name for sensor in defs.sensors or [])
        keys = {spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()}

    assert names == ["claude_batch_sensor", "claude_batch_sensor_other_claude"]
    assert keys >= {"small", "second", "other"}


def test_several_files_share_the_sensor_too() -> None:
    second = SMALL | {"key": "second"}
    third = SMALL | {"key": "third", "claude_resource": "other_claude"}
    with loaded_files({"assets": [SMALL]}, {"assets": [second, third]}) as defs:
        repository = defs.get_repository_def()

    names = sorted(sensor.name for sensor in repository.sensor_defs)
    assert names == ["claude_batch_sensor", "claude_batch_sensor_other_claude"]


def test_a_project_may_declare_in_python_beside_yaml_without_thinking_of_the_sensor() -> None:
    with loaded_files({"assets": [SMALL]}, python=IN_PYTHON) as defs:
        repository = defs.get_repository_def()

    names = sorted(sensor.name for sensor in repository.sensor_defs)
    assert names == ["claude_batch_sensor", "claude_batch_sensor_other_claude"]
    assert {key.to_user_string() for key in repository.assets_defs_by_key} >= {"small", "a", "b"}


IN_PYTHON = """
import dagster as dg
from dagster_claude_batch import (
    build_claude_batch_asset,
    claude_batch_definitions,
    claude_batch_sensor,
)

def asked(key, **more):
    return build_claude_batch_asset(key, source="t", row_key="id", prompt="{{ x }}", **more)

defs = dg.Definitions.merge(
    dg.Definitions(assets=[asked("a")], sensors=[claude_batch_sensor]),
    claude_batch_definitions(asked("b", claude_resource="other_claude")),
    claude_batch_definitions(asked("c", claude_resource="other_claude")),
)
"""


def test_the_sensor_can_be_left_to_others() -> None:
    with loaded_files({"assets": [SMALL], "sensor": False}) as defs:
        assert not list(defs.sensors or [])


def test_jobs_by_hand_come_once_for_each_claude_resource() -> None:
    other = SMALL | {"key": "other", "claude_resource": "other_claude"}
    files = [{"assets": [SMALL | {"key": key}], "jobs": True} for key in ("one", "two")]
    with loaded_files({"assets": [SMALL]}, *files, {"assets": [other], "jobs": True}) as defs:
        names = sorted(
            job.name for job in defs.get_repository_def().get_all_jobs() if "claude" in job.name
        )

    tasks = ("cancel", "collect", "delete_remote_results", "prune", "reconcile")
    landing = ["claude_batch_sensor_landing", "claude_batch_sensor_other_claude_landing"]
    assert names == sorted(
        [
            *landing,
            *(f"claude_batch_{task}" for task in tasks),
            *(f"claude_batch_other_claude_{task}" for task in tasks),
        ]
    )


def test_jobs_may_be_declared_in_python_beside_yaml() -> None:
    with loaded_files({"assets": [SMALL], "jobs": True}, python=JOBS_IN_PYTHON) as defs:
        names = [
            job.name for job in defs.get_repository_def().get_all_jobs() if "claude" in job.name
        ]

    assert len(names) == len(set(names))
    assert {"claude_batch_cancel", "claude_batch_other_cancel"} <= set(names)


JOBS_IN_PYTHON = """
import dagster as dg
from dagster_claude_batch import build_claude_batch_jobs

defs = dg.Definitions.merge(
    dg.Definitions(jobs=build_claude_batch_jobs()),
    dg.Definitions(jobs=build_claude_batch_jobs("claude_batch_other", claude_resource="other")),
)
"""


def test_definitions_of_assets_come_with_the_sensor_and_can_be_merged_with_ones_own() -> None:
    @dg.asset
    def texts() -> None: ...

    one = claude_batch_definitions(build_claude_batch_asset(**SMALL))
    second = build_claude_batch_asset(**(SMALL | {"key": "two"}))
    failures = build_claude_batch_failures_spec(second)
    two = claude_batch_definitions(texts, second, failures, dg.AssetSpec("elsewhere"))
    resources = {
        "duckdb": DuckDBResource(database="w.duckdb"),
        "claude_batch": ClaudeBatchResource(api_key="none"),
    }
    merged = dg.Definitions.merge(one, two, dg.Definitions(resources=resources))

    assert list(one.sensors or []) == [claude_batch_sensor]
    repository = merged.get_repository_def()
    assert {key.to_user_string() for key in repository.assets_defs_by_key} == {
        "small",
        "two",
        "two_failures",
        "texts",
        "elsewhere",
    }
    assert [sensor.name for sensor in repository.sensor_defs] == ["claude_batch_sensor"]


def test_definitions_without_any_batch_asset_have_no_sensor() -> None:
    assert not list(claude_batch_definitions().sensors or [])


README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_readmes_yaml_declares_what_its_python_declares() -> None:
    python: dict[str, Any] = {}
    exec(blocks("python")[0], python)  # noqa: S102  # our own README
    expected = declaration_of(python["defs"], "snippet_sentiment")
    (block,) = blocks("yaml")
    (written,) = yaml.safe_load(block)["attributes"]["assets"]
    with loaded(written) as defs:
        given = declaration_of(defs, "snippet_sentiment")
        partitions = defs.resolve_assets_def("snippet_sentiment").partitions_def

    assert partitions == python["snippet_sentiment"].partitions_def
    for each in fields(Declaration):
        if each.name not in {"output", "shape"}:
            assert getattr(given, each.name) == getattr(expected, each.name), each.name
    assert given.shape.digest() == expected.shape.digest()
    assert given.output.columns == expected.output.columns
    assert given.output.schema == expected.output.schema
    assert given.output.declared_schema == expected.output.declared_schema
    for output in (given.output, expected.output):
        output.validate('{"label": "neutral", "score": -1}')
        with pytest.raises(InvalidOutputError, match="score"):
            output.validate('{"label": "neutral", "score": 2}')


def test_the_readmes_resources_serve_its_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    (resources,) = [text for text in blocks("python") if "Definitions(resources=" in text]
    monkeypatch.setattr(sys.modules[__name__], "RESOURCES", resources)
    (block,) = blocks("yaml")
    with loaded_files(yaml.safe_load(block)["attributes"]) as defs:
        dg.Definitions.validate_loadable(defs)

        assert set(defs.resources or {}) == {"duckdb", "claude_batch"}


# --- on the command line --------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as `dg` expects it, with nothing in it."""
    folder = tmp_path_factory.mktemp("project")
    package = folder / "src" / "shop"
    (package / "defs").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "defs" / "__init__.py").touch()
    (package / "definitions.py").write_text(
        "from pathlib import Path\n\nimport dagster as dg\n\n\n@dg.definitions\ndef defs():\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    (folder / "pyproject.toml").write_text(
        textwrap.dedent(
            """
            [project]
            name = "shop"
            version = "0.1.0"
            [tool.dg]
            directory_type = "project"
            [tool.dg.project]
            root_module = "shop"
            """
        )
    )
    return folder


def dg_said(project: Path, *arguments: str, status: int = 0) -> str:
    """What a `dg` command prints."""
    ended = subprocess.run(
        [str(Path(sys.executable).parent / "dg"), *arguments],
        cwd=project,
        env={"PATH": str(Path(sys.executable).parent), "PYTHONPATH": "src", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == status, ended.stdout
    return ended.stdout


def test_dg_scaffolds_checks_and_lists_it(project: Path) -> None:
    component = "dagster_claude_batch.ClaudeBatchComponent"
    assert component in dg_said(project, "list", "components", "--json")
    prompt = "Sum up:\n\n{{ text }}"
    options = ["--source", "texts", "--row-key", "id", "--prompt", prompt]
    dg_said(project, "scaffold", "defs", component, "summaries", *options)

    written = project / "src" / "shop" / "defs" / "summaries" / "defs.yaml"
    asset = {"key": "summaries", "source": "texts", "row_key": "id", "prompt": prompt}
    assert yaml.safe_load(written.read_text()) == {
        "type": component,
        "attributes": {"assets": [asset]},
    }
    assert "valid" in dg_said(project, "check", "yaml")

    text = written.read_text()
    written.write_text(f"{text}      max_tokens: [1]\n      row_kee: id\n")
    said = dg_said(project, "check", "yaml", status=1)
    last = len(text.splitlines())
    assert f"defs.yaml:{last + 1} - {component} attributes.assets.0.max_tokens" in said
    assert f"defs.yaml:{last + 2} - {component} attributes.assets.0.row_kee" in said


def test_the_readmes_command_scaffolds_what_its_yaml_begins_with(project: Path) -> None:
    (command,) = [text for text in blocks("bash") if text.startswith("dg ")]
    program, *arguments = shlex.split(command)
    assert (program, command.count("\n")) == ("dg", 1)

    dg_said(project, *arguments)

    written = project / "src" / "shop" / "defs" / "sentiment" / "defs.yaml"
    (asset,) = yaml.safe_load(written.read_text())["attributes"]["assets"]
    (shown,) = yaml.safe_load(blocks("yaml")[0])["attributes"]["assets"]
    assert {name: asset[name] for name in ("source", "row_key")} == {
        name: shown[name] for name in ("source", "row_key")
    }
    assert asset["prompt"].split() == shown["prompt"].split()


def test_a_date_is_a_date() -> None:
    assert declared(output={"day": "date"}).output.validate('{"day": "2026-01-02"}') == (
        f'{{"day":"{date(2026, 1, 2).isoformat()}"}}'
    )


def test_failures_are_a_line_of_the_lineage_if_they_are_wanted() -> None:
    small = SMALL | {"partitions_def": {"type": "daily", "start_date": "2026-01-01"}}
    small["partition_expr"] = "day"
    with loaded_files(
        {"assets": [small], "failures": True}, {"assets": [SMALL | {"key": "b"}]}
    ) as defs:
        specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}

    assert {key for key in specs if key.endswith("_failures")} == {"small_failures"}
    assert [dep.asset_key for dep in specs["small_failures"].deps] == [dg.AssetKey("small")]
    assert specs["small_failures"].partitions_def == dg.DailyPartitionsDefinition("2026-01-01")
