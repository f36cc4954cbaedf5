"""Python's own documentation as a question-answering corpus that is already on every machine.

A benchmark that downloads its text cannot run offline, and invented text says nothing about
retrieval. The docstrings of the running interpreter's standard library are real, technical,
and come with known relevance: an object's summary line *describes* it, the rest of its
docstring *documents* it. So the summary is the question, the qualified name with its signature
is the answer, and the passage is the answer's line followed by the docstring without its summary.

Everything is read with `ast` from sorted files; nothing is imported.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from capibench.corpus.corpus import (
    Corpus,
    Passage,
    Question,
    classify_query,
    hash_content,
    split_of,
)
from capibench.errors import DataError

# Tests document test cases; vendored wheels and demos are not the package's interface.
_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "_bundled",
        "dist-packages",
        "idle_test",
        "node_modules",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z`\"'(<*])")


@dataclass(frozen=True, slots=True)
class DocObject:
    """One public class, function or method as its source documents it."""

    package: str
    version: str
    module: str
    qualname: str
    head: str
    summary: str
    body: str

    @property
    def id(self) -> str:
        """Short, and the same on every machine that has this version of the package."""
        key = "\0".join((self.package, self.version, self.module, self.qualname))
        return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


@dataclass
class PyDocs:
    """The corpus choice: which packages to harvest and which summaries make fair questions."""

    packages: list[str]
    heldout_fraction: float
    min_summary_words: int
    max_summary_words: int
    min_body_chars: int
    max_head_chars: int
    max_passages: int | None

    def __post_init__(self) -> None:
        if not self.packages:
            raise ValueError("packages: got an empty list; expected at least one, such as stdlib")
        if not 0.0 <= self.heldout_fraction <= 1.0:
            raise ValueError(
                f"heldout_fraction: got {self.heldout_fraction}; expected a number from 0 to 1"
            )
        if self.min_summary_words < 1:
            raise ValueError(
                f"min_summary_words: got {self.min_summary_words}; expected at least 1"
            )
        if self.max_summary_words < self.min_summary_words:
            raise ValueError(
                f"max_summary_words: got {self.max_summary_words}; "
                f"expected at least min_summary_words ({self.min_summary_words})"
            )
        if self.min_body_chars < 1:
            raise ValueError(f"min_body_chars: got {self.min_body_chars}; expected at least 1")
        if self.max_head_chars < 20:
            raise ValueError(f"max_head_chars: got {self.max_head_chars}; expected at least 20")
        if self.max_passages is not None and self.max_passages < 1:
            raise ValueError(
                f"max_passages: got {self.max_passages}; expected at least 1, or null for all"
            )

    def source_key(self) -> dict[str, object]:
        """What decides the text besides the configuration: the versions that are installed."""
        return {"packages": {s.package: s.version for s in locate(self.packages)}}

    def load(self) -> Corpus:
        """Harvest the packages and turn them into passages and questions."""
        objects: list[DocObject] = []
        versions: dict[str, str] = {}
        num_files = 0
        for source in locate(self.packages):
            versions[source.package] = source.version
            found, files = _harvest_counted(source, self.max_head_chars)
            objects += found
            num_files += files
        return self.assemble(objects, versions, num_files)

    def assemble(
        self, objects: Sequence[DocObject], versions: dict[str, str], num_files: int
    ) -> Corpus:
        """Turn documented objects into a corpus (apart from `load`, so that any tree will do)."""
        passages: list[Passage] = []
        head_of: dict[str, str] = {}
        passage_of_body: dict[str, Passage] = {}
        described: list[tuple[DocObject, Passage]] = []
        num_merged = 0
        for o in objects:
            if not o.body:
                continue
            key = _normalise(o.body)
            passage = passage_of_body.get(key)
            if passage is not None:
                num_merged += 1
            elif self.max_passages is not None and len(passages) >= self.max_passages:
                continue
            else:
                passage = Passage(
                    id=o.id,
                    text=f"{o.head}\n{o.body}",
                    title=f"{o.module}.{o.qualname}",
                    group=o.module,
                )
                passages.append(passage)
                passage_of_body[key] = passage
                head_of[passage.id] = o.head
            described.append((o, passage))

        # A summary that several objects share ("Return the name.") has no single right answer.
        uses = Counter(_normalise(o.summary) for o in objects)
        questions: list[Question] = []
        dropped: Counter[str] = Counter()
        for o, passage in described:
            num_words = len(o.summary.split())
            if not self.min_summary_words <= num_words <= self.max_summary_words:
                dropped["summary_length"] += 1
            elif len(o.body) < self.min_body_chars:
                dropped["short_body"] += 1
            elif uses[_normalise(o.summary)] > 1:
                dropped["repeated_summary"] += 1
            elif _normalise(o.summary).rstrip(".") in _normalise(passage.text):
                dropped["given_away"] += 1
            else:
                questions.append(
                    Question(
                        id=f"q-{o.id}",
                        text=o.summary,
                        relevant=(passage.id,),
                        # A merged passage shows only its first object's head.
                        answers=tuple(dict.fromkeys((o.head, head_of[passage.id]))),
                        query_class=classify_query(o.summary),
                        split=split_of(o.module, self.heldout_fraction),
                    )
                )
        content_hash = hash_content(passages, questions)
        manifest: dict[str, object] = {
            "source": "docstrings harvested with ast",
            "python_version": platform.python_version(),
            "packages": dict(sorted(versions.items())),
            "num_files": num_files,
            "num_objects": len(objects),
            "num_passages": len(passages),
            "num_questions": len(questions),
            "num_questions_heldout": sum(q.split == "heldout" for q in questions),
            "num_merged": num_merged,
            "num_without_body": sum(not o.body for o in objects),
            "num_dropped_questions": dict(sorted(dropped.items())),
            "content_hash": content_hash,
        }
        return Corpus(
            name="pydocs",
            passages=tuple(passages),
            questions=tuple(questions),
            content_hash=content_hash,
            manifest=manifest,
        )


@dataclass(frozen=True, slots=True)
class Source:
    """Where one package's files are; `prefix` is the module name that `root` stands for."""

    package: str
    version: str
    root: Path
    prefix: str


