"""YAML whose mappings know their lines, so that every mistake in a settings file is reported with the place.

`read_sections` is yaml.safe_load with two differences: mappings become `Section`s, and a key that stands twice is a
mistake (PyYAML would silently take the last). Mistakes in the content are raised with `mistake`, in the form of
PyYAML's own, so that one `except` gives all of them file and line.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

Result = TypeVar("Result")


class Section(dict[Any, Any]):
    """A YAML mapping; `marks` says where each of its keys stands."""

    marks: dict[Any, yaml.Mark]


def read_sections(path: Path, build: Callable[[object], Result]) -> Result:
    """`build` of the content of a YAML file; any mistake in either is a ValueError that starts with `file:line:`."""
    try:
        return build(_Loader(path.read_text(encoding="utf-8")).get_single_data())
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: {error.problem or error.context}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a control character, the date 2020-99-99, [[[[...
        raise ValueError(f"{path}: not YAML: {error}") from None


def mistake(mark: yaml.Mark | None, problem: str) -> yaml.MarkedYAMLError:
    """What to raise for `problem` at `mark`; None where the whole file is meant."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def require_section(value: object, mark: yaml.Mark | None, where: str) -> Section:
    """`value` if it is a mapping; raises a mistake that names `where` otherwise."""
    if not isinstance(value, Section):
        raise mistake(mark, f"{where} is {reprlib.repr(value)}, not a mapping")
    return value


class _Loader(yaml.SafeLoader):
    def section(self, node: yaml.MappingNode) -> Section:
        # Before construct_mapping, which merges `<<` keys into the node: those may be overridden.
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names.count(key.value) > 1:
                raise mistake(key.start_mark, f"key '{key.value}' stands {names.count(key.value)} times")
        section = Section(self.construct_mapping(node, deep=True))
        section.marks = {self.construct_object(key): key.start_mark for key, _ in node.value}
        return section


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.section)
