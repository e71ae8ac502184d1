import ast
import json
import shlex

from gateway.config.welcome import greeting, welcome

TEXT = welcome("http://127.0.0.1:8080/v1", "sk-sy-admin-key", "sk-sy-user-key")


def test_the_curl_line_is_one_line_a_shell_understands() -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith("curl ")]
    words = shlex.split(line)
    assert words[2] == "http://127.0.0.1:8080/v1/chat/completions"
    assert "Authorization: Bearer sk-sy-user-key" in words
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == "chat" and body["stream"] is True


def test_the_snippet_is_python() -> None:
    code = TEXT[TEXT.index("from openai import OpenAI") :]
    names = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
    assert {"completions", "create", "content"} <= names
    assert 'api_key="sk-sy-user-key"' in code


def test_the_admin_key_is_shown_but_not_used() -> None:
    assert TEXT.count("sk-sy-admin-key") == 1


def test_a_later_start_shows_no_key() -> None:
    assert "sk-sy" not in greeting("http://127.0.0.1:8080/v1")