def locate(packages: Iterable[str]) -> list[Source]:
    """Find packages on disk without importing them.

    "stdlib" is the running interpreter's standard library, "installed" every top-level package
    of the environment, anything else an importable top-level name.
    """
    sources: dict[str, Source] = {}
    for name in packages:
        if name == "stdlib":
            root = Path(sysconfig.get_paths()["stdlib"])
            sources[name] = Source("stdlib", platform.python_version(), root, "")
            continue
        owners = _owners()
        wanted = sorted(owners) if name == "installed" else [name]
        for module in wanted:
            if name == "installed" and (module.startswith("_") or not module.isidentifier()):
                continue
            for root in _roots(module, required=name != "installed"):
                version = importlib.metadata.version(owners[module][0]) if module in owners else ""
                sources[f"{module}:{root}"] = Source(module, version, root, module)
    return list(sources.values())


@cache
def _owners() -> dict[str, list[str]]:
    """Distributions of every top-level name; finding them reads the file lists of all: seconds."""
    return dict(importlib.metadata.packages_distributions())


def harvest(package: str, version: str, root: Path, max_head_chars: int) -> list[DocObject]:
    """All documented public objects below a folder (or in one file), in order of file and line.

    For "stdlib" a file's module name is its path below `root`; for a package, the package's
    name and then the path.
    """
    prefix = "" if package == "stdlib" else package
    return _harvest_counted(Source(package, version, root, prefix), max_head_chars)[0]


def _roots(module: str, *, required: bool) -> list[Path]:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return [Path(p) for p in spec.submodule_search_locations]
    if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
        return [Path(spec.origin)]
    if required:
        raise DataError(
            f"corpus.packages: {module!r} has no Python source here; install it, or name "
            "'stdlib', 'installed' or an importable top-level package"
        )
    return []


def _harvest_counted(source: Source, max_head_chars: int) -> tuple[list[DocObject], int]:
    objects: list[DocObject] = []
    num_files = 0
    for path, module in _modules(source.root, source.prefix):
        try:
            text = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                # Old escapes in other people's code are not this program's business.
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except (SyntaxError, ValueError, OSError):
            # Templates and deliberately broken files exist in real trees; they document nothing.
            continue
        num_files += 1
        objects += _objects(tree, source, module, max_head_chars)
    return objects, num_files


