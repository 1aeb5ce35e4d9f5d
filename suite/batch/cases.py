"""Which cases a batch has: the inputs behind the words of the command line, and a folder name for each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from suite.errors import InputError

IsInput = Callable[[Path], bool]


def find_inputs(words: Sequence[Path], is_input: IsInput | None, output: Path) -> tuple[list[Path], int]:
    """The inputs behind files, folders and lists, each once.

    A `.txt` file is a list of paths (blank lines and lines that begin with # do not count; a relative path starts at the
    list's folder, else at the current one). In a folder, at any depth, each file that is an input counts and each folder
    that is one as a whole (a DICOM series); what is hidden does not. A folder without any is itself taken for an input,
    and so is a path that does not exist, so that its case fails with a sentence.

    Args:
        is_input: the domain's opinion (`suite.domain.Domain.is_input`); None: every file is an input.
        output: the batch's own folder, never an input.

    Returns:
        The inputs, and how many files in folders were passed over.

    Raises:
        InputError: a list cannot be read or is empty.
    """
    found: dict[Path, Path] = {}
    passed = 0
    for word in words:
        listed = word.suffix.lower() == ".txt" and word.is_file() and not (is_input and is_input(word))
        for path in _listed(word) if listed else [word]:
            files, others = _inside(path, is_input, output.resolve()) if path.is_dir() else ([path], 0)
            passed += others
            for file in files or [path]:
                found.setdefault(file.resolve(), file)
    return list(found.values()), passed


def _listed(file: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"{file} is no list of paths; a UTF-8 text with one path a line is needed") from None
    paths = [Path(line).expanduser() for line in lines if line and not line.startswith("#")]
    if not paths:
        raise InputError(f"the list {file} is empty; one path a line is needed")
    return [file.parent / path if (file.parent / path).exists() else path for path in paths]


def _inside(folder: Path, is_input: IsInput | None, output: Path) -> tuple[list[Path], int]:
    """Inputs in a folder in the order of their names, and the number of other files."""
    if is_input is not None and is_input(folder):
        return [folder], 0
    found: list[Path] = []
    passed = 0
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.resolve() == output:
            continue
        if entry.is_dir() and not entry.is_symlink():  # a link to a folder may lead in circles
            inner, others = _inside(entry, is_input, output)
            found += inner
            passed += others
        elif entry.is_file() and (is_input is None or is_input(entry)):
            found.append(entry)
        else:
            passed += 1
    return found, passed


def stem(path: Path) -> str:
    """The name without its suffix (`.nii.gz` and the like count as one); a folder's name as it is."""
    if path.is_dir():
        return path.name
    return Path(path.stem).stem if path.suffix == ".gz" else path.stem


def case_names(inputs: Sequence[Path], known: Mapping[str, str], taken: Collection[str] = ()) -> dict[Path, str]:
    """A folder name for each input: its stem; where that clashes, with its suffix, then with the folders above it.

    Args:
        inputs: different paths.
        known: names given earlier, by resolved path; they stay.
        taken: further names that are not free.

    Raises:
        InputError: two inputs cannot be told apart.
    """
    names = {path: known[str(path.resolve())] for path in inputs if str(path.resolve()) in known}
    forbidden = {name.casefold() for name in (*known.values(), *taken)}
    level = {path: 0 for path in inputs if path not in names}
    while True:
        labels = {path: _label(path, n) for path, n in level.items()}
        count = Counter(label.casefold() for label in labels.values())
        clashing = [p for p, name in labels.items() if count[name.casefold()] > 1 or name.casefold() in forbidden]
        if not clashing:
            return {path: names.get(path) or labels[path] for path in inputs}
        for path in clashing:
            level[path] += 1


def _label(path: Path, level: int) -> str:
    """Level 0: stem; 1: name; 2: parent_stem; 3: parent_name; ..."""
    above = path.resolve().parts[1:-1]
    folders, with_suffix = divmod(level, 2)
    if folders > len(above):
        raise InputError(f"no folder name can be found for {path} that no other case has; give it another name")
    own = path.name if with_suffix else stem(path)
    return "_".join((*above[len(above) - folders :], own))


def files_of(path: Path, output: Path) -> Iterator[Path]:
    """The file, or all files of the folder except those of the batch's own output, sorted."""
    if not path.is_dir():
        yield path
        return
    output = output.resolve()
    yield from sorted(f for f in path.rglob("*") if f.is_file() and not f.resolve().is_relative_to(output))


def content_hash(path: Path, output: Path) -> str:
    """SHA-256 of a file's content; of a folder, that of the names and hashes of its files."""

    def digest(file: Path) -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    if not path.is_dir():
        return digest(path)
    lines = (f"{digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files_of(path, output))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
