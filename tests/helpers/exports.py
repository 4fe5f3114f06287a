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
    "anythingllm": {
        "chats": [
            {
                "id": 1,
                "workspace": "docs",
                "prompt": "Name a fruit.",
                "response": "<think>Hm.</think>Pear.",
                "sent_at": "2024-03-18T10:00:00Z",
                "username": "admin",
                "rating": "GOOD",
                "attachments": [],
            }
        ]
    },
    "argilla": {
        "records": [
            {
                "id": "1",
                "fields": {"prompt": "Name a fruit.", "response": "Pear."},
                "metadata": {},
                "suggestions": {"thumb": {"value": "bad", "score": 0.5, "agent": "m"}},
                "responses": {"thumb": [{"value": "good", "user_id": "u1"}]},
                "vectors": {},
                "status": "completed",
                "_server_id": "x",
            }
        ]
    },
    "argilla with a ranking": {
        "records": [
            {
                "id": "1",
                "status": "completed",
                "_server_id": "x",
                "prompt": "Name a fruit.",
                "response-1": "Pear.",
                "response-2": "Brick.",
                "rank.responses": [[{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 2}]],
                "rank.responses.users": ["u1"],
                "rank.responses.status": ["submitted"],
            }
        ]
    },
    "labelstudio": {
        "tasks": [
            {
                "id": 1,
                "data": {"prompt": "Name a fruit.", "answer1": "Pear.", "answer2": "Brick."},
                "annotations": [
                    {
                        "id": 9,
                        "completed_by": 3,
                        "was_cancelled": False,
                        "result": [
                            {"type": "pairwise", "from_name": "pw", "to_name": "a1", "value": {"selected": "left"}},
                            {"type": "textarea", "from_name": "why", "value": {"text": ["ripe"]}},
                        ],
                    }
                ],
                "predictions": [{"result": [], "model_version": "m"}],
            }
        ]
    },
    "labelstudio-min": {
        "tasks": [
            {
                "id": 1,
                "question": "Name a fruit.",
                "reply": "Pear.",
                "thumb": "good",
                "annotator": 3,
                "annotation_id": 9,
                "created_at": "2026-01-02",
                "lead_time": 4.2,
            }
        ]
    },
    "dify-feedback": {
        "feedback": [
            {
                "feedback_id": "f",
                "app_name": "Fruit",
                "conversation_id": "c",
                "message_id": "m",
                "user_query": "Name a fruit.",
                "ai_response": "Pear.",
                "feedback_rating": "👍",
                "feedback_rating_raw": "like",
                "feedback_comment": "ripe",
                "feedback_source": "user",
                "feedback_date": "2025-01-02 03:04:05",
                "from_end_user_id": "u",
            }
        ]
    },
    "dify": {
        "messages": [
            {
                "id": "m1",
                "conversation_id": "c",
                "parent_message_id": "00000000-0000-0000-0000-000000000000",
                "inputs": {"tone": "dry"},
                "query": "Name a fruit.",
                "answer": "Pear.",
                "message_files": [],
                "feedbacks": [{"rating": "like", "content": "ripe", "from_source": "user", "from_end_user_id": "u"}],
                "created_at": 1730000000,
            }
        ]
    },
    "librechat": {
        "conversation": [
            {
                "conversationId": "c",
                "endpoint": "openAI",
                "title": "Fruit",
                "exportAt": "12:00",
                "options": {"model": "m", "promptPrefix": "Be brief."},
                "messages": [
                    {"messageId": "q", "parentMessageId": None, "isCreatedByUser": True, "text": "Name a fruit."},
                    {
                        "messageId": "a1",
                        "parentMessageId": "q",
                        "isCreatedByUser": False,
                        "content": [{"type": "think", "think": "Hm."}, {"type": "text", "text": "Pear."}],
                        "feedback": {"rating": "thumbsUp", "tag": {"key": "accurate"}, "text": "ripe"},
                    },
                ],
            }
        ]
    },
    "librechat-messages": {
        "messages": [
            {"messageId": "q", "conversationId": "c", "isCreatedByUser": True, "text": "Name a fruit."},
            {
                "messageId": "a1",
                "parentMessageId": "q",
                "conversationId": "c",
                "user": "u",
                "isCreatedByUser": False,
                "text": "Pear.",
                "createdAt": {"$date": "2025-01-02T03:04:05Z"},
                "feedback": {"rating": "thumbsUp"},
            },
        ]
    },
}
"""{what it is: {file: rows}}. Each holds one judged answer, "Pear." to "Name a fruit."."""
