"""A sample of every public data set and other trainer's file that is read, as its source writes it (the texts are made
up)."""

from __future__ import annotations

import json
from typing import Any

ASKED, PEAR, BRICK = "Name a fruit.", "Pear.", "Brick."
FRUIT = {"role": "user", "content": ASKED}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "image": None, "mimeType": None}]


BATTLE: dict[str, Any] = {
    "question_id": "q1",
    "model_a": "x",
    "model_b": "y",
    "winner": "model_a",
    "judge": "arena_user_1",
    "conversation_a": [FRUIT, said(PEAR)],
    "conversation_b": [FRUIT, said(BRICK)],
    "turn": 1,
    "tstamp": 1730000000.0,
    "openai_moderation": "{}",
}
OASST: list[dict[str, Any]] = [
    {"message_id": "m1", "parent_id": None, "text": ASKED, "role": "prompter", "rank": None},
    {"message_id": "m2", "parent_id": "m1", "text": BRICK, "role": "assistant", "rank": 1},
    {"message_id": "m3", "parent_id": "m1", "text": PEAR, "role": "assistant", "rank": 0},
]
for _row in OASST:  # what every message has
    _row |= {"message_tree_id": "m1", "tree_state": "ready_for_export", "deleted": False, "review_result": True}
    _row |= {"emojis": {"name": ["+1", "-1"], "count": [1 if _row["text"] == PEAR else 0, 1]}}
    _row |= {
        "labels": {"name": ["quality", "humor"], "value": [0.75, 0.0], "count": [3, 3]},
        "user_id": "u",
        "lang": "en",
    }

_GRADES = {"helpfulness": {"Rating": "5", "Rationale": "ok"}, "honesty": {"Rating": "N/A"}}

SAMPLES: dict[str, list[dict[str, Any]]] = {
    "arena": [
        BATTLE,
        {**BATTLE, "winner": "both_bad", "conversation_a": json.dumps([FRUIT, said("Stone.")])},
        {
            **BATTLE,
            "conversation_a": [
                {"role": "user", "content": parts(ASKED)},
                {"role": "assistant", "content": parts(PEAR)},
            ],
            "evaluation_session_id": "s",
        },
    ],
    "arena-55k": [
        {
            "id": 1,
            "model_a": "x",
            "model_b": "y",
            "prompt": json.dumps([ASKED]),
            "response_a": json.dumps([PEAR]),
            "response_b": json.dumps([BRICK]),
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        }
    ],
    "helpsteer2-preference": [
        {
            "split": "train",
            "prompt": ASKED,
            "response_1": PEAR,
            "response_2": BRICK,
            "preference_strength": -3,
            "preference_statement": "A brick is no fruit.",
            "preference_elaboration": "Indeed.",
            "three_most_similar_preferences": [{"strength": -3}],
            "all_preferences_unprocessed": [{"strength": -3}],
        }
    ],
    "helpsteer3": [
        {
            "domain": "general",
            "language": "english",
            "context": [FRUIT],
            "response1": PEAR,
            "response2": BRICK,
            "overall_preference": -2,
            "individual_preference": [{"score": -2, "reasoning": "r", "feedback1": "good", "feedback2": "no fruit"}],
        }
    ],
    "pku-saferlhf": [
        {
            "prompt": ASKED,
            "response_0": PEAR,
            "response_1": BRICK,
            "response_0_source": "m-a",
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "response_0_harm_category": {"Violence": False},
            "better_response_id": 0,
            "safer_response_id": 0,
        }
    ],
    "shp": [
        {
            "post_id": "p",
            "domain": "askculinary_train",
            "upvote_ratio": 0.98,
            "history": ASKED,
            "c_root_id_A": "a",
            "c_root_id_B": "b",
            "created_at_utc_A": 1730000000,
            "created_at_utc_B": 1730000001,
            "score_A": 30,
            "score_B": 4,
            "human_ref_A": PEAR,
            "human_ref_B": BRICK,
            "labels": 1,
            "score_ratio": 7.5,
        }
    ],
    "ultrafeedback": [
        {
            "source": "s",
            "instruction": ASKED,
            "models": ["x", "y"],
            "completions": [
                {"model": "x", "response": PEAR, "annotations": _GRADES, "critique": "good", "fine-grained_score": 4.5},
                {"model": "y", "response": BRICK, "annotations": _GRADES, "critique": "bad", "fine-grained_score": 1.0},
            ],
            "correct_answers": ["None"],
        }
    ],
    "nectar": [
        {
            "prompt": f"\n\nHuman: {ASKED}\n\nAssistant: ",
            "answers": [
                {"answer": BRICK, "model": "y", "rank": 3.0},
                {"answer": PEAR, "model": "x", "rank": 1.0},
                {"answer": "Plum.", "model": "z", "rank": 1.0},
            ],
            "turns": 1,
            "num_responses": 3,
            "source": ["s"],
            "good_natured": True,
        }
    ],
    "helpsteer": [
        {"prompt": ASKED, "response": text, "helpfulness": grade, "correctness": 3, "coherence": 4, "verbosity": 1}
        for text, grade in ((PEAR, 4), (BRICK, 0))
    ],
    "nemo-rl": [
        {
            "context": [FRUIT],
            "completions": [{"rank": 1, "completion": [said(BRICK)]}, {"rank": 0, "completion": [said(PEAR)]}],
        }
    ],
    "openrlhf": [{"input": ASKED, "output": PEAR, "reward": 0.5}],
    "oasst": OASST,
    "oasst-trees": [
        {
            "message_tree_id": "m1",
            "tree_state": "ready_for_export",
            "prompt": {**OASST[0], "replies": [{**row, "emojis": {"+1": 2}} for row in OASST[1:]]},
        }
    ],
    "orca-pairs": [{"system": "Be brief.", "question": ASKED, "chosen": PEAR, "rejected": BRICK}],
    "response-pairs": [
        {
            "instruction": ASKED,
            "chosen_response": PEAR,
            "rejected_response": BRICK,
            "chosen_avg_rating": 4.5,
            "rejected_avg_rating": 1.0,
            "chosen_model": "x",
        }
    ],
    "ms-swift": [
        {"messages": [FRUIT, said(PEAR)], "rejected_response": BRICK},
        {"messages": [FRUIT, said(PEAR)], "rejected_messages": [FRUIT, said(BRICK)]},
    ],
    "openai-preference": [
        {
            "input": {"messages": [FRUIT], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [said(PEAR)],
            "non_preferred_output": [said(BRICK)],
        }
    ],
    "argilla-flat": [
        {
            "id": "x0",
            "status": "completed",
            "prompt": ASKED,
            "response": PEAR,
            "rating.responses": [5],
            "rating.responses.users": ["u"],
            "rating.responses.status": ["submitted"],
            "rating.suggestion": None,
            "_server_id": "s",
        }
    ],
    "axolotl": [
        {"instruction": ASKED, "input": "", "completion": text, "label": text == PEAR} for text in (PEAR, BRICK)
    ],
}
