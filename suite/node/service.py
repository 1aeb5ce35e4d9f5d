"""The node itself: a receiver, one job at a time in a process of its own, and a sender, joined by the queue on disk."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydicom import dcmread

from suite.batch.engines import Job, LocalEngine, Outcome
from suite.errors import InputError
from suite.node.queue import OPEN, Case, Queue
from suite.node.receive import Receiver
from suite.node.rules import NodeConfig, Rule
from suite.node.send import send
from suite.records import dumps

log = logging.getLogger("diffsuite.node")

MAX_STARTS = 10
"""Starts of one job that only the end of the node cut short; a job that takes the machine down with it ends so."""

_TICK = 0.5
"""Seconds between looks at the clock: for idle series, retries and old cases."""


class Node:
    """Runs until `stop` is called; every state is on disk before the next step is taken."""

    def __init__(self, aet: str, config: NodeConfig, folder: Path) -> None:
        """
        Raises:
            InputError: a rule's job is wrong.
        """
        self.aet, self.config = aet, config
        self._jobs = {rule.name: rule.words() for rule in config.rules}
        self._stop = threading.Event()
        self._fault: BaseException | None = None
        self._engine: LocalEngine | None = None
        self.queue = Queue(
            folder, max_series_objects=config.max_series_objects, min_free_bytes=config.min_free_gb * 2**30
        )
        self._receiver = Receiver(aet, config, self.queue)

    def run(self, host: str, port: int) -> None:
        """Listen and work until `stop`; what is then under way goes on at the next start.

        Raises:
            InputError: the address cannot be had.
            OSError: the queue's disk fails.
        """
        try:
            self._receiver.listen(host, port)
        except OSError as error:
            raise InputError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
        workers = [
            threading.Thread(target=self._repeat, args=args, name=args[0].__name__)
            for args in ((self._compute, "received", "computing"), (self._deliver, "computed"))
        ]
        log.info("%s listens on %s port %d; %d waiting", self.aet, host, port, len(self.queue.waiting(*OPEN)))
        try:
            for worker in workers:
                worker.start()
            while not self._stop.wait(_TICK):
                for series in self.queue.idle(self.config.idle_seconds):
                    self.queue.complete(series, "idle")
                self.queue.remove_old(self.config.keep_days)
        finally:
            self.stop()
            self._receiver.close()
            for worker in workers:
                while worker.is_alive():
                    self._interrupt()
                    worker.join(_TICK)
            log.info("stopped")
        if self._fault is not None:
            raise self._fault

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stop.set()

    def _repeat(self, work: Callable[[Case], None], *states: str) -> None:
        """Do `work` on every case that comes to one of `states`, the oldest first. A fault of the node itself ends it."""
        try:
            while not self._stop.is_set():
                for case in self.queue.waiting(*states):
                    if self._stop.is_set():
                        return
                    work(case)
                with self.queue.changed:
                    self.queue.changed.wait(_TICK)
        except BaseException as error:
            self._fault = error
            self.stop()

    # --- the job ---

    def _compute(self, case: Case) -> None:
        """From received to computed, or to failed, unmatched or repeated."""
        rule = self._prepared(case) if case.state == "received" else self._rule_of(case)
        if rule is None:
            return
        if not (case.result / "run.json").exists():  # written last: with it, the result is whole
            if case.data["starts"] >= MAX_STARTS:
                self._fail(case, "job", f"the job was started {MAX_STARTS} times and never came to an end")
                return
            case.note(starts=case.data["starts"] + 1)
            outcome = self._run_job(case, rule)
            if outcome.error:
                if self._stop.wait(1.0):  # the end of the node took the job with it
                    case.note(starts=case.data["starts"] - 1)
                else:
                    self._fail(case, "job", outcome.error)
                return
        if not self._derived(case, rule):
            self._fail(case, "job", f"the result holds no {' or '.join(rule.send.files)}")
            return
        case.step("computed", objects=len(self._derived(case, rule)))
        log.info("case %s: computed, %d object(s) to send", case.name, len(self._derived(case, rule)))

    def _prepared(self, case: Case) -> Rule | None:
        """The rule of a new case; None when there is nothing to compute."""
        files = case.received
        try:
            rule = self.config.rule_for(dcmread(files[0], stop_before_pixels=True))
        except Exception as error:  # a decoder meets foreign bytes
            self._fail(case, "rule", f"{files[0].name} cannot be read ({type(error).__name__})")
            return None
        if rule is None:
            case.step("unmatched", objects=len(files))
            log.info("case %s: no rule fits, nothing is done", case.name)
            return None
        job = hashlib.sha256(dumps([rule.job, rule.send]).encode()).hexdigest()
        digest = case.digest()
        twin = self.queue.twin(case, digest, job)
        case.note(rule=rule.name, job=job, digest=digest)
        if twin is not None:
            case.step("repeated", of=twin.name)
            log.info("case %s: the same objects as case %s, nothing is done", case.name, twin.name)
            return None
        case.step("computing", rule=rule.name, objects=len(files))
        log.info("case %s: %d object(s), rule '%s'", case.name, len(files), rule.name)
        return rule

    def _rule_of(self, case: Case) -> Rule | None:
        rule = self.config.rule(str(case.data["rule"]))
        if rule is None:
            self._fail(case, "rule", "its rule is no longer in the rules file")
        return rule

    def _run_job(self, case: Case, rule: Rule) -> Outcome:
        """The verb in a fresh process, as `diffsuite batch` would call it."""
        domain, verb, words = self._jobs[rule.name]
        job = Job(case.name, domain, verb, str(case.folder / "received"), str(case.result), words, self.config.threads)
        late = threading.Event()

        def interrupt() -> None:
            late.set()
            self._interrupt()

        timer = threading.Timer(60 * rule.timeout_minutes, interrupt)
        with LocalEngine(1) as engine:
            self._engine = engine
            timer.start()
            try:
                outcome = next(iter(engine.run([job])))
            finally:
                timer.cancel()
                self._engine = None
        if outcome.error and late.is_set():
            return Outcome(job.case, error=f"the job took longer than {rule.timeout_minutes:g} minutes and was stopped")
        return outcome

    def _interrupt(self) -> None:
        engine = self._engine
        if engine is not None:
            engine.interrupt()

    # --- the way out ---

    def _derived(self, case: Case, rule: Rule) -> list[Path]:
        return [path for pattern in rule.send.files for path in sorted(case.result.glob(pattern)) if path.is_file()]

    def _deliver(self, case: Case) -> None:
        """From computed to sent; a peer that is away is asked again later, and given up at last."""
        due = case.data.get("next_attempt")
        if due is not None and _now() < datetime.fromisoformat(due):
            return
        rule = self._rule_of(case)
        if rule is None:
            return
        done = case.sent()
        names = {path: path.relative_to(case.result).as_posix() for path in self._derived(case, rule)}
        left = [path for path, name in names.items() if name not in done]
        fault = (
            send(left, rule.send, self.aet, lambda path: case.confirm(names[path]), self._stop.is_set) if left else ""
        )
        if not fault:
            case.step("sent", objects=len(names))
            log.info("case %s: sent to %s", case.name, rule.send.aet)
        elif not self._stop.is_set():
            self._postpone(case, fault)

    def _postpone(self, case: Case, fault: str) -> None:
        attempts = case.data["attempts"] + 1
        if _now() - case.since("computed") > timedelta(hours=self.config.give_up_hours):
            self._fail(case, "send", f"given up after {attempts} attempts: {fault}")
            return
        delay = min(self.config.retry_seconds * 2.0 ** min(attempts - 1, 30), self.config.retry_max_seconds)
        next_attempt = (_now() + timedelta(seconds=delay)).isoformat()
        case.note(attempts=attempts, next_attempt=next_attempt)
        case.step("computed", attempt=attempts, error=fault)
        log.warning("case %s: %s; next attempt in %.0f s", case.name, fault, delay)

    def _fail(self, case: Case, at: str, error: str) -> None:
        """Keep a failed case. The sentence stays in its folder: a job's may quote what is in the images' headers."""
        case.step("failed", at=at, error=error)
        log.error("case %s: FAILED (%s); its state.json says why", case.name, at)


def _now() -> datetime:
    return datetime.now(UTC)
