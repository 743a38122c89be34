"""What reading one file may cost, and what is said of records and pages that were left out."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIN_MEMORY_MB = 200  # the interpreter and the libraries for pdf and docx alone map 130 MB


@dataclass(frozen=True)
class Limits:
    """What reading one file may cost. Files, records and documents beyond it are refused, with the reason.

    seconds: longest wait for the next document, page or stretch of records. Together the waits for one file may take
    that long, and seconds_per_mb more for each MB (1e6 bytes) of the file. Time that the consumer of the documents
    takes does not count. memory_mb: address space of the process that reads. max_file_mb: size of a file whose format
    must be read whole (not JSON Lines). max_line_chars: length of a JSON Lines record, in bytes. max_text_chars,
    max_blocks: text and paragraphs of one document. max_unpacked_mb: a docx's XML. max_ratio: times by which packed
    data may grow. max_meta_chars, max_meta_keys: one value of a record's metadata, and values per record.

    Raises ValueError for values that are not positive, and for less memory than the process itself takes.
    """

    seconds: float = 60
    seconds_per_mb: float = 20
    memory_mb: int = 1024
    max_file_mb: int = 256
    max_line_chars: int = 10_000_000
    max_text_chars: int = 20_000_000
    max_blocks: int = 500_000
    max_unpacked_mb: int = 256
    max_ratio: int = 250
    max_meta_chars: int = 1000
    max_meta_keys: int = 50

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not value > 0:
                raise ValueError(f"{each.name} is {value}; it must be more than 0")
        if self.memory_mb < MIN_MEMORY_MB:
            raise ValueError(f"memory_mb is {self.memory_mb}; a reader needs at least {MIN_MEMORY_MB}")

    def total_seconds(self, num_bytes: int) -> float:
        """How long all waits for a file of that size may take together."""
        return self.seconds + self.seconds_per_mb * num_bytes / 1e6


class LeftOut:
    """Counts the parts of a file that could not be read, and keeps what to say about the first few."""

    MAX_SPELLED_OUT = 3

    def __init__(self) -> None:
        self.num_parts = 0  # seen, good or bad
        self.num_left_out = 0
        self._spelled_out: list[str] = []
        self._remarks: dict[str, int] = {}

    def add(self, where: str, reason: str) -> None:
        """Count a part that is not in any document: add('line 3', 'not JSON')."""
        self.num_left_out += 1
        if len(self._spelled_out) < self.MAX_SPELLED_OUT:
            self._spelled_out.append(f"{where}: {reason}")

    def remark(self, what: str) -> None:
        """Count something lesser that was left out of a part, by what it is."""
        if what not in self._remarks and len(self._remarks) >= self.MAX_SPELLED_OUT:
            what = "other metadata left out"
        self._remarks[what] = self._remarks.get(what, 0) + 1

    def summary(self, parts: str) -> str:
        """One line, '' where all was read. `parts` is what they are called: 'records'."""
        said = [f"{what} ({count:,} {parts})" for what, count in self._remarks.items()]
        if self.num_left_out:
            more = self.num_left_out - len(self._spelled_out)
            examples = "; ".join([*self._spelled_out, *([f"and {more:,} more"] if more else [])])
            said.insert(0, f"{self.num_left_out:,} of {self.num_parts:,} {parts} left out ({examples})")
        return "; ".join(said)