def _modules(root: Path, prefix: str) -> Iterator[tuple[Path, str]]:
    if root.is_file():
        yield root, prefix
        return
    paths = sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix())
    for path in paths:
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if any(p in _SKIPPED_FOLDERS for p in parts):
            continue
        # "-" and the like: folders of files that are never imported (build configurations).
        if any(p.startswith("_") or not p.isidentifier() for p in parts):
            continue
        module = ".".join((prefix, *parts) if prefix else parts)
        if module:
            yield path, module


def _objects(
    tree: ast.Module, source: Source, module: str, max_head_chars: int
) -> Iterator[DocObject]:
    seen: set[str] = set()
    for node, qualname in _public_nodes(tree, ""):
        docstring = ast.get_docstring(node, clean=True)
        # Overloads and property setters repeat a name: the first documented one stands for it.
        if not docstring or qualname in seen:
            continue
        summary, body = split_docstring(docstring)
        if not summary:
            continue
        seen.add(qualname)
        yield DocObject(
            package=source.package,
            version=source.version,
            module=module,
            qualname=qualname,
            head=head_of_node(node, f"{module}.{qualname}", max_head_chars),
            summary=summary,
            body=body,
        )


_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _public_nodes(
    parent: ast.Module | ast.ClassDef, prefix: str
) -> Iterator[tuple[_Definition, str]]:
    for node in parent.body:
        if not isinstance(node, _Definition) or node.name.startswith("_"):
            continue
        qualname = f"{prefix}{node.name}"
        yield node, qualname
        if isinstance(node, ast.ClassDef):
            yield from _public_nodes(node, f"{qualname}.")


def split_docstring(docstring: str) -> tuple[str, str]:
    """Part a docstring into its summary (the question) and the rest (the passage's body).

    The summary is the first sentence of the first paragraph; lone surrogates, which cannot be
    written as UTF-8, become "?".
    """
    text = inspect.cleandoc(docstring.encode("utf-8", "replace").decode()).strip()
    paragraph, _, rest = text.partition("\n\n")
    end = _SENTENCE_END.search(paragraph)
    if end is None:
        summary, remainder = paragraph, ""
    else:
        summary, remainder = paragraph[: end.end()], paragraph[end.end() :]
    body = "\n\n".join(part for part in (remainder.strip(), rest.strip("\n")) if part.strip())
    return " ".join(summary.split()), body.strip()


def head_of_node(node: _Definition, name: str, max_chars: int) -> str:
    """The line that names an object: what an answer must say.

    Parameter names with defaults, no annotations, no `self`; a class takes its `__init__`'s.
    When that is longer than the limit only the names stay, and then only "...".
    """
    function: ast.FunctionDef | ast.AsyncFunctionDef | None
    if isinstance(node, ast.ClassDef):
        inits = (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
        function = next(inits, None)
        if function is None:
            return name
        bound = True
    else:
        function = node
        bound = False
    full = f"{name}({', '.join(_parameters(function, bound=bound, defaults=True))})"
    if len(full) <= max_chars:
        return full
    names = f"{name}({', '.join(_parameters(function, bound=bound, defaults=False))})"
    return names if len(names) <= max_chars else f"{name}(...)"


def _parameters(
    function: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool, defaults: bool
) -> list[str]:
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults))
    values = [*missing, *args.defaults]
    out: list[str] = []
    for i, (arg, value) in enumerate(zip(positional, values, strict=True)):
        if i == 0 and (bound or arg.arg in ("self", "cls")):  # callers do not pass it
            continue
        out.append(_parameter(arg.arg, value if defaults else None))
        if args.posonlyargs and i == len(args.posonlyargs) - 1:
            out.append("/")
    if args.vararg is not None:
        out.append(f"*{args.vararg.arg}")
    elif args.kwonlyargs:
        out.append("*")
    for arg, value in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        out.append(_parameter(arg.arg, value if defaults else None))
    if args.kwarg is not None:
        out.append(f"**{args.kwarg.arg}")
    return out


def _parameter(name: str, default: ast.expr | None) -> str:
    return name if default is None else f"{name}={' '.join(ast.unparse(default).split())}"


def _normalise(text: str) -> str:
    return " ".join(text.split()).casefold()
