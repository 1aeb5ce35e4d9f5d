"""One run of a verb: its output folder, its clock, its random numbers, and the record `run.json` it leaves.

Everything a run writes goes to a staging folder `.<name>.partial` inside the output folder and is moved into place when
all is done, `run.json` last. So a folder with `run.json` holds a whole result; one without holds at most temporaries.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
import torch

from suite import __version__
from suite.errors import InputError
from suite.records import dumps, plain, write_json

# --- what a run stands on ---------------------------------------------------------------------------------------------


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def case_seed(seed: int, identity: str | bytes) -> int:
    """A 63-bit seed from the run's seed and the case's identity (a slice's position, a file's hash, a member's number).

    The first bytes of SHA-256, so that a case's random numbers depend on nothing else: no order, batch or worker.
    """
    text = identity.encode() if isinstance(identity, str) else identity
    digest = hashlib.sha256(b"%d\0" % seed + text).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, identity: str | bytes, device: str | torch.device = "cpu") -> torch.Generator:
    """The random numbers of one case, see `case_seed`. A CPU generator gives the same numbers on every machine."""
    return torch.Generator(device).manual_seed(case_seed(seed, identity))


def resolve_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu` or `cuda`.

    Raises:
        InputError: CUDA is asked for and absent, or the name is another.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device '{name}'; use auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no CUDA device was found"
        raise InputError(f"--device cuda cannot be used: {why}; use --device cpu or auto")
    return torch.device("cuda")


def peak_memory_mb(device: torch.device) -> float:
    """Peak of the memory allocated on a CUDA device, else of this process's resident memory, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Stopwatch:
    """Seconds by name, each moment given to the innermost name only, so that the parts never exceed the whole.

    `with watch("network"): ...`, or `timed = watch("network")(function)`. On CUDA it waits for the device at every
    change, because kernels run behind Python's back. One thread only.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._cuda = device is not None and device.type == "cuda"
        self._names: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._charge()
        self._names.append(name)
        try:
            yield
        finally:
            self._charge()
            self._names.pop()

    def _charge(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._names:
            name = self._names[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


# --- the run ----------------------------------------------------------------------------------------------------------


class Run:
    """Context manager around the work of one verb.

        with Run(options.output, domain="ct", config=config, inputs=[scan], command=options.command) as run:
            with run.clock("network"):
                ...
            save(image, run.output("recon.nii.gz"))
            run.warn("The body leaves the field of view.")
            run.estimator, run.nfe, run.misfit_chi2 = "point", 20, 1.02

    The record is written when the body ends well. When the body fails nothing of it is left: an `InputError` also
    removes the folder if the run made it; any other end keeps the finished pieces (`piece`), and the same command goes
    on there.

    Attributes:
        clock: a `Stopwatch`; the record tells its `network` and `operator`.
        method, estimator, prior, nfe, misfit_chi2, metrics, warnings: what the record says; set them in the body.
            `estimator` is "sample", "point" or "mean"; `prior` is `{"name", "sha256"}` or None.
        extra: further fields of the record (`unit`, ...).
        record: what was written, after the end.
    """

    def __init__(
        self,
        output: Path,
        *,
        domain: str,
        config: Any,
        inputs: Sequence[Path],
        command: Sequence[str],
        device: torch.device | None = None,
        seed: int = 0,
        method: str | None = None,
        as_file: bool = False,
        overwrite: bool = False,
    ) -> None:
        """
        Args:
            output: the output folder, or with `as_file` the one output file.
            config: the resolved settings, a model or mapping.
            inputs: files, or folders whose files all count; only read.
            command: the command line's words; folders and credentials in them are left out of the record.
            overwrite: replace a finished result (at the end, when the new one is whole).
        """
        self.domain, self.config, self.seed, self.overwrite = domain, config, seed, overwrite
        self.device = device or torch.device("cpu")
        self.clock = Stopwatch(self.device)
        self.method = method
        self.estimator: str | None = None
        self.prior: Mapping[str, Any] | None = None
        self.nfe = 0
        self.misfit_chi2: float | None = None
        self.metrics: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.extra: dict[str, Any] = {}
        self.record: dict[str, Any] = {}
        self._command = safe_command(command)
        self._inputs = tuple(inputs)
        self._target = output if as_file else None
        self._folder = output.parent if as_file else output
        self._record_file = output.with_name(f"{output.name}.run.json") if as_file else output / "run.json"
        self._staging = self._folder / f".{output.name if as_file else 'run'}.partial"
        self._made: list[Path] = []
        self._old_outputs: list[str] = []

    def warn(self, sentence: str) -> None:
        """Add a sentence to the record's `warnings`, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def output(self, name: str) -> Path:
        """Where to write the output `name` (a file, or a folder that the caller makes) until it is moved into place.

        Raises:
            InputError: the output would replace an input of this run.
        """
        if self._target is not None and name != self._target.name:
            raise ValueError(f"a run whose output is the file {self._target.name} has no output {name}")
        target = (self._folder / name).resolve()
        if any(target == path.resolve() for path, _ in self.input_files):
            raise InputError(f"the output {self._folder / name} would replace an input; choose another -o")
        path = self._staging / "outputs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def piece(self, key: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """`compute()`, or what an interrupted run of the same settings on the same inputs had computed for `key`.

        Args:
            key: identity of the piece (a slice's number, ...), a file name.
            compute: gives named arrays.
        """
        folder = self.pieces()
        path = folder / f"{key}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        arrays = dict(compute())
        temporary = folder / f".{key}.partial"
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
        return arrays

    def pieces(self) -> Path:
        """The folder whose files survive an interruption: only runs of the same settings on the same inputs see it.

        For finished pieces too large for `piece`; write under a temporary name, then rename.
        """
        folder = self._staging / f"pieces-{self._fingerprint()}"
        folder.mkdir(exist_ok=True)
        return folder

    # --- the two ends ---

    def __enter__(self) -> Run:
        self._started = time.perf_counter()
        self._check()
        self.input_files = list(_input_files(self._inputs, self._folder))
        self._hashes = [{"file": name, "sha256": sha256_file(path)} for path, name in self.input_files]
        self._make_folders()
        self._clear_outputs()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._clean(keep_pieces=True)
            raise
        if kind is not None:
            self._clean(keep_pieces=not issubclass(kind, InputError))

    def _check(self) -> None:
        """Refuse a finished result, and an output that is not of its kind."""
        finished = self._record_file.exists()
        if self._folder.exists() and not self._folder.is_dir():
            raise InputError(f"the output {self._folder} is a file; a folder is needed")
        if self._target is None and finished and not self.overwrite:
            raise InputError(f"{self._folder} already holds a finished result; add --overwrite or choose another -o")
        if self._target is not None and self._target.exists() and not self.overwrite:
            raise InputError(f"{self._target} already exists; add --overwrite or choose another -o")
        if self._target is not None and self._target.is_dir() and not finished:
            raise InputError(f"the output {self._target} is a folder that no run wrote; choose another -o")
        if finished and self._target is None:
            with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):  # a damaged record lists nothing
                old = json.loads(self._record_file.read_text(encoding="utf-8"))
                self._old_outputs = [name for name in old.get("outputs", []) if _is_inside(name)]

    def _make_folders(self) -> None:
        missing = [path for path in (self._staging, *self._staging.parents) if not path.exists()]
        try:
            self._staging.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {self._folder}: {error.strerror}") from None
        self._made = missing

    def _finish(self) -> None:
        """Move the outputs into place and write the record."""
        outputs = self._staging / "outputs"
        made = [] if not outputs.exists() else sorted(path for path in outputs.rglob("*") if path.is_file())
        names = [path.relative_to(outputs).as_posix() for path in made]
        if self.overwrite:
            self._record_file.unlink(missing_ok=True)
        if self._target is not None:
            if self._target.is_dir():
                os.replace(self._target, self._staging / "old")
            os.replace(outputs / self._target.name, self._target)
            names = [self._target.name]
        else:
            for path, name in zip(made, names, strict=True):
                (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, self._folder / name)
            self._remove_old(set(self._old_outputs) - set(names))
        self.record = self._describe(names)
        write_json(self.record, self._record_file)
        shutil.rmtree(self._staging)

    def _describe(self, outputs: list[str]) -> dict[str, Any]:
        seconds = {"total": time.perf_counter() - self._started}
        seconds |= {name: self.clock.seconds.get(name, 0.0) for name in ("network", "operator")}
        record = {
            "command": self._command,
            "version": __version__,
            "domain": self.domain,
            "method": self.method,
            "estimator": self.estimator,
            "config": self.config,
            "seed": self.seed,
            "device": str(self.device),
            "prior": self.prior,
            "inputs": self._hashes,
            "outputs": outputs,
            "nfe": self.nfe,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "peak_memory_mb": round(peak_memory_mb(self.device), 1),
            "misfit_chi2": self.misfit_chi2,
            "warnings": self.warnings,
            "metrics": self.metrics,
            **self.extra,
        }
        return dict(plain(record))

    def _clean(self, *, keep_pieces: bool) -> None:
        """Take back what a failed run left, and the folders it made, as far as they are empty."""
        self._clear_outputs()
        if not keep_pieces and self._staging in self._made:
            shutil.rmtree(self._staging, ignore_errors=True)
        for path in dict.fromkeys((self._staging, *self._made)):
            with contextlib.suppress(OSError):  # not empty: it holds pieces, or somebody else's files
                path.rmdir()

    def _clear_outputs(self) -> None:
        for path in self._staging.glob("*"):
            if not path.name.startswith("pieces-"):
                shutil.rmtree(path, ignore_errors=True)

    def _remove_old(self, names: set[str]) -> None:
        """Files of the replaced result which the new one does not have, and folders they leave empty."""
        for name in names:
            path = self._folder / name
            path.unlink(missing_ok=True)
            for folder in path.parents[: len(PurePosixPath(name).parts) - 1]:
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _fingerprint(self) -> str:
        what = [__version__, self.domain, self.method, self.config, self.seed, str(self.device)]
        parts = [*what, self.prior, self._hashes]
        return hashlib.sha256(dumps(parts).encode()).hexdigest()[:16]


def _input_files(inputs: Sequence[Path], output: Path) -> Iterator[tuple[Path, str]]:
    """Each input file with the name the record gives it: its own, or inside a folder `folder/name`.

    An output folder that lies inside an input folder does not count.
    """
    output = output.resolve()
    for path in inputs:
        if path.is_dir():
            top = path.resolve()
            files = (file for file in top.rglob("*") if file.is_file())
            for file in sorted(file for file in files if output == top or not file.is_relative_to(output)):
                yield file, (Path(top.name) / file.relative_to(top)).as_posix()
        elif path.exists():
            yield path, path.name
        else:
            raise InputError(f"{path}: no such file or folder")


def _is_inside(name: Any) -> bool:
    path = PurePosixPath(str(name))
    return isinstance(name, str) and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def safe_command(words: Sequence[str]) -> str:
    """The command line fit to be shown: folders above a file and credentials in an address are left out."""

    def safe(word: str) -> str:
        key, value = re.fullmatch(r"([\w.-]+=)?(.*)", word, re.DOTALL).groups("")  # type: ignore[union-attr]
        if "://" in value:
            return key + re.sub(r"//[^/@]*@", "//", value)
        return key + (Path(value).name if "/" in value or os.sep in value else value)

    return shlex.join(safe(word) for word in words)
