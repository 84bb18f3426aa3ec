# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What besom's modules share: options into requests, outcomes into results. The engine knows no Ansible."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from .besom.effort import read_effort
from .besom.errors import BesomError, UsageError
from .besom.policy import POLICY_KEYS
from .besom.run import Run
from .besom.shutdown import Shutdown
from .besom.units import Share, format_size, parse_duration, parse_factor

# What arrives is compiled anew on every host: rooms that few tasks need are imported by those.
if TYPE_CHECKING:
    from .besom.fetch import Opener
    from .besom.housekeep import Outcome
    from .besom.locks import Lock
    from .besom.preflight import Need, Verdict
    from .besom.report import Report

LOCK_TIMEOUT = dict(type="str", default="30s")
REDIS_URL = dict(type="str", no_log=True)
REMOVAL = dict(
    type="dict",
    options=dict(
        workers=dict(type="str"),
        max_rate=dict(type="int"),
        io_class=dict(type="str", choices=["best-effort", "idle"]),
    ),
)
POLICY = dict(
    max_size=dict(type="str"),
    target_size=dict(type="str"),
    max_age=dict(type="str"),
    min_free=dict(type="str"),
    max_entries=dict(type="int"),
    min_age=dict(type="str"),
    order=dict(type="str", choices=["oldest", "lru", "created"]),
)
STORE = dict(
    name=dict(type="str"),
    path=dict(type="path", required=True),
    layout=dict(type="str", choices=["files", "trees", "sessions"], required=True),
    group_key=dict(type="str", no_log=False),
    lock_backend=dict(type="str", choices=["flock", "redis"], default="flock"),
    before_prune=dict(type="str"),
    after_prune=dict(type="str"),
    hook_timeout=dict(type="str", default="60s"),
    **POLICY,
)
TEMPS = dict(
    path=dict(type="path", required=True),
    pattern=dict(type="list", elements="str", default=[".temp-*"]),
    older_than=dict(type="str", default="24h"),
)
WEB = dict(
    headers=dict(type="dict"),
    url_username=dict(type="str"),
    url_password=dict(type="str", no_log=True),
    force_basic_auth=dict(type="bool", default=False),
    validate_certs=dict(type="bool", default=True),
    use_proxy=dict(type="bool", default=True),
    timeout=dict(type="int", default=10),
)
GATE = dict(
    needs=dict(
        type="list",
        elements="dict",
        default=[],
        options=dict(path=dict(type="path", required=True), size=dict(type="str"), inodes=dict(type="int")),
    ),
    urls=dict(
        type="list",
        elements="dict",
        default=[],
        options=dict(
            url=dict(type="str", required=True),
            path=dict(type="path", required=True),
            extract=dict(type="bool", default=True),
        ),
    ),
    reserve=dict(type="str"),
    expand=dict(type="float", default=3.0),
    on_unknown=dict(type="str", choices=["warn", "fail"], default="warn"),
    **WEB,
)


def run_of(module: AnsibleModule) -> Run:
    """How this module runs: check mode only plans; TERM or a lost connection ends it between two entries."""
    timeout = parse_duration(module.params.get("lock_timeout", 0), "lock_timeout", zero=True)
    run = Run(dry_run=module.check_mode, lock_timeout=timeout, shutdown=Shutdown().listen())
    if module.params.get("removal") is not None:
        run.effort = read_effort(module.params["removal"], "removal: ")
    # Before anything is done, also in check mode.
    run.shared_lock = _shared_locks(module.params)
    return run


def _shared_locks(params: dict[str, Any]) -> Callable[[str], Lock] | None:
    """What makes the locks of shared stores; None for a task that has none. Raises UsageError."""
    if "redis_url" not in params:
        return None  # it only looks
    url = params["redis_url"]
    if url is not None:
        from .besom.redis_lock import check_redis_url

        check_redis_url(url)
    stores = [params, *(params.get("stores") or ())]
    if all(store.get("lock_backend", "flock") == "flock" for store in stores):
        return None
    if url is None:
        raise UsageError("lock_backend: redis needs redis_url; set it.")
    # Only such a task needs these on the target.
    try:
        import portalocker
    except ImportError:
        raise UsageError(missing_required_lib("portalocker")) from None
    try:
        import redis
    except ImportError:
        raise UsageError(missing_required_lib("redis")) from None
    from .besom.redis_lock import redis_locks

    return redis_locks(url, redis, portalocker)


