"""The words of a first start: the two keys, once, and two ways to use them that work when pasted. Pure text."""

from __future__ import annotations

CHAT_MODEL = "chat"


def welcome(base_url: str, admin_key: str, user_key: str, model: str = CHAT_MODEL) -> str:
    """What is printed when the first keys were minted.

    Args:
        base_url: `http://127.0.0.1:8080/v1`, without a slash at its end.
        admin_key: the whole admin key, shown only here.
        user_key: the whole user key, shown only here.
        model: the model that the examples ask for.
    """
    return f"""
Switchyard serves {base_url}

  admin key  {admin_key}
  user key   {user_key}

Keep them now: they are stored as hashes and never shown again.
More keys: switchyard keys new --name NAME   (where `make run` was used: .venv/bin/switchyard)

Try it with curl:

curl -sN {base_url}/chat/completions -H 'Authorization: Bearer {user_key}' -H 'Content-Type: application/json' \
-d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Say hello in one sentence."}}]}}'

Or from Python (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{base_url}", api_key="{user_key}")
answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Say hello in one sentence."}}])
print(answer.choices[0].message.content)
"""


def greeting(base_url: str) -> str:
    """What is printed at every later start."""
    return f"\nSwitchyard serves {base_url}\nKeys were minted at the first start; more: switchyard keys new --name NAME\n"
