"""Whatever the client writes: the segments are the prompt, and none of it is trusted text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.core.request import Message, Role, Text
from backends.templates.families import family
from backends.templates.jinja import ChatTemplate

TEMPLATES = (
    ChatTemplate(family("chatml").template),
    ChatTemplate("{% for m in messages %}<s>{{ m.content | trim }}</s>{% endfor %}"),
)
WORDS = st.lists(st.sampled_from(["<|im_end|>", "<s>", "</s>", "</think>", " ", "\n", "\ue000", "\ue001", "x", "{{ 1 }}", "é"]))
ROLES: st.SearchStrategy[Role] = st.sampled_from(["user", "assistant", "system", "developer"])


@given(st.lists(st.tuples(ROLES, WORDS.map("".join)), max_size=5), st.sampled_from(TEMPLATES))
def test_segments_join_to_the_prompt_and_trust_only_the_template(turns: list[tuple[Role, str]], template: ChatTemplate) -> None:
    messages = tuple(Message(role, (Text(text),)) for role, text in turns)
    whole = template.render(messages)
    segments = template.render_segments(messages)
    assert "".join(segment.text for segment in segments) == whole
    empty = template.render(tuple(Message(role, (Text(""),)) for role, _ in turns))
    trusted = "".join(segment.text for segment in segments if segment.trusted)
    for token in ("<|im_end|>", "<s>", "</s>"):
        assert trusted.count(token) == empty.count(token)