def policy_values(params: dict[str, Any]) -> dict[str, Any]:
    return {key: params[key] for key in POLICY_KEYS}


class Gate:
    """The gate that the options of GATE describe; reads them all before anything is asked or done."""

    def __init__(self, module: AnsibleModule, run: Run) -> None:
        params = module.params
        self._run = run
        self._opener = _opener(params) if params["urls"] else None
        self._reserve = Share(params["reserve"], "reserve") if params["reserve"] is not None else None
        self._expand = parse_factor(params["expand"], "expand")
        self._unknown_fails = params["on_unknown"] == "fail"
        self.needs: list[Need] = []
        if params["needs"] or params["urls"]:
            from .besom.preflight import read_needs

            self.needs = [*read_needs(params["needs"]), *read_needs(params["urls"], "urls: ")]

    def __call__(self) -> Verdict:
        from .besom.preflight import preflight

        return preflight(
            self.needs, self._opener, self._reserve, self._expand, self._unknown_fails, self._run.forecast
        )


def _opener(params: dict[str, Any]) -> Opener:
    # Only a task with URLs needs it, and it takes longer to import than most tasks take.
    from ansible.module_utils.urls import open_url

    def open_(url: str, method: str, headers: dict[str, str]) -> Any:
        return open_url(
            url,
            method=method,
            headers={**(params["headers"] or {}), **headers},
            timeout=params["timeout"],
            validate_certs=params["validate_certs"],
            use_proxy=params["use_proxy"],
            url_username=params["url_username"],
            url_password=params["url_password"],
            force_basic_auth=params["force_basic_auth"],
        )

    return open_


@contextlib.contextmanager
def one_sentence(module: AnsibleModule) -> Iterator[None]:
    """Turn the engine's one family of errors into one failed task each."""
    try:
        yield
    except BesomError as error:
        module.fail_json(msg=str(error))


def finish(module: AnsibleModule, outcome: Outcome, result: dict[str, Any]) -> None:
    """End the module with result, failed if anything in the outcome did."""
    if module._diff:
        result["diff"] = [_diff(report) for report in outcome.reports if report.changed]
    for warning in result.pop("warnings"):
        module.warn(warning)
    messages = outcome.messages
    if messages:
        module.fail_json(msg=" ".join(messages), **result)
    module.exit_json(msg=summary(outcome), **result)


def summary(outcome: Outcome) -> str:
    """What was done, or would be, in one sentence."""
    dry_run = any(report.dry_run for report in outcome.reports)
    tallies = [report.planned if dry_run else report.removed for report in outcome.reports]
    entries = sum(tally.entries for tally in tallies)
    kept = sum(report.kept.total + report.anomalies.total for report in outcome.reports)
    done = "Would remove" if dry_run else "Removed"
    text = "Nothing to remove"
    if entries:
        size = format_size(sum(tally.bytes for tally in tallies))
        text = f"{done} {entries} {'entry' if entries == 1 else 'entries'}, {size}"
    return f"{text}; kept {kept} for the reasons listed." if kept else f"{text}."


def _diff(report: Report) -> dict[str, str]:
    lines = [f"{item['path']} ({item['reason']})\n" for item in report.victims.items]
    more = report.victims.total - len(lines)
    if more:
        lines.append(f"and {more} more\n")
    before = after = ""
    if report.is_measured:
        before, after = (
            f"{format_size(size)} in use\n" for size in (report.bytes_before, report.bytes_after)
        )
    header = report.to_dict()["store"]
    return {
        "before_header": header,
        "after_header": header,
        "before": before + "".join(lines),
        "after": after,
    }
