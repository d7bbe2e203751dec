"""Somebody is told when a run failed, by a webhook or a command that the environment names: the address of a webhook is a secret."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from itertools import pairwise

import dagster as dg

from assets_defs.failures import first_failure
from assets_defs.rerun import PARTITION_TAG

ALERTS_SENSOR = "alerts"
URL_VARIABLE = "VIPE_DAG_ALERT_URL"
COMMAND_VARIABLE = "VIPE_DAG_ALERT_COMMAND"
SECONDS_BETWEEN_TICKS = 30
SECONDS_TO_SEND = 20.0


def build_alerts() -> list[dg.SensorDefinition]:
    """The sensor; none where neither variable is set."""
    if not (os.environ.get(URL_VARIABLE) or os.environ.get(COMMAND_VARIABLE)):
        return []

    @dg.run_failure_sensor(
        name=ALERTS_SENSOR,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Tells ${URL_VARIABLE} or ${COMMAND_VARIABLE} of every run that failed.",
    )
    def alerts(context: dg.RunFailureSensorContext) -> None:
        send(alert(context))

    return [alerts]


def alert(context: dg.RunFailureSensorContext) -> Mapping[str, str]:
    """What is told: `text`, which chat services show, and the same in pieces."""
    run = context.dagster_run
    about = run.tags.get(PARTITION_TAG, run.job_name)
    failure = first_failure(context.get_step_failure_events())
    reason = failure.sentence(about) if failure else f"{about}: {_outside_steps(context)}"
    pieces = {"job": run.job_name, "partition": run.tags.get(PARTITION_TAG, ""), "stage": failure.stage if failure else ""}
    return {"text": f"vipe-dag: {reason} (run {run.run_id})", "run_id": run.run_id, **pieces}


def _outside_steps(context: dg.RunFailureSensorContext) -> str:
    """Why a run failed of which no step did. Who notices that a process is gone writes how it ended just before the failure."""
    events = [entry.dagster_event for entry in context.instance.all_logs(context.dagster_run.run_id) if entry.dagster_event]
    noticed = [before.message or "" for before, event in pairwise(events) if event.is_run_failure and before.is_engine_event]
    return " ".join([context.failure_event.message or "", *noticed]).strip()


def send(message: Mapping[str, str]) -> None:
    """Posts the message as JSON, and gives it to the command on standard input. Raises dagster.Failure, which never holds the address."""
    body = json.dumps(message).encode()
    url, command = os.environ.get(URL_VARIABLE), os.environ.get(COMMAND_VARIABLE)
    if url:
        _post(url, body)
    if command:
        _call(command, body)


def _post(url: str, body: bytes) -> None:
    if not url.startswith(("http://", "https://")):
        raise dg.Failure(f"${URL_VARIABLE} is not an http(s) address")
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_TO_SEND):
            pass
    except urllib.error.HTTPError as error:
        raise dg.Failure(f"the webhook of ${URL_VARIABLE} answered {error.code}") from None
    except (OSError, ValueError) as error:
        raise dg.Failure(f"the webhook of ${URL_VARIABLE} cannot be reached ({type(error).__name__})") from None


def _call(command: str, body: bytes) -> None:
    try:
        subprocess.run(shlex.split(command), input=body, timeout=SECONDS_TO_SEND, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise dg.Failure(f"the command of ${COMMAND_VARIABLE} ended with {error.returncode}") from None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise dg.Failure(f"the command of ${COMMAND_VARIABLE} failed ({type(error).__name__})") from None
