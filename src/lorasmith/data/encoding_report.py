"""What encoding did to the records, in numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EncodingReport:
    """Counts of one source after encoding, and what its user should know."""

    shape: str
    records: int
    examples: int
    tokens: int
    supervised: int  # tokens that enter the loss; for classification, examples
    truncated: int  # examples cut at max_length; windows of text are not counted
    dropped: int  # examples with nothing left to learn after the cut
    longest: int  # tokens, after the cut
    max_length: int
    label_names: tuple[str, ...] = ()
    answer_ends: tuple[int, ...] = ()  # ids of the tokens that answers end with: where generation must stop
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for a person, a sentence a line."""
        share = f" ({self.supervised / self.tokens:.0%})" if self.tokens and not self.label_names else ""
        learned = "classes" if self.label_names else "tokens"
        lines = [
            f"{self.records} records of shape {self.shape} gave {self.examples} examples with {self.tokens} tokens, "
            f"longest {self.longest}",
            f"learned: {self.supervised} {learned}{share}",
        ]
        if self.label_names:
            lines.append(f"classes: {', '.join(self.label_names)}")
        if self.truncated:
            lines.append(f"cut at max_length={self.max_length}: {self.truncated} examples")
        if self.dropped:
            lines.append(f"dropped, nothing left to learn: {self.dropped} examples")
        return [*lines, *self.notes]
