"""The question asked about a clip, and how a title and a description enter it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConfigError
from .sampling import check_keys

DEFAULT_TEMPLATE = (
    "How would you judge the engagement continuation rate of the given content, where engagement continuation rate "
    "represents the probability of watch time exceeding 5 seconds. The title of the video is {title}, and the "
    "description of the video is {description}"
)
MISSING_TEXT = "None"


@dataclass(frozen=True)
class PromptSpec:
    """How title and description become the prompt.

    template: text with the fields {title} and {description}. max_title_tokens, max_description_tokens: longer texts are
    cut to their first tokens (and counted); an empty text becomes the word None.
    """

    template: str = DEFAULT_TEMPLATE
    max_title_tokens: int = 128
    max_description_tokens: int = 256

    def __post_init__(self):
        for field in ("{title}", "{description}"):
            if self.template.count(field) != 1:
                raise ConfigError(f"the prompt template must contain {field} exactly once: {self.template!r}")
        for name in ("max_title_tokens", "max_description_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PromptSpec":
        """Inverse of `to_dict`; absent keys take their defaults, unknown keys raise ConfigError."""
        check_keys("PromptSpec", values, cls)
        return cls(**values)


def build_prompt(spec: PromptSpec, tokenizer, title: str | None, description: str | None) -> tuple[str, bool]:
    """Fill the template. Returns the text and whether title or description had to be cut.

    Braces, quotes, line breaks and special-token look-alikes in the texts are kept as plain text.
    """
    title, cut_title = truncate_text(title, tokenizer, spec.max_title_tokens)
    description, cut_description = truncate_text(description, tokenizer, spec.max_description_tokens)
    head, tail = spec.template.split("{title}")
    parts = [head.replace("{description}", description), tail.replace("{description}", description)]
    return title.join(parts), cut_title or cut_description


def truncate_text(text: str | None, tokenizer, max_tokens: int) -> tuple[str, bool]:
    """The longest prefix of `text` of at most `max_tokens` tokens, never cutting inside a character.

    None, blank text and a prefix without a visible character become "None". Returns the text and whether it was cut.
    `tokenizer` must be a fast one (it tells which characters a token covers).
    """
    if text is None or not text.strip():
        return MISSING_TEXT, False
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of characters, as JSON may hold
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    if len(offsets) <= max_tokens:
        return text, False
    end = offsets[max_tokens - 1][1]
    if offsets[max_tokens][0] < end:  # the next token holds the rest of a character: leave that character out
        end = offsets[max_tokens][0]
    return (text[:end] if text[:end].strip() else MISSING_TEXT), True


def plain_ids(tokenizer, text: str) -> list[int]:
    """Token ids of user text: special tokens written inside it stay ordinary characters."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
