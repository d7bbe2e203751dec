"""The examples in deploy/: what Dagster would hand to Ray and to Kubernetes for one run, by those files alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, RepositoryPythonOrigin

from assets_defs.definitions import build_definitions
from assets_defs.fleet import SHARD_JOB
from assets_defs.instance import open_instance

DEPLOY = Path(__file__).parents[1] / "deploy"
SECRET = "key-0815-4711"
ENVIRONMENT = {
    "RAY_ADDRESS": "http://127.0.0.1:8265",
    "VIPE_DAG_ROOT": "s3://bucket/prefix",
    "VIPE_DAG_IMAGE": "registry/vipe-dag:1",
    "DAGSTER_NAMESPACE": "videos",
    "AWS_SECRET_ACCESS_KEY": SECRET,
}


@pytest.fixture
def instance_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dg.DagsterInstance]:
    """A Dagster instance of an example; its book is in a folder, since no test here is about the database."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "operations.yaml").write_text("fleet: {enabled: true, shards: 2}\n")

    def opened(name: str) -> dg.DagsterInstance:
        document = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
        document.pop("storage", None)
        home = tmp_path / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text(yaml.safe_dump(document))
        return open_instance(home)

    return opened


def launch(instance: dg.DagsterInstance, store: Path, **tags: str) -> None:
    """Gives one run of a shard to the launcher of the instance."""
    job = build_definitions(root=str(store)).resolve_job_def(SHARD_JOB)
    repository = RepositoryPythonOrigin(
        executable_path=sys.executable,
        code_pointer=ModuleCodePointer("assets_defs.definitions", "defs", working_directory=None),
        container_image=None,
        entry_point=DEFAULT_DAGSTER_ENTRY_POINT,
        container_context=None,
    )
    run = instance.create_run_for_job(
        job, tags={"dagster/partition": "0-of-2", **tags}, job_code_origin=JobPythonOrigin(SHARD_JOB, repository)
    )
    instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))


@pytest.mark.parametrize(("tags", "share"), [({}, 0.5), ({"dagster-ray/config": json.dumps({"num_gpus": 0.25})}, 0.25)])
def test_a_run_on_ray_has_a_share_of_a_gpu_by_file_or_by_tag(
    instance_of: Callable[[str], dg.DagsterInstance], tmp_path: Path, tags: dict[str, str], share: float
) -> None:
    pytest.importorskip("dagster_ray", reason="comes with the extra `ray`")
    given: list[dict[str, Any]] = []
    with instance_of("dagster-ray.yaml") as instance:
        vars(instance.run_launcher)["client"] = SimpleNamespace(submit_job=lambda **job: given.append(job))
        launch(instance, tmp_path / "store", **tags)
    (job,) = given
    assert (job["entrypoint_num_cpus"], job["entrypoint_num_gpus"]) == (1, share)
    assert job["entrypoint"].startswith("dagster api execute_run ") or " -m dagster api execute_run " in job["entrypoint"]
    assert job["runtime_env"]["env_vars"]["VIPE_DAG_ROOT"] == ENVIRONMENT["VIPE_DAG_ROOT"]
    assert SECRET not in json.dumps(job), "Ray's dashboard shows what a job was given"


@pytest.fixture
def kubernetes_job(instance_of: Callable[[str], dg.DagsterInstance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """Namespace and body of what a run is sent as."""
    launcher = pytest.importorskip("dagster_k8s.launcher", reason="comes with the extra `kubernetes`")
    monkeypatch.setattr(launcher, "load_kubernetes_config", lambda **_: None)
    given: list[tuple[str, Any]] = []
    with instance_of("dagster-kubernetes.yaml") as instance:
        jobs = SimpleNamespace(create_namespaced_job_with_retries=lambda body, namespace: given.append((namespace, body)))
        monkeypatch.setattr(instance.run_launcher, "_api_client", jobs)
        launch(instance, tmp_path / "store")
    (job,) = given
    return job


def test_a_run_on_kubernetes_is_a_job_with_image_secrets_and_resources(kubernetes_job: tuple[str, Any]) -> None:
    namespace, job = kubernetes_job
    (container,) = job.spec.template.spec.containers
    assert (namespace, container.image) == ("videos", "registry/vipe-dag:1")
    assert "execute_run" in container.args
    assert container.resources.requests == {"cpu": "4", "memory": "8Gi"}
    assert [source.secret_ref.name for source in container.env_from] == ["vipe-dag"]
    assert {"VIPE_DAG_ROOT", "DAGSTER_HOME"} <= {variable.name for variable in container.env}
    assert job.spec.ttl_seconds_after_finished == 86400
    assert job.spec.template.spec.termination_grace_period_seconds == 120
    assert SECRET not in str(job)


def test_the_job_is_one_by_the_schemas_of_kubernetes(kubernetes_job: tuple[str, Any]) -> None:
    """Strictly: a field that Kubernetes does not know is an error, which a cluster would drop in silence."""
    kubernetes = pytest.importorskip("kubernetes.client", reason="comes with the extra `kubernetes`")
    schemas = pytest.importorskip("kubernetes_validate", reason="comes with the extra `dev`")
    job = kubernetes.ApiClient().sanitize_for_serialization(kubernetes_job[1])
    for version in ("1.28", "1.37"):
        assert schemas.validate(job, version, strict=True) == version
    job["spec"]["template"]["spec"]["containers"][0]["resources"]["request"] = {"cpu": "4"}
    with pytest.raises(schemas.ValidationError, match="'request' was unexpected"):
        schemas.validate(job, "1.37", strict=True)


@pytest.mark.parametrize("name", sorted(path.name for path in DEPLOY.glob("*.yaml")))
def test_an_example_names_secrets_and_holds_none(name: str) -> None:
    def values(node: object) -> list[tuple[str, object]]:
        if isinstance(node, dict):
            return [(str(key), value) for key, value in node.items()] + [pair for value in node.values() for pair in values(value)]
        return [pair for value in node for pair in values(value)] if isinstance(node, list) else []

    for key, value in values(yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))):
        if any(word in key.lower() for word in ("password", "postgres_url", "token", "access_key")):
            assert isinstance(value, bool | dict), f"{name}: {key}"
