"""A small export of every application whose layout is read, as files of rows."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]

_TREE = {
    "q": {"id": "q", "parentId": None, "role": "user", "content": "Name a fruit."},
    "a1": {
        "id": "a1",
        "parentId": "q",
        "role": "assistant",
        "content": '<details type="reasoning" done="true"><summary>x</summary>&gt; Hm.</details>Pear.',
        "model": "m-a",
        "annotation": {"rating": 1, "reason": "good", "comment": "", "details": {"rating": 9}},
        "timestamp": 1730000000,
    },
    "a2": {"id": "a2", "parentId": "q", "role": "assistant", "content": "Brick.", "model": "m-b", "done": True},
}
_CHAT = {"params": {"system": "Be brief."}, "history": {"currentId": "a1", "messages": _TREE}}


def _node(id: str, parent: str | None, role: str, *parts: str) -> dict[str, Any]:
    content = {"content_type": "text", "parts": [*parts]}
    message = {"id": id, "author": {"role": role}, "content": content, "metadata": {"model_slug": "m"}}
    return {"id": id, "parent": parent, "children": [], "message": message}


EXPORTS: dict[str, dict[str, Rows]] = {
    "openwebui": {
        "feedback": [
            {
                "id": "f1",
                "user_id": "u7",
                "type": "rating",
                "version": 0,
                "data": {
                    "rating": 1,
                    "model_id": "m-a",
                    "sibling_model_ids": ["m-b"],
                    "reason": "accurate",
                    "comment": "",
                    "details": {"rating": 9},
                },
                "meta": {"arena": True, "chat_id": "c1", "message_id": "a1"},
                "snapshot": {"chat": {"id": "c1", "chat": _CHAT}},
                "created_at": 1730000001,
            }
        ]
    },
    "openwebui-chats": {"chats": [{"id": "c1", "user_id": "u7", "title": "Fruit", "chat": _CHAT}]},
    "chatgpt": {
        "conversations": [
            {
                "title": "Fruit",
                "conversation_id": "c",
                "current_node": "a",
                "mapping": {"u": _node("u", None, "user", "Name a fruit."), "a": _node("a", "u", "assistant", "Pear.")},
            }
        ],
        "message_feedback": [
            {
                "id": "a",
                "conversation_id": "c",
                "user_id": "u",
                "rating": "thumbs_up",
                "create_time": "2023-05-11T19:00:35Z",
                "content": '{"tags": ["x"], "text": "nice"}',
            }
        ],
    },
    "langsmith": {
        "runs": [
            {
                "id": "r1",
                "name": "ChatOpenAI",
                "run_type": "llm",
                "inputs": {"messages": [[{"type": "human", "data": {"content": "Name a fruit."}}]]},
                "outputs": {"generations": [[{"text": "Pear.", "message": {"content": "Pear."}}]]},
                "feedback_stats": {"user_score": {"n": 1, "avg": 1.0}},
                "extra": {"metadata": {"ls_model_name": "m"}},
            }
        ]
    },
    "langsmith with feedback": {
        "runs": [{"id": "r1", "run_type": "llm", "inputs": {"input": "Name a fruit."}, "outputs": {"output": "Pear."}}],
        "feedback": [
            {
                "id": "fb1",
                "run_id": "r1",
                "key": "user_score",
                "score": 1.0,
                "comment": "nice",
                "feedback_source": {"type": "app", "user_id": "u"},
            }
        ],
    },
    "langfuse": {
        "traces": [
            {
                "id": "t1",
                "timestamp": "2024-11-01T00:00:00Z",
                "userId": "u",
                "sessionId": "s",
                "input": {"messages": [{"role": "user", "content": "Name a fruit."}]},
                "output": {"role": "assistant", "content": "Pear."},
                "scores": {"user-feedback": ["1.0"]},
            }
        ]
    },
    "langfuse in parts": {
        "scores": [
            {
                "id": "s1",
                "trace_id": "t1",
                "observation_id": "o1",
                "name": "user-feedback",
                "value": 1,
                "string_value": None,
                "data_type": "BOOLEAN",
                "source": "API",
                "comment": "nice",
            }
        ],
        "observations": [
            {
                "id": "o1",
                "trace_id": "t1",
                "type": "GENERATION",
                "start_time": "2024-11-01T00:00:00Z",
                "input": '[{"role": "user", "content": "Name a fruit."}]',
                "output": '{"role": "assistant", "content": "Pear."}',
                "provided_model_name": "m-a",
            }
        ],
    },
    "langfuse-trace": {
        "trace-t1": [
            {
                "trace": {"id": "t1", "input": "Name a fruit.", "output": "Pear."},
                "observations": [{"id": "o1", "type": "GENERATION", "input": "Name a fruit.", "output": "Pear."}],
                "scores": [{"id": "s", "observationId": "o1", "name": "thumb", "value": 1, "dataType": "BOOLEAN"}],
            }
        ]
    },
}
"""{what it is: {file: rows}}. Each holds one judged answer, "Pear." to "Name a fruit."."""
