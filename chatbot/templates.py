"""Chat templates by name, for models that bring none of their own: Jinja, as transformers reads it.

`human-bot` is OpenChatKit's format, `human-assistant` the plain default, the others are the common FastChat names.
A model's own template always comes first; `--template NAME` chooses one of these instead.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_TEMPLATE = "human-assistant"


@dataclass(frozen=True)
class Template:
    """`jinja` renders `messages` and `add_generation_prompt`; generation ends at any of `stops`.

    `learned` is the same for a model that is trained on it: each reply ends in the end-of-sequence token, which such a
    model learns to stop with.
    """

    jinja: str
    stops: tuple[str, ...]
    learned: str


def _labelled(user: str, bot: str, end: str, stops: tuple[str, ...]) -> Template:
    """`USER text END BOT text END ...`, the system message as bare text before; the prompt ends with BOT."""
    jinja = (
        "{%- for message in messages -%}"
        "{%- if message.role == 'system' -%}{{ message.content + '\n\n' }}"
        "{%- elif message.role == 'user' -%}{{ USER + message.content + END }}"
        "{%- else -%}{{ BOT + message.content + REPLY_END }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ PROMPT }}{%- endif -%}"
    )
    learned = jinja.replace("REPLY_END", "eos_token + END")
    # The prompt has no space at its end: most tokenizers attach a space to the word that follows.
    for name, value in (("REPLY_END", end), ("USER", user), ("BOT", bot), ("END", end), ("PROMPT", bot.rstrip(" "))):
        jinja, learned = jinja.replace(name, repr(value)), learned.replace(name, repr(value))
    return Template(jinja, stops, learned)


_CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
_ZEPHYR = (
    "{%- for message in messages -%}"
    "{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
)
_LLAMA_2 = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}"
    "{{ bos_token + '[INST] ' }}"
    "{%- if system and loop.index0 == 1 -%}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{%- endif -%}"
    "{{ message.content + ' [/INST]' }}"
    "{%- elif message.role == 'assistant' -%}{{ ' ' + message.content + ' ' + eos_token }}{%- endif -%}"
    "{%- endfor -%}"
)

TEMPLATES: dict[str, Template] = {
    "human-assistant": _labelled("Human: ", "Assistant: ", "\n\n", stops=("\nHuman:", "\nAssistant:")),
    "human-bot": _labelled("<human>: ", "<bot>: ", "\n", stops=("<human>", "<bot>")),
    "vicuna": _labelled("USER: ", "ASSISTANT: ", "\n", stops=("\nUSER:", "\nASSISTANT:")),
    "alpaca": _labelled(
        "### Instruction:\n", "### Response:\n", "\n\n", stops=("\n### Instruction:", "\n### Response:")
    ),
    "chatml": Template(_CHATML, ("<|im_end|>", "<|im_start|>"), _CHATML),
    "zephyr": Template(_ZEPHYR, ("<|user|>", "<|system|>"), _ZEPHYR),
    "llama-2": Template(_LLAMA_2, ("[INST]",), _LLAMA_2),
}


def find_template(name: str) -> Template:
    """The template called `name`; ValueError lists the choices."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown template '{name}'; choose one of: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
